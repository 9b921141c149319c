"""ReF-LDM at full size, from files on disk to a restored picture: `python benchmarks/refldm_full_size.py [--steps 50]`.

Writes checkpoints in the layout of the authors' release with random values (about 1.4 GB, into a temporary folder that
is removed), imports them as `refbfr weights import` does, loads `load_pipeline("refldm", profile="paper")` and restores
one drawn face of 512 px. The picture means nothing, the seconds and the memory are those of the real weights. Every
stage runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from run import machine

RECORDING = "refldm-full-size-cpu"
SEED = 2024


@dataclass(frozen=True)
class Row:
    """One number: of which `stage`, with how many references (None where there are none yet)."""

    stage: str
    quantity: str
    value: float
    unit: str
    references: int | None = None

    def __str__(self) -> str:
        with_references = "" if self.references is None else f", {self.references} ref."
        return f"{self.stage + with_references:<22} {self.quantity:<44} {self.value:>9.4g} {self.unit}"


def write_checkpoints(folder: Path) -> list[Row]:
    """Both files of the release, with random values."""
    from refbfr_core.weights.published_sample import sample_refldm, sample_vqgan

    start = time.perf_counter()
    torch.save({"state_dict": sample_vqgan(seed=0)}, folder / "vqgan.ckpt")
    torch.save(sample_refldm(seed=0), folder / "refldm.ckpt")
    rows = [Row("files", "made and written", time.perf_counter() - start, "s")]
    return rows + [
        Row("files", path.name, path.stat().st_size / 2**20, "MiB") for path in sorted(folder.glob("*.ckpt"))
    ]


def import_checkpoints(folder: Path) -> list[Row]:
    """What `refbfr weights import refldm.ckpt vqgan.ckpt` does, once in a life."""
    from refbfr_core.weights import import_published

    start = time.perf_counter()
    done = import_published(
        [folder / "refldm.ckpt", folder / "vqgan.ckpt"], accept=lambda _: True, root=folder / "paper"
    )
    rows = [Row("import", "checked, converted, written", time.perf_counter() - start, "s")]
    for one in done:
        size = sum(path.stat().st_size for path in one.folder.iterdir())
        rows.append(Row("import", f"{one.name} on disk", size / 2**20, "MiB"))
    return [*rows, Row("import", "peak memory", peak_memory(), "GiB")]


def restore(folder: Path, references: int, steps: int) -> list[Row]:
    """Load the pipeline and restore one picture."""
    from refbfr_core import load_pipeline
    from refbfr_core.pipelines import SAMPLING

    lq, photos = case(references)
    start = time.perf_counter()
    pipe = load_pipeline("refldm", profile="paper", device="cpu", root=folder / "paper")
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    settings = {**SAMPLING["release"], "num_inference_steps": steps, "seed": SEED}
    ends: list[float] = []
    with spans(pipe.vq, "encode") as encoded, spans(pipe.vq, "decode") as decoded, first_step(pipe.unet) as begun:
        start, worked = time.perf_counter(), time.process_time()
        result = pipe(lq, photos, callback=lambda _: ends.append(time.perf_counter()), **settings)
        total, worked = time.perf_counter() - start, time.process_time() - worked
    if not bool(torch.isfinite(result.images).all()):
        raise SystemExit("the restored picture is not finite; the measurement would mean nothing.")
    own, strips = encoded[:1], encoded[1:]
    ready = encoded[-1][1]
    each = [after - before for before, after in zip([begun[0], *ends], ends, strict=False)]
    timed = {
        "loading the pipeline, every byte checked": loading,
        "encoding the ruined picture": _seconds(own),
        "encoding the references as one strip": _seconds(strips),
        "reference passes (CacheKV)": begun[0] - ready,
        "first step": each[0],
        "one step, median": median(each),
        f"all {len(each)} steps": ends[-1] - begun[0],
        "decoding": _seconds(decoded),
        "restoration, without loading": total,
        # On a busy machine this says more than the clock does.
        "processor time of the restoration, all threads": worked,
    }
    rows = [Row("restoration", name, value, "s", references) for name, value in timed.items()]
    return [*rows, Row("restoration", "peak memory", peak_memory(), "GiB", references)]


def case(references: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A ruined drawn face of 512 px, (1, 3, 512, 512), and photos of the same person, (1, references, 3, 512, 512)."""
    from refbfr_core.degradation import Degradation
    from refbfr_core.faces import ToyFaces

    faces = ToyFaces(resolution=512)
    person = faces.identities(1, seed=SEED, split="test")
    photos = faces.render(person, faces.views(person, 1 + references, seed=SEED)).images
    lq, _ = Degradation.preset("refldm-severe")(photos[:, 0], seed=SEED)
    return lq, photos[:, 1:]


