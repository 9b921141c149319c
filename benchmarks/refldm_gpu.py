"""How fast ReF-LDM restores pictures on this machine's GPU: `python benchmarks/refldm_gpu.py [--record NAME]`.

Runs the pipeline with networks of the release's size at random weights (512 px, 118 M + 57 M parameters), 50 steps,
guidance 1.5, with 1 and 5 references, one picture and several at a time, in every precision, eager and compiled.
Prints a Markdown table: seconds a picture, peak memory, arithmetic of the run, and which fraction of the *matmul roof*
that is: of the rate of one large matrix product of the same type, measured in the same run.

Without a GPU it says so and times the small networks of the toy profile on the CPU, which only shows that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from refbfr_core.pipelines import RefLDMPipeline


@dataclass(frozen=True)
class Precision:
    """A way to compute: type of the denoiser (the first stage follows under autocast), TF32 in float32, layout."""

    dtype: str
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False


PRECISIONS = {
    "fp32": Precision("float32"),
    "tf32": Precision("float32", tf32=True),
    "bf16": Precision("bfloat16"),
    "bf16 channels-last": Precision("bfloat16", channels_last=True),
    "fp32 compiled": Precision("float32", compiled=True),
    "bf16 compiled": Precision("bfloat16", compiled=True),
}


@dataclass(frozen=True)
class Measured:
    """One row. `seconds` a picture (median, and the spread of the repeats), `warm_up` the first call, which compiles;
    `peak_gib` of GPU memory, weights included; `tflop` a picture; `roof` is tflop / seconds over that of a matmul."""

    precision: str
    pictures: int
    references: int
    steps: int
    seconds: float
    seconds_min: float
    seconds_max: float
    warm_up: float
    peak_gib: float
    tflop: float
    roof_tflops: float
    roof: float


def full_size_pipeline() -> RefLDMPipeline:
    """Networks of the release's configuration at random weights; as fast as the released ones."""
    from refbfr_core.diffusion import refldm_schedule, to_scheduler
    from refbfr_core.weights.convert import convert_ldm_unet, convert_ldm_vq
    from refbfr_core.weights.published_ldm import LIVE, REFLDM_LAYOUT
    from refbfr_core.weights.published_sample import sample_refldm

    layout, state = REFLDM_LAYOUT, sample_refldm()
    unet = convert_ldm_unet({k: v for k, v in state.items() if k.startswith(LIVE)}, layout.unet)
    prefix = "first_stage_model."
    stage = {k: v for k, v in state.items() if k.startswith(prefix)}
    vq = convert_ldm_vq(stage, layout.vq, layout.n_embed, layout.embed_dim)
    return RefLDMPipeline(vq, unet, to_scheduler(refldm_schedule()), 1, "strip")


def toy_pipeline() -> RefLDMPipeline:
    """The shipped networks, to try this script without a GPU."""
    from refbfr_core import load_pipeline

    return load_pipeline("refldm", device="cpu")


