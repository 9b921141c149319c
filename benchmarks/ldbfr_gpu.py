"""How fast LD-BFR, PDGrad and ReF-LDM restore 512 px on this machine's GPU: `python benchmarks/ldbfr_gpu.py`.

Runs the three pipelines one after the other with networks of the published size at random weights, float32, one picture
and eight at a time, and prints one Markdown table: seconds a picture, milliseconds a step, and peak memory.

* LD-BFR: 274 M denoiser with injectors, both VQGANs; DDIM with 200 and 50 steps, eta 1; its stage 1 also by itself.
* PDGrad: the 160 M pixel denoiser, IResNet-50 and VGG16, one reference, 1000 and 250 steps of which 700 and 175 lie
  below tau; the coarse picture is given, so that no restorer is timed.
* ReF-LDM: the 118 M denoiser and its VQGAN, one reference, 50 steps, guidance 1.5.

Every method is on the device alone. Without a GPU it refuses; `--tiny` runs the same code with small networks on the
CPU, which only shows that it works.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pandas as pd
import pdgrad_gpu
import refldm_gpu
import torch
from pdgrad_gpu import timed
from torch import Tensor

from refbfr_core.pipelines import LDBFRPipeline

STAGE_ONE = "LD-BFR, stage 1"


@dataclass(frozen=True)
class Method:
    """A pipeline to time: how to make it, the numbers of steps to ask for, and its references a picture."""

    name: str
    make: Callable[[], Any]
    steps: tuple[int, ...]
    references: int

    def call(self, pipe: Any, lq: Tensor, references: Tensor | None, steps: int) -> int:
        """One restoration of the whole batch with full calls of the networks; how many steps it took."""
        rows, more = len(lq), {}
        if self.name == "PDGrad":
            more = {"coarse": lq}
        elif self.name == "ReF-LDM":
            rows = 2 * len(lq)  # both branches of guidance
        out = pipe(lq, references, num_inference_steps=steps, seed=0, rows_per_call=rows, **more)
        return len(out.settings.timesteps)


@dataclass(frozen=True)
class Measured:
    """One row. `steps` asked for, `executed` of them (PDGrad begins part-way; stage 1 has none); `seconds` a picture
    (median, and the spread of the repeats); `step_ms` the whole batch's time over its steps; `peak_gib` of GPU memory,
    weights included."""

    method: str
    resolution: int
    references: int
    steps: int
    executed: int
    pictures: int
    seconds: float
    seconds_min: float
    seconds_max: float
    step_ms: float
    peak_gib: float


def full_size_pipeline() -> LDBFRPipeline:
    """LD-BFR's networks in the published configuration at random weights; as fast as trained ones."""
    from refbfr_core.diffusion import make_schedule, to_scheduler
    from refbfr_core.models.ldbfr_full_size import full_size_networks

    return LDBFRPipeline(**vars(full_size_networks("cpu")), scheduler=to_scheduler(make_schedule("ldbfr")))


