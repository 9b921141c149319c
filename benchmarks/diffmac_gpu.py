"""How fast DiffMAC restores 512 px on this machine's GPU: `python benchmarks/diffmac_gpu.py`.

Both stages with networks of the published size (Stable Diffusion 2.1-base's denoiser and autoencoder, modulations,
bottleneck, IResNet-50) at random weights, which are as fast as trained ones: 50 DDPM steps a stage as published, and
fewer, one picture and eight at a time, in float32 and bfloat16. It prints one Markdown table: seconds a picture for
Stage I, for Stage II with the bottleneck, and for both; milliseconds a denoising call, with and without modulation;
peak memory; and the time the paper states (Table 6, RTX 3090), which is another machine's.

The denoiser is held once, since both stages modulate the same one; where each stage trains its own, memory for a second
one is needed and the time stays the same. Without a GPU it refuses; `--tiny` runs the same code with small networks on
the CPU, which only shows that it works.
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
import torch
from pdgrad_gpu import timed

from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.pipelines import DiffMACPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Measured:
    """One row. `seconds` a picture for both stages (median, and the spread of the repeats), `stage_one` and `stage_two`
    (with the bottleneck) by themselves; `call_ms` one modulated denoising call on the whole batch, `plain_ms` one
    without modulation; `peak_gib` of GPU memory, weights included."""

    resolution: int
    precision: str
    steps: int
    pictures: int
    seconds: float
    seconds_min: float
    seconds_max: float
    stage_one: float
    stage_two: float
    call_ms: float
    plain_ms: float
    peak_gib: float


def full_size_pipeline() -> DiffMACPipeline:
    """DiffMAC's networks in the published configuration at random weights."""
    from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
    from refbfr_core.models import IResNet
    from refbfr_core.models.diffmac_full_size import full_size_networks

    return DiffMACPipeline(
        **vars(full_size_networks("cpu")), scheduler=to_ddpm_scheduler(make_schedule("diffmac")),
        embedder=IResNet().eval(),
    )  # fmt: skip


def tiny_pipeline() -> DiffMACPipeline:
    """The same classes at 32 px, to try this script on a CPU."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
    from refbfr_core.models import FaceEmbedder
    from refbfr_core.models.modulation import FeatureModulation
    from refbfr_core.models.prompt import PromptEmbedding
    from refbfr_core.models.second_stage import SecondStage

    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=1, norm_num_groups=4, use_linear_projection=True,
    )  # fmt: skip
    modulation = FeatureModulation.for_network(unet, (8, 8, 8, 8))
    names = ("condition_channels", "channels", "levels", "pyramid")
    second = SecondStage(
        {name: modulation.config[name] for name in names}, {"statistics_side": 16, "identity_dim": 16}
    )
    embedder = FaceEmbedder((8, 8), (1, 1), embedding_dim=16, input_size=32)
    parts = (vae, unet, modulation, second, PromptEmbedding(1, 8))
    return DiffMACPipeline(
        *(part.eval() for part in parts), to_ddpm_scheduler(make_schedule("diffmac")), embedder.eval()
    )


def measure(
    pipe: DiffMACPipeline, device: torch.device, steps: Sequence[int], batches: Sequence[int], repeats: int
) -> Iterator[Measured]:
    """All combinations of steps and batch size, in the pipeline's precision."""
    pipe.set_progress_bar_config(disable=True)
    on_gpu, side = device.type == "cuda", pipe.resolution
    for batch in batches:
        lq = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
        plain, modulated = _calls(pipe, batch, device)
        # The first calls choose kernels; a short run is enough for that.
        pipe(lq, num_inference_steps=min(2, *steps), seed=0, rows_per_call=batch)
        timed(plain, device)
        calls = [median(timed(work, device) for _ in range(max(3, repeats))) for work in (modulated, plain)]
        for number in steps:
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            options = {"num_inference_steps": number, "seed": 0, "rows_per_call": batch}
            whole = [timed(lambda: pipe(lq, **options), device) / batch for _ in range(repeats)]  # noqa: B023
            peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan")
            first = pipe.stage_one(lq, **options)
            one = [timed(lambda: pipe.stage_one(lq, **options), device) / batch for _ in range(repeats)]  # noqa: B023
            two = [timed(lambda: pipe(lq, first=first, **options), device) / batch for _ in range(repeats)]  # noqa: B023
            yield Measured(
                side, str(pipe.unet.dtype).removeprefix("torch."), number, batch, median(whole), min(whole), max(whole),
                median(one), median(two), *(1000 * seconds for seconds in calls), peak,
            )  # fmt: skip


