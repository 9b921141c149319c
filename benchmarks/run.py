"""How fast the workbook is on this machine: `python benchmarks/run.py [--only NAME ...] [--json FILE]`.

Prints rates and ratios with a description of the machine. These are measurements, not tests: nothing here can fail a
build. Numbers from a busy machine mean little, so its load is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESOLUTION = 128


@dataclass(frozen=True)
class Measurement:
    """One number; `goal` is what the workbook promises on two idle cores: at least for rates, at most for times."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    note: str = ""

    def __str__(self) -> str:
        rate = self.unit.endswith("/s")
        share = "" if self.goal is None else f"goal {'>=' if rate else '<='} {self.goal:g} {self.unit}"
        return f"{self.name:<46} {self.value:>9.3g} {self.unit:<10} {share:<20} {self.note}".rstrip()


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of one call after a first one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        _synchronise()
        start = time.perf_counter()
        work()
        _synchronise()
        times.append(time.perf_counter() - start)
    return median(times)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def faces() -> Iterator[Measurement]:
    """Drawing faces with antialiasing: one thread, one single-threaded process a core (as caches are built), GPU."""
    alone = _draw_faces(0, 12, warm_up=2)
    yield Measurement(f"faces drawn, {RESOLUTION} px, one thread", alone, "faces/s")
    workers = machine()["cores"]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        # The first round pays for starting the processes, the second one counts.
        for pictures in (2, 16):
            start = time.perf_counter()
            list(pool.map(_draw_faces, range(workers), [pictures] * workers))
            elapsed = time.perf_counter() - start
    rate = workers * 16 / elapsed
    yield Measurement(
        f"faces drawn, {RESOLUTION} px, {workers} processes",
        rate,
        "faces/s",
        goal=40 if workers == 2 else None,
        note=f"{rate / alone:.2f}x one thread",
    )
    if torch.cuda.is_available():
        on_gpu = _draw_faces(0, 1024, warm_up=128, device="cuda")
        yield Measurement(
            f"faces drawn, {RESOLUTION} px, GPU", on_gpu, "faces/s", note=f"{on_gpu / alone:.0f}x one thread"
        )


def imports() -> Iterator[Measurement]:
    """What `import refbfr_core` adds to `import torch`, each in a fresh process."""
    alone = _import_seconds("import torch")
    yield Measurement("import torch", alone, "s")
    added = _import_seconds("import refbfr_core", before="import torch")
    yield Measurement("import refbfr_core adds", added, "s", goal=0.5, note=f"{added / alone:.1%} of torch's own")
    pipelines = _import_seconds("import refbfr_core.pipelines.refldm", before="import torch")
    yield Measurement("import of the pipelines adds", pipelines, "s", note="mostly diffusers")


def degradation() -> Iterator[Measurement]:
    """Ruining pictures, one thread."""
    from refbfr_core.degradation import Degradation

    for preset, side in (("toy-refldm-severe", 128), ("refldm-severe", 512)):
        pictures = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(0))
        ruin = Degradation.preset(preset)
        elapsed = seconds(lambda ruin=ruin, pictures=pictures: ruin(pictures, seed=0))
        yield Measurement(f"degradation {preset}, {side} px", len(pictures) / elapsed, "images/s")


def networks() -> Iterator[Measurement]:
    """Single calls of the toy networks: a denoising step by number of references, the first stage, the embedder."""
    from refbfr_core.models import ReferenceCache, decode_latents, denoise, encode_latents

    pipe, origin = _pipeline()
    unet, vq, device = pipe.unet, pipe.vq, pipe.device
    generator = torch.Generator().manual_seed(0)
    size, channels = unet.config.sample_size, unet.config.out_channels
    for batch in (1, 8):
        sample = torch.randn(batch, 2 * channels, size, size, generator=generator).to(device)
        plain = None
        for references in (0, 1, 4):
            cache, note = None, origin
            if references:
                latents = torch.randn(batch, references, channels, size, size, generator=generator).to(device)
                cache = ReferenceCache.build(unet, latents)
            elapsed = seconds(lambda cache=cache, sample=sample: denoise(unet, sample, 500, cache))
            plain = plain or elapsed
            if references:
                note = f"{elapsed / plain:.2f}x no references"
            yield Measurement(f"denoising step, batch {batch}, {references} references", 1e3 * elapsed, "ms", note=note)
    pictures = torch.rand(8, 3, pipe.resolution, pipe.resolution, generator=generator).to(device)
    latents = encode_latents(vq, pictures)
    for name, work in (
        ("first stage encodes", lambda: encode_latents(vq, pictures)),
        ("first stage decodes", lambda: decode_latents(vq, latents)),
    ):
        yield Measurement(f"{name}, batch 8", len(pictures) / seconds(work), "images/s", note=origin)
    judge, origin = _judge(device)
    yield Measurement(
        "judge embeds, batch 8", len(pictures) / seconds(lambda: judge.embed(2 * pictures - 1)), "images/s", note=origin
    )