@contextmanager
def spans(owner: Any, name: str) -> Iterator[list[tuple[float, float]]]:
    """Start and end of every call of the method `name` of one object."""
    calls: list[tuple[float, float]] = []
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = method(*args, **kwargs)
        calls.append((start, time.perf_counter()))
        return result

    setattr(owner, name, timed)
    try:
        yield calls
    finally:
        delattr(owner, name)


@contextmanager
def first_step(unet: torch.nn.Module) -> Iterator[list[float]]:
    """When the first denoising step began: the first call at another timestep than 0, at which references pass."""
    begun: list[float] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not begun and int(torch.as_tensor(args[1]).max()) != 0:
            begun.append(time.perf_counter())

    hook = unet.register_forward_pre_hook(before)
    try:
        yield begun
    finally:
        hook.remove()


def peak_memory() -> float:
    """The most memory this process has had, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def alone(work: Callable[..., list[Row]], *arguments: Any, threads: int | None) -> list[Row]:
    """The rows of `work(*arguments)`, run in a fresh process; printed as well."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_set_threads, initargs=(threads,)) as pool:
        rows = pool.submit(work, *arguments).result()
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    """Runs the stages, prints their lines as they come, and keeps them as a recording if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default: 50, as released)")
    parser.add_argument("--references", type=int, nargs="+", default=[1], help="one restoration for each number")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; it needs 2.2 GB")
    parser.add_argument("--record", action="store_true", help=f"keep the result as the recording {RECORDING!r}")
    parser.add_argument("--record-in", type=Path, help="folder of the recording (default: the package's own)")
    chosen = parser.parse_args()
    if min(chosen.references) < 1 or chosen.steps < 1:
        parser.error("steps and references start at 1")
    _set_threads(chosen.threads)
    signal.signal(signal.SIGTERM, _end)
    described = machine()
    for key, value in described.items():
        print(f"{key:<16} {value}")
    print()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="refbfr-full-size-", dir=chosen.folder) as place:
        folder = Path(place)
        rows += alone(write_checkpoints, folder, threads=chosen.threads)
        rows += alone(import_checkpoints, folder, threads=chosen.threads)
        for path in folder.glob("*.ckpt"):
            path.unlink()
        for references in chosen.references:
            rows += alone(restore, folder, references, chosen.steps, threads=chosen.threads)
    if chosen.record or chosen.record_in:
        _record(rows, chosen, described)


def _record(rows: list[Row], chosen: argparse.Namespace, described: dict[str, Any]) -> None:
    import pandas as pd

    from refbfr_core.benchmark import record
    from refbfr_core.pipelines import SAMPLING

    about = {
        "command": shlex.join(["python", "benchmarks/refldm_full_size.py", *sys.argv[1:]]),
        "settings": {
            **SAMPLING["release"],
            "num_inference_steps": chosen.steps,
            "references": chosen.references,
            "threads": described["torch_threads"],
            "precision": "float32",
            "resolution": 512,
        },
        "seeds": {"weights": 0, "case and noise": SEED},
        "weights": "random values in the layout of ReF-LDM's release (refbfr_core.weights.published_sample)",
        "load_average_at_start": described["load_average"],
        "load_average_at_end": round(os.getloadavg()[0], 2),
    }
    print(record(RECORDING, pd.DataFrame(rows), about, chosen.record_in))


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _end(*_: object) -> None:
    """Ended from outside: the stage under way ends too, and the temporary folder goes."""
    for child in active_children():
        child.terminate()
    raise SystemExit(143)


def _seconds(calls: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in calls)


if __name__ == "__main__":
    main()