def _calls(pipe: DiffMACPipeline, batch: int, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One denoising call without and with modulation."""
    side, dtype = pipe.unet.config.sample_size, pipe.unet.dtype
    generator = torch.Generator().manual_seed(0)
    z, s = (torch.randn(batch, 4, side, side, generator=generator).to(device, dtype) for _ in range(2))
    t, prompt = torch.tensor(500, device=device), pipe.prompt().to(device, dtype)

    @torch.no_grad()
    def call(modulation: Any, condition: Any) -> Any:
        return denoise_modulated(pipe.unet, z, t, prompt, modulation, condition)

    return lambda: call(None, None), lambda: call(pipe.modulation, s)


def markdown(rows: Sequence[Measured]) -> str:
    """The measurements as a Markdown table."""
    heads = ("px", "precision", "steps a stage", "pictures at a time", "seconds a picture (spread)", "Stage I",
             "Stage II", "ms a call, modulated", "ms a call, plain", "peak memory")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|--:|---|{'--:|' * (len(heads) - 2)}"]
    for r in rows:
        memory = "" if r.peak_gib != r.peak_gib else f"{r.peak_gib:.1f} GiB"
        seconds = f"{r.seconds:.3g} ({r.seconds_min:.3g} to {r.seconds_max:.3g})"
        numbers = (f"{value:.3g}" for value in (r.stage_one, r.stage_two, r.call_ms, r.plain_ms))
        cells = (r.resolution, r.precision, r.steps, r.pictures, seconds, *numbers, memory)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def beside_paper(rows: Sequence[Measured]) -> str:
    """The paper's time, and the measured one that it can be read beside: 50 steps a stage, a picture at a time."""
    from refbfr_core.benchmark import published_value

    printed = published_value("DiffMAC", "Table 6", "DiffMAC", "inference time")
    found = [f"{r.seconds:.3g} s in {r.precision}" for r in rows if (r.resolution, r.steps, r.pictures) == (512, 50, 1)]
    here = ", ".join(found) or "not measured"
    return f"published: {printed:g} s on an RTX 3090, two passes of 50 steps; here: {here}"


def main() -> None:
    """Measures, prints the table with the machine's name, and keeps it as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 25, 10], help="steps of each stage")
    parser.add_argument("--pictures", nargs="+", type=int, default=[1, 8], help="pictures at a time")
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
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
        print("Small networks on the CPU: this only shows that the script works and says nothing about a GPU.")
    rows = []
    for precision in chosen.precision:
        pipe = (tiny_pipeline if chosen.tiny else full_size_pipeline)().to(device, DTYPES[precision])
        for row in measure(pipe, device, chosen.steps, chosen.pictures, chosen.repeats):
            rows.append(row)
            print(f"  {precision}, {row.steps} steps, {row.pictures} at a time: {row.seconds:.3g} s", flush=True)
        del pipe
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"\nrandom weights\n\n{markdown(rows)}\n\n{beside_paper(rows)}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/diffmac_gpu.py", *sys.argv[1:]]), "settings": settings}
        record(chosen.record, pd.DataFrame(map(asdict, rows)), about, chosen.folder)


if __name__ == "__main__":
    main()