def restoration() -> Iterator[Measurement]:
    """Whole restorations at the pipeline's default settings."""
    pipe, origin = _pipeline()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    side = pipe.resolution
    for batch in (1, 4):
        lq = torch.rand(batch, 3, side, side, generator=generator).to(pipe.device)
        references = torch.rand(batch, 4, 3, side, side, generator=generator).to(pipe.device)
        plain = seconds(lambda lq=lq: pipe(lq), repeats=2) / batch
        yield Measurement(f"restoration, batch {batch}, no references", plain, "s/face", note=origin)
        guided = seconds(lambda lq=lq, references=references: pipe(lq, references), repeats=2) / batch
        steps = pipe.config.num_inference_steps
        note = f"{steps} steps, guidance, {guided / plain:.2f}x none"
        yield Measurement(f"restoration, batch {batch}, 4 references", guided, "s/face", note=note)


BENCHMARKS: dict[str, Callable[[], Iterator[Measurement]]] = {
    "imports": imports,
    "faces": faces,
    "degradation": degradation,
    "networks": networks,
    "restoration": restoration,
}


def main() -> None:
    """Runs the chosen benchmarks, prints their lines as they come and writes them all as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="also write machine and measurements to this file")
    parser.add_argument("--threads", type=int, help="torch threads for networks (default: torch's own choice)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    described = machine()
    for key, value in described.items():
        print(f"{key:<16} {value}")
    print()
    measurements = []
    for name in chosen.only:
        with torch.no_grad():
            for measurement in BENCHMARKS[name]():
                print(measurement, flush=True)
                measurements.append(asdict(measurement))
    if chosen.json:
        from refbfr_core.files import write_text

        write_text(chosen.json, json.dumps({"machine": described, "measurements": measurements}, indent=2) + "\n")


def _draw_faces(seed: int, pictures: int, warm_up: int = 1, device: str = "cpu") -> float:
    """Faces a second of this process in a single thread; at module level, so that worker processes find it."""
    from refbfr_core.faces import ToyFaces

    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        drawer = ToyFaces(RESOLUTION)
        people = drawer.identities(max(pictures, warm_up), seed=seed)
        views = drawer.views(people, 1, seed=seed)
        drawer.render(people[:warm_up], views[:warm_up], device)
        _synchronise()
        start = time.perf_counter()
        drawer.render(people[:pictures], views[:pictures], device)
        _synchronise()
        return pictures / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def _import_seconds(statement: str, before: str = "pass", repeats: int = 3) -> float:
    """The best of a few fresh processes; the best, because other work on the machine can only add to it."""
    code = f"import time; {before}; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
    return min(float(run.stdout.split()[-1]) for run in runs)


def _pipeline() -> tuple[Any, str]:
    """The shipped pipeline, or the recipes' networks at random weights, which are as fast."""
    from refbfr_core import load_pipeline
    from refbfr_core.diffusion import refldm_schedule, to_scheduler
    from refbfr_core.errors import WeightsError
    from refbfr_core.models import pixels_per_latent
    from refbfr_core.pipelines import RefLDMPipeline
    from refbfr_core.training.first_stage import make_first_stage
    from refbfr_core.training.recipes import recipe
    from refbfr_core.training.refldm import make_denoiser

    try:
        return load_pipeline("refldm"), ""
    except WeightsError:
        stage, base = recipe("refldm-vq"), recipe("refldm-base")
        vq = make_first_stage(stage).eval()
        patch = base.patch_size
        size = RESOLUTION // pixels_per_latent(vq) // patch
        unet = make_denoiser(base, stage.latent_channels * patch**2, size).eval()
        scheduler = to_scheduler(refldm_schedule(), prediction_type=base.prediction)
        pipe = RefLDMPipeline(vq, unet, scheduler, patch_size=patch)
        return pipe.to("cuda" if torch.cuda.is_available() else "cpu"), "random weights"


def _judge(device: torch.device) -> tuple[Any, str]:
    from refbfr_core.errors import WeightsError
    from refbfr_core.models import FaceEmbedder
    from refbfr_core.weights import load_network

    try:
        return load_network("judge", device=device), ""
    except WeightsError:
        return FaceEmbedder().to(device).eval(), "random weights"


def _processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
