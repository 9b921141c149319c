"""How fast DiffMAC restores a drawn face on this CPU: `python benchmarks/diffmac_speed.py [--threads 1 2]`.

With the shipped networks at 128 px, for every number of threads, in one run and with interleaved repeats, each for one
face:

* stage I: X_D1 from the ruined picture, all steps. bottleneck: encoder, embedder and Z for a given X_D1.
* stage II: from X_D1 to the result, bottleneck included. whole: a call of the pipeline at its defaults.
* slider: what moving lambda costs live: stage II from a given X_D1 in few steps (`--slider-steps`), not in all.
* denoiser, modulated denoiser: one call of the latent UNet without and with its encoder modulated.
* decoder: the autoencoder's.

Ratios are medians of pairs measured in turn. Two bounds are printed with what was measured: the whole method under
20 s, the slider under 3 s. Then whole restorations beside other methods of the toy profile, and a batch against as
many single ones. These are measurements, not tests. The clock is the processor time of this process with one thread
and the time on the wall with more; whole restorations beside others are always timed on the wall.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from ldbfr_speed import torch_threads
from pdgrad_speed import case, markdown, restoration_rows
from refldm_speed import CLOCKS, interleaved
from torch import Tensor

from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.moments import decode_latent
from refbfr_core.pipelines import DiffMACPipeline

BESIDE = ("diffmac", "ldbfr", "pdgrad", "refldm")
SLIDER_STEPS = 5
BOUNDS = {"whole": 20.0, "slider": 3.0}
"""Most seconds that a face of 128 px may take on two cores."""
RATIOS = (("modulated denoiser", "denoiser"), ("whole", "stage I"), ("stage II", "stage I"), ("stage II", "slider"))


def works(pipe: DiffMACPipeline, lq: Tensor, slider_steps: int = SLIDER_STEPS) -> dict[str, Callable[[], Any]]:
    """The pieces of one restoration of `lq` (1, 3, H, W) by name, as the module describes them."""
    first = pipe.stage_one(lq, seed=0)
    side, prompt = pipe.unet.config.sample_size, pipe.prompt()
    generator = torch.Generator().manual_seed(0)
    z, s = (torch.randn(1, pipe.unet.config.in_channels, side, side, generator=generator) for _ in range(2))
    t = torch.tensor(500)

    def quietly(work: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(work)

    return {
        "stage I": lambda: pipe.stage_one(lq, seed=0),
        "bottleneck": lambda: pipe.bottleneck(first, seed=0),
        "stage II": lambda: pipe(lq, first=first, seed=0),
        "whole": lambda: pipe(lq, seed=0),
        "slider": lambda: pipe(lq, first=first, share=0.5, num_inference_steps=slider_steps, seed=0),
        "denoiser": quietly(lambda: denoise_modulated(pipe.unet, z, t, prompt, None, None)),
        "modulated denoiser": quietly(lambda: denoise_modulated(pipe.unet, z, t, prompt, pipe.modulation, s)),
        "decoder": quietly(lambda: decode_latent(pipe.vae, z)),
    }


def face_rows(
    pipe: DiffMACPipeline, lq: Tensor, threads: Sequence[int], repeats: int, clock: str | None, slider_steps: int
) -> Iterator[dict[str, Any]]:
    """One row for each number of threads: seconds of the pieces, and ratios."""
    for number in threads:
        with torch_threads(number):
            own = clock or ("cpu" if number == 1 else "wall")
            timings = interleaved(works(pipe, lq, slider_steps), repeats, own)
        row: dict[str, Any] = {"threads": number, "clock": own, "steps": pipe.config.num_inference_steps}
        row |= {"slider steps": slider_steps} | {f"{name} [s]": timing.median for name, timing in timings.items()}
        for name, bare in RATIOS:
            middle, least, most = timings[bare].faster_than(timings[name])
            key = f"{name} / {bare}"
            row |= {key: middle, f"{key} min": least, f"{key} max": most}
        yield row


def bounds(row: Mapping[str, Any]) -> list[str]:
    """A line for each bound: what was measured, in how many steps, and whether it is kept."""
    steps = {"whole": f"2 x {row['steps']} steps", "slider": f"stage II in {row['slider steps']} steps"}
    return [
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}: {name} ({steps[name]}) {row[f'{name} [s]']:.3g} "
        f"s, bound {limit:g} s, {'kept' if row[f'{name} [s]'] < limit else 'NOT kept'}"
        for name, limit in BOUNDS.items()
    ]


def main() -> None:
    """Measures, prints the tables, and keeps the rows as recordings if asked to."""
    from refbfr_core import load_pipeline
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads, one row each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, help="default: cpu with one thread, wall with more")
    parser.add_argument("--slider-steps", type=int, default=SLIDER_STEPS)
    parser.add_argument("--beside", nargs="*", choices=BESIDE, default=list(BESIDE), metavar="NAME")
    parser.add_argument("--together", type=int, default=8, help="faces of the batch that is compared with single ones")
    parser.add_argument("--restorations", type=int, default=1, help="repeats of whole restorations beside others")
    parser.add_argument("--record", metavar="NAME", help="keep rows as NAME (pieces) and NAME-restorations")
    parser.add_argument("--folder", help="folder of the recordings (default: the package's own)")
    chosen = parser.parse_args()
    described = machine() | {"load_average": round(os.getloadavg()[0], 2)}
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + "\n")
    pipe, start = load_pipeline("diffmac", device="cpu"), time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    lq, _ = case(1, pipe.resolution)
    rows = face_rows(pipe, lq, chosen.threads, chosen.repeats, chosen.clock, chosen.slider_steps)
    pieces = pd.DataFrame(rows)
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
        about = {"command": " ".join(["python benchmarks/diffmac_speed.py", *sys.argv[1:]]), "settings": settings}
        about |= {"measured_on": described}
        record(chosen.record, pieces, about, chosen.folder)
        if len(whole):
            record(f"{chosen.record}-restorations", whole, about, chosen.folder)


if __name__ == "__main__":
    main()
