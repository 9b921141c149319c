"""How fast PDGrad restores pictures of 512 px on this machine's GPU: `python benchmarks/pdgrad_gpu.py [--record NAME]`.

Runs the pipeline with networks of the published size at random weights (the 160 M denoiser of DifFace's release,
IResNet-50, VGG16 with LPIPS's channel weights), one reference, all 700 steps below tau and respaced to 250 and 100
steps of the whole process (175 and 70 below tau), one picture and eight at a time, float32. The coarse picture is
given, so that no restorer is timed. Prints a Markdown table: seconds a picture, milliseconds a step, of them in the
denoiser, and peak memory.

Without a GPU it refuses; `--tiny` runs the same code with tiny networks on the CPU, which only shows that it works.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch

from refbfr_core.pipelines import PDGradPipeline

TAU = 700


@dataclass(frozen=True)
class Measured:
    """One row. `steps` of the whole process, `executed` of them below tau; `seconds` a picture (median, and the spread
    of the repeats); `step_ms` of the whole batch and `unet_ms` of it in the denoiser; `peak_gib` of GPU memory, weights
    included."""

    steps: int
    executed: int
    pictures: int
    seconds: float
    seconds_min: float
    seconds_max: float
    step_ms: float
    unet_ms: float
    peak_gib: float


def full_size_pipeline() -> PDGradPipeline:
    """Networks of the published size at random weights; as fast as the published ones."""
    import lpips

    from refbfr_core.models import IResNet, LPIPSFeatures
    from refbfr_core.weights.published_adm import DIFFACE_UNET, read_adm
    from refbfr_core.weights.published_sample import sample_adm

    with warnings.catch_warnings():
        # lpips still names torchvision's old keyword.
        warnings.filterwarnings("ignore", module="torchvision")
        trunk = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    return _pipeline(read_adm(sample_adm(DIFFACE_UNET)).network, IResNet().eval(), LPIPSFeatures(trunk).eval())


def tiny_pipeline() -> PDGradPipeline:
    """The same classes of pipeline and denoiser at 32 px, to try this script on a CPU."""
    from refbfr_core.models import FaceEmbedder, PerceptualFeatures
    from refbfr_core.models.adm_unet import ADMUNet

    unet = ADMUNet(32, (8, 16), (1, 1), (1,), head_width=8, groups=4).eval()
    embedder = FaceEmbedder((8, 8, 8, 8), (1, 1, 1, 1), embedding_dim=16, input_size=64).eval()
    return _pipeline(unet, embedder, PerceptualFeatures((4, 4, 8, 8, 8), first_stride=1).eval())


def measure(
    pipe: PDGradPipeline, device: torch.device, steps: Sequence[int], batches: Sequence[int], repeats: int
) -> Iterator[Measured]:
    """All combinations of respacing and batch size."""
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    side, on_gpu = pipe.resolution, device.type == "cuda"
    for batch in batches:
        generator = torch.Generator().manual_seed(0)
        lq = torch.rand(batch, 3, side, side, generator=generator).to(device)
        references = torch.rand(batch, 1, 3, side, side, generator=generator).to(device)

        def restore(number: int, lq: Any = lq, references: Any = references) -> int:
            out = pipe(lq, references, coarse=lq, num_inference_steps=number, seed=0, rows_per_call=len(lq))
            return len(out.settings.timesteps)

        def denoise(lq: Any = lq) -> None:
            with torch.no_grad():
                pipe.unet(lq, torch.tensor(500, device=device))

        restore(min(10, *steps))
        denoise()
        unet = median(timed(denoise, device) for _ in range(3))
        for number in steps:
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            executed: list[int] = []
            taken = [timed(lambda: executed.append(restore(number)), device) for _ in range(repeats)]  # noqa: B023
            peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else float("nan")
            each = [seconds / batch for seconds in taken]
            step = 1000 * median(taken) / executed[0]
            row = (number, executed[0], batch, median(each), min(each), max(each), step, 1000 * unet, peak)
            yield Measured(*row)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the work is done, on the device too."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def batch_shares(rows: Sequence[Measured]) -> list[str]:
    """What a batch costs in units of single restorations, one line for each respacing."""
    alone = {row.steps: row.seconds for row in rows if row.pictures == 1}
    return [
        f"{row.executed} steps: {row.pictures} pictures together cost "
        f"{row.pictures * row.seconds / alone[row.steps]:.2f} single ones"
        for row in rows
        if row.pictures > 1 and row.steps in alone
    ]


def markdown(rows: Sequence[Measured]) -> str:
    """The measurements as a Markdown table."""
    heads = ("steps below tau", "of", "pictures at a time", "seconds a picture (spread)", "ms a step", "ms denoiser")
    lines = [f"| {' | '.join((*heads, 'peak memory'))} |", "|--:|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        memory = "" if r.peak_gib != r.peak_gib else f"{r.peak_gib:.1f} GiB"
        seconds = f"{r.seconds:.3g} ({r.seconds_min:.3g} to {r.seconds_max:.3g})"
        cells = (r.executed, r.steps, r.pictures, seconds, f"{r.step_ms:.3g}", f"{r.unet_ms:.3g}", memory)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table with the machine's name, and keeps it as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, help="of the whole process (default: 1000 250 100)")
    parser.add_argument("--pictures", nargs="+", type=int, default=[1, 8], help="pictures at a time")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU, to try this script")
    parser.add_argument("--record", metavar="NAME", help="keep the rows as this recording of the package")
    parser.add_argument("--folder", help="folder of the recording (default: the package's own)")
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; run this on a machine with one, or try the script with --tiny on the CPU.")
    chosen.steps = chosen.steps or ([20, 10] if chosen.tiny else [1000, 250, 100])
    device = torch.device("cpu" if chosen.tiny else "cuda")
    described = machine()
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + f"; torch: {torch.__version__}")
    if chosen.tiny:
        print("Tiny networks on the CPU: this only shows that the script works; its numbers say nothing about a GPU.")
    rows = []
    pipe = tiny_pipeline() if chosen.tiny else full_size_pipeline()
    for row in measure(pipe, device, chosen.steps, chosen.pictures, chosen.repeats):
        rows.append(row)
        print(f"  {row.executed} steps, {row.pictures} at a time: {row.seconds:.3g} s a picture", flush=True)
    print(f"\n{pipe.resolution} px, tau = {TAU}, float32\n\n{markdown(rows)}\n")
    print("\n".join(batch_shares(rows)))
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/pdgrad_gpu.py", *sys.argv[1:]]), "settings": settings}
        record(chosen.record, pd.DataFrame(map(asdict, rows)), about, chosen.folder)


def _pipeline(unet: torch.nn.Module, embedder: torch.nn.Module, perceptual: torch.nn.Module) -> PDGradPipeline:
    from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler

    scheduler = to_ddpm_scheduler(make_schedule("pdgrad"), variance_type="learned_range", clip_sample=True)
    return PDGradPipeline(unet, scheduler, embedder, perceptual, None, start=TAU)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