def tiny_pipeline() -> LDBFRPipeline:
    """The same classes at 64 px, to try this script on a CPU."""
    from diffusers import UNet2DModel, VQModel

    from refbfr_core.diffusion import make_schedule, to_scheduler
    from refbfr_core.models.injected_unet import HQInjection
    from refbfr_core.models.output_vq import OutputVQModel
    from refbfr_core.models.vq_restorer import VQRestorer

    down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
    vqc = VQModel(
        block_out_channels=(8,) * 5, down_block_types=(down,) * 5, up_block_types=(up,) * 5, latent_channels=16,
        num_vq_embeddings=32, vq_embed_dim=16, norm_num_groups=4, scaling_factor=1.0,
    )  # fmt: skip
    vqo = OutputVQModel(
        block_out_channels=(8, 8), down_block_types=(down,) * 2, up_block_types=(up,) * 2, layers_per_block=1,
        num_vq_embeddings=32, norm_num_groups=4,
    )  # fmt: skip
    unet = UNet2DModel(
        16, 3, 3, block_out_channels=(8, 8, 8), layers_per_block=1, attention_head_dim=8, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    networks = (vqc, VQRestorer.copy_of(vqc, heads=4), vqo, unet, HQInjection.for_network(unet, 16, 4))
    return LDBFRPipeline(*(each.eval() for each in networks), to_scheduler(make_schedule("ldbfr")))


FULL_SIZE = (
    Method("LD-BFR", full_size_pipeline, (200, 50), 0),
    Method("PDGrad", pdgrad_gpu.full_size_pipeline, (1000, 250), 1),
    Method("ReF-LDM", refldm_gpu.full_size_pipeline, (50,), 1),
)
TINY = (
    Method("LD-BFR", tiny_pipeline, (4, 2), 0),
    Method("PDGrad", pdgrad_gpu.tiny_pipeline, (4, 2), 1),
    Method("ReF-LDM", refldm_gpu.toy_pipeline, (2,), 1),
)


def measure(method: Method, device: torch.device, batches: Sequence[int], repeats: int) -> Iterator[Measured]:
    """All numbers of steps and batch sizes of one method; LD-BFR's stage 1 first."""
    pipe = method.make().to(device)
    pipe.set_progress_bar_config(disable=True)
    size = (3, pipe.resolution, pipe.resolution)
    for batch in batches:
        generator = torch.Generator().manual_seed(0)
        lq = torch.rand(batch, *size, generator=generator).to(device)
        references = None
        if method.references:
            references = torch.rand(batch, method.references, *size, generator=generator).to(device)
        works: list[tuple[str, int, Callable[[], int]]] = []
        if isinstance(pipe, LDBFRPipeline):
            works.append((STAGE_ONE, 0, lambda lq=lq: _stage_one(pipe, lq)))
        for steps in method.steps:
            run = lambda lq=lq, own=references, steps=steps: method.call(pipe, lq, own, steps)  # noqa: E731
            works.append((method.name, steps, run))
        # The first calls choose kernels; a short run is enough for that.
        method.call(pipe, lq, references, min(10, *method.steps))
        for name, steps, work in works:
            yield Measured(
                name, pipe.resolution, method.references, steps, **_times(work, device, batch, repeats)
            )


def markdown(rows: Sequence[Measured]) -> str:
    """The measurements as a Markdown table."""
    heads = ("method", "px", "references", "steps", "pictures at a time", "seconds a picture (spread)", "ms a step")
    lines = [f"| {' | '.join((*heads, 'peak memory'))} |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        memory = "" if r.peak_gib != r.peak_gib else f"{r.peak_gib:.1f} GiB"
        steps = "" if not r.executed else f"{r.executed}" if r.executed == r.steps else f"{r.executed} of {r.steps}"
        seconds = f"{r.seconds:.3g} ({r.seconds_min:.3g} to {r.seconds_max:.3g})"
        step = "" if not r.executed else f"{r.step_ms:.3g}"
        cells = (r.method, r.resolution, r.references, steps, r.pictures, seconds, step, memory)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table with the machine's name, and keeps it as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [method.name for method in FULL_SIZE]
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--pictures", nargs="+", type=int, default=[1, 8], help="pictures at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try this script")
    parser.add_argument("--record", metavar="NAME", help="keep the rows as this recording of the package")
    parser.add_argument("--folder", help="folder of the recording (default: the package's own)")
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; run this on a machine with one, or try the script with --tiny on the CPU.")
    device = torch.device("cpu" if chosen.tiny else "cuda")
    described = machine()
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + f"; torch: {torch.__version__}")
    if chosen.tiny:
        print(
            "Small networks of different sizes on the CPU: this only shows that the script works; its numbers compare "
            "nothing and say nothing about a GPU."
        )
    rows = []
    for method in TINY if chosen.tiny else FULL_SIZE:
        if method.name not in chosen.methods:
            continue
        for row in measure(method, device, chosen.pictures, chosen.repeats):
            rows.append(row)
            print(f"  {row.method}, {row.executed} steps, {row.pictures} at a time: {row.seconds:.3g} s", flush=True)
        # The next method shall have the memory to itself, and its own peak.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"\nfloat32, random weights\n\n{markdown(rows)}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/ldbfr_gpu.py", *sys.argv[1:]]), "settings": settings}
        record(chosen.record, pd.DataFrame(map(asdict, rows)), about, chosen.folder)


def _stage_one(pipe: LDBFRPipeline, lq: Tensor) -> int:
    made = pipe.features(lq, rows_per_call=len(lq))
    pipe.stage_one(made, rows_per_call=len(lq))
    return 0


def _times(work: Callable[[], int], device: torch.device, batch: int, repeats: int) -> dict[str, Any]:
    """The measured fields of a row."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    executed: list[int] = []
    taken = [timed(lambda: executed.append(work()), device) for _ in range(repeats)]
    each = [seconds / batch for seconds in taken]
    return {
        "executed": executed[0],
        "pictures": batch,
        "seconds": median(each),
        "seconds_min": min(each),
        "seconds_max": max(each),
        "step_ms": 1000 * median(taken) / executed[0] if executed[0] else float("nan"),
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan"),
    }


if __name__ == "__main__":
    main()