def matmul_roof(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 10) -> float:
    """TFLOP/s of a product of two (side, side) matrices: the best of the repeats, because it is to be a roof."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = min(timed(lambda: a @ b, device) for _ in range(repeats + 3))
    return 2 * side**3 / seconds / 1e12


def flops_a_picture(pipe: RefLDMPipeline, references: int, steps: int) -> float:
    """Floating-point operations of restoring one picture: encoding, reference passes, steps, decoding.

    Counted in runs of one and two steps, which differ by one step, with attention written out as matrix products.
    """
    counts = []
    for few in (1, 2):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            pipe(*pictures(pipe, 1, references), num_inference_steps=few, rows_per_call=2)
        counts.append(counter.get_total_flops())
    return counts[0] + (steps - 1) * (counts[1] - counts[0])


def pictures(pipe: RefLDMPipeline, batch: int, references: int) -> tuple[Tensor, Tensor]:
    """Random pictures to restore and their references, where the pipeline runs; content does not change the speed."""
    generator = torch.Generator().manual_seed(0)
    size = (3, pipe.resolution, pipe.resolution)
    lq, given = torch.rand(batch, *size, generator=generator), torch.rand(batch, references, *size, generator=generator)
    return lq.to(pipe.device), given.to(pipe.device)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the work is done, on the device too."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def measure(
    make: Callable[[], RefLDMPipeline],
    device: torch.device,
    names: list[str],
    batches: list[int],
    reference_counts: list[int],
    steps: int,
    repeats: int,
) -> Iterator[Measured]:
    """All combinations; a new pipeline for each precision, so that none inherits rounded weights."""
    pipe = _ready(make, device)
    tflop = {count: flops_a_picture(pipe, count, steps) / 1e12 for count in reference_counts}
    for name in names:
        precision = PRECISIONS[name]
        with _tf32(precision.tf32):
            roof = matmul_roof(device, getattr(torch, precision.dtype), 8192 if device.type == "cuda" else 1024)
            pipe = _ready(make, device)
            pipe.speed_up(precision.dtype, channels_last=precision.channels_last, compiled=precision.compiled)
            for batch in batches:
                for count in reference_counts:
                    times = restoration_times(pipe, batch, count, steps, repeats)
                    rate = tflop[count] / times["seconds"]
                    yield Measured(
                        *(name, batch, count, steps), **times, tflop=tflop[count], roof_tflops=roof, roof=rate / roof
                    )


def restoration_times(pipe: RefLDMPipeline, batch: int, references: int, steps: int, repeats: int) -> dict[str, float]:
    """Seconds a picture and peak memory of whole calls, all pictures and both branches in one call of the denoiser."""
    lq, given = pictures(pipe, batch, references)
    device, on_gpu = lq.device, lq.device.type == "cuda"

    def restore(number: int) -> None:
        pipe(lq, given, num_inference_steps=number, rows_per_call=2 * batch)

    warm_up = timed(lambda: restore(2), device)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [timed(lambda: restore(steps), device) / batch for _ in range(repeats)]
    return {
        "seconds": median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "warm_up": warm_up,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan"),
    }


def markdown(rows: list[Measured]) -> str:
    """The measurements as a Markdown table."""
    heads = (
        *("precision", "pictures at a time", "references", "seconds a picture (spread)", "peak memory"),
        *("TFLOP a picture", "matmul roof", "fraction of the roof"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        memory = "" if r.peak_gib != r.peak_gib else f"{r.peak_gib:.1f} GiB"
        cells = (
            *(r.precision, r.pictures, r.references, f"{r.seconds:.3g} ({r.seconds_min:.3g} to {r.seconds_max:.3g})"),
            *(memory, f"{r.tflop:.3g}", f"{r.roof_tflops:.3g} TFLOP/s", f"{r.roof:.0%}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table with the machine's name, and keeps it as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="NAME")
    parser.add_argument("--pictures", nargs="+", type=int, default=[1, 8], help="pictures at a time")
    parser.add_argument("--references", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=("full", "toy"), help="networks (default: full on a GPU, toy without)")
    parser.add_argument("--record", metavar="NAME", help="keep the rows as this recording of the package")
    parser.add_argument("--folder", help="folder of the recording (default: the package's own)")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    chosen.size = chosen.size or ("full" if device.type == "cuda" else "toy")
    described = machine()
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + f"; torch: {torch.__version__}")
    if device.type != "cuda":
        print("No GPU is used: this only shows that the script works; its numbers say nothing about a GPU.")
    make = full_size_pipeline if chosen.size == "full" else toy_pipeline
    what = (chosen.precisions, chosen.pictures, chosen.references, chosen.steps, chosen.repeats)
    rows = []
    for row in measure(make, device, *what):
        rows.append(row)
        print(f"  {row.precision}, {row.pictures} x {row.references} references: {row.seconds:.3g} s", flush=True)
    print(f"\n{chosen.size} networks, {chosen.steps} steps\n\n{markdown(rows)}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/refldm_gpu.py", *sys.argv[1:]]), "settings": settings}
        record(chosen.record, pd.DataFrame(map(asdict, rows)), about, chosen.folder)


def _ready(make: Callable[[], RefLDMPipeline], device: torch.device) -> RefLDMPipeline:
    """A new pipeline on the device, without a progress bar."""
    pipe = make().to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Tensor cores for float32 (10 bits of mantissa) or not, in matrix products and convolutions alike."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
