"""How fast LD-BFR restores a drawn face on this CPU: `python benchmarks/ldbfr_speed.py [--threads 1 2]`.

With the shipped networks at 128 px, for every number of threads, in one run and with interleaved repeats, each for one
face:

* stage 1: E_LQ, code look-up, DCAM and the condition VQGAN's decoder, what the method restores without diffusion.
* whole: a call of the pipeline at its defaults, stage 1 included.
* denoiser, injected denoiser: one call of the latent UNet without and with f_HQ.
* decoder: the output VQGAN's decoder with its codebook.

Ratios are medians of pairs measured in turn. Two bounds are printed with what was measured: stage 1 under 0.1 s, the
whole method under 5 s. Then whole restorations beside other methods of the toy profile, and a batch against as many
single ones. These are measurements, not tests. The clock is the processor time of this process with one thread and the
time on the wall with more; whole restorations beside others are always timed on the wall.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from pdgrad_speed import case, markdown, restoration_rows
from refldm_speed import CLOCKS, interleaved
from torch import Tensor

from refbfr_core.models import decode_latents
from refbfr_core.models.injected_unet import denoise_injected
from refbfr_core.pipelines import LDBFRPipeline

BESIDE = ("ldbfr", "pdgrad", "refldm")
BOUNDS = {"stage 1": 0.1, "whole": 5.0}
"""Most seconds that a face of 128 px may take on two cores."""
RATIOS = (("whole", "stage 1"), ("injected denoiser", "denoiser"), ("stage 1", "injected denoiser"))


def works(pipe: LDBFRPipeline, lq: Tensor) -> dict[str, Callable[[], Any]]:
    """The pieces of one restoration of `lq` (1, 3, H, W) by name, as the module describes them."""
    made = pipe.features(lq)
    side = pipe.unet.config.sample_size
    z = torch.randn(1, pipe.unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500)

    def quietly(work: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(work)

    return {
        "stage 1": lambda: pipe.stage_one(pipe.features(lq)),
        "whole": lambda: pipe(lq, seed=0),
        "denoiser": quietly(lambda: denoise_injected(pipe.unet, z, t, None, None)),
        "injected denoiser": quietly(lambda: denoise_injected(pipe.unet, z, t, pipe.injection, made.restored)),
        "decoder": quietly(lambda: decode_latents(pipe.vqo, z)),
    }


def face_rows(
    pipe: LDBFRPipeline, lq: Tensor, threads: Sequence[int], repeats: int, clock: str | None
) -> Iterator[dict[str, Any]]:
    """One row for each number of threads: seconds of the pieces, and ratios."""
    for number in threads:
        with torch_threads(number):
            own = clock or ("cpu" if number == 1 else "wall")
            timings = interleaved(works(pipe, lq), repeats, own)
        row: dict[str, Any] = {"threads": number, "clock": own, "steps": pipe.config.num_inference_steps}
        row |= {f"{name} [s]": timing.median for name, timing in timings.items()}
        for name, bare in RATIOS:
            middle, least, most = timings[bare].faster_than(timings[name])
            key = f"{name} / {bare}"
            row |= {key: middle, f"{key} min": least, f"{key} max": most}
        yield row


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Torch with `number` threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bounds(row: Mapping[str, Any]) -> list[str]:
    """A line for each bound: what was measured, and whether it is kept."""
    return [
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}: {name} {row[f'{name} [s]']:.3g} s, bound "
        f"{limit:g} s, {'kept' if row[f'{name} [s]'] < limit else 'NOT kept'}"
        for name, limit in BOUNDS.items()
    ]


def main() -> None:
    """Measures, prints the tables, and keeps the rows as recordings if asked to."""
    from refbfr_core import load_pipeline
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads, one row each")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, help="default: cpu with one thread, wall with more")
    parser.add_argument("--beside", nargs="*", choices=BESIDE, default=list(BESIDE), metavar="NAME")
    parser.add_argument("--together", type=int, default=8, help="faces of the batch that is compared with single ones")
    parser.add_argument("--restorations", type=int, default=1, help="repeats of whole restorations beside others")
    parser.add_argument("--record", metavar="NAME", help="keep rows as NAME (pieces) and NAME-restorations")
    parser.add_argument("--folder", help="folder of the recordings (default: the package's own)")
    chosen = parser.parse_args()
    described = machine() | {"load_average": round(os.getloadavg()[0], 2)}
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + "\n")
    pipe, start = load_pipeline("ldbfr", device="cpu"), time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    lq, _ = case(1, pipe.resolution)
    pieces = pd.DataFrame(face_rows(pipe, lq, chosen.threads, chosen.repeats, chosen.clock))
    print(f"One face of {pipe.resolution} px\n\n{markdown(pieces)}\n")
    for row in pieces.to_dict("records"):
        print("\n".join(bounds(row)))
    with torch_threads(max(chosen.threads)):
        whole = pd.DataFrame(restoration_rows(chosen.beside, chosen.together, chosen.restorations))
    if len(whole):
        print(f"\nWhole restorations, seconds on the wall, threads: {max(chosen.threads)}\n\n{markdown(whole)}")
    print(f"\n{time.perf_counter() - start:.0f} s in all; load average now {os.getloadavg()[0]:.2f}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/ldbfr_speed.py", *sys.argv[1:]]), "settings": settings}
        about |= {"measured_on": described}
        record(chosen.record, pieces, about, chosen.folder)
        if len(whole):
            record(f"{chosen.record}-restorations", whole, about, chosen.folder)


if __name__ == "__main__":
    main()
