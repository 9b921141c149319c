"""What PDGrad's guidance costs beside the UNet on this CPU: `python benchmarks/pdgrad_speed.py [--threads N]`.

With the shipped networks at 128 px, in one run and with interleaved repeats, for batches of several sizes, with a
reference and without:

* unet: one call of the denoiser.
* hook: the whole guidance of a step: features, losses, gradients, surgery, statistics.
* one backward: the bare networks, one forward and one backward of the sum of all losses. It gives one gradient.
* each backward: the bare networks, one forward and one backward for every gradient that the surgery needs, through the
  part of the networks that the gradient depends on. Dot products and lengths are taken at the picture, so that these
  are four with a reference and two without; less work cannot give them.
* stacked: the same with the two gradients of a level in one backward (`is_grads_batched`), which was tried and is not
  what the hook does.

Then whole restorations of one drawn face at the pipelines' defaults, and a batch against as many single ones. Ratios
are medians of pairs measured in turn. These are measurements, not tests. The clock is the processor time of this
process with one thread and the time on the wall with more; whole restorations are always timed on the wall.
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
from refldm_speed import CLOCKS, Timing, interleaved
from torch import Tensor

from refbfr_core.diffusion import StepState
from refbfr_core.errors import RefbfrError
from refbfr_core.pipelines.pivot_guidance import PivotGuidance, PivotSettings
from refbfr_core.pipelines.pivot_losses import FaceFeatures, Target, face_features, mean_target

PIPELINES = ("pdgrad", "pgdiff", "difface")
GOAL = 1.25
"""Most that a hook may cost, in units of the bare networks."""


class Step:
    """One guided step of `batch` pictures with its parts as separate pieces of work."""

    def __init__(self, networks: Mapping[str, torch.nn.Module], batch: int, reference: bool, side: int) -> None:
        self.unet, self.embedder, self.perceptual = (networks[name] for name in ("unet", "embedder", "perceptual"))
        draws = torch.Generator().manual_seed(0)
        rough = torch.rand(3 * batch, 3, side // 8, side // 8, generator=draws) * 2 - 1
        smooth = torch.nn.functional.interpolate(rough, (side, side), mode="bilinear")
        self.x0, y_c, y_r = smooth.split(batch)
        here = torch.ones(batch, dtype=torch.bool)
        self.coarse = mean_target([(y_c, here)], self.embedder, self.perceptual, batch)
        self.reference = mean_target([(y_r, here)], self.embedder, self.perceptual, batch) if reference else None
        settings = PivotSettings(gain=float(side**2))
        self.guidance = PivotGuidance(
            self.embedder, self.perceptual, self.coarse, self.reference, settings, rows=batch
        )
        variance = torch.full_like(self.x0, 0.01)
        self.state = StepState(0, 1, 500, 480, self.x0, torch.zeros_like(self.x0), self.x0, variance)
        # What enters the backward passes; a bare network gets it for nothing.
        with torch.no_grad():
            features = face_features(self.x0, self.embedder, self.perceptual)
        self.low = [_low_cotangents(features, target) for target in self.targets]
        self.high = [-target.features.high for target in self.targets]

    @property
    def targets(self) -> list[Target]:
        """What the losses compare with: one target, or two."""
        return [self.coarse] if self.reference is None else [self.coarse, self.reference]

    def works(self) -> dict[str, Callable[[], Any]]:
        """The pieces by name, as the module describes them."""
        return {
            "unet": self.denoise,
            "hook": lambda: self.guidance(self.state),
            "one backward": self.one_backward,
            "each backward": self.each_backward,
            "stacked": self.stacked,
        }

    @torch.no_grad()
    def denoise(self) -> Tensor:
        """(B, 6, H, W), the denoiser's output."""
        return self.unet(self.x0, torch.tensor(500)).sample

    def one_backward(self) -> Tensor:
        """The gradient of the sum of all losses, (B, 3, H, W)."""
        x, features = self._forward()
        low = [sum(parts) for parts in zip(*self.low, strict=True)]
        return torch.autograd.grad([*_low(features), features.high], x, [*low, sum(self.high)])[0]

    def each_backward(self) -> tuple[Tensor, Tensor]:
        """The gradients of both levels, (1 or 2, B, 3, H, W) each."""
        x, features = self._forward()
        low = [torch.autograd.grad(_low(features), x, each, retain_graph=True)[0] for each in self.low]
        high = [torch.autograd.grad(features.high, x, each, retain_graph=True)[0] for each in self.high]
        return torch.stack(low), torch.stack(high)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """`each_backward` with one batched backward a level."""
        x, features = self._forward()
        low = [torch.stack(parts) for parts in zip(*self.low, strict=True)]
        both = torch.autograd.grad(_low(features), x, low, retain_graph=True, is_grads_batched=True)[0]
        return both, torch.autograd.grad(features.high, x, torch.stack(self.high), is_grads_batched=True)[0]

    def _forward(self) -> tuple[Tensor, FaceFeatures]:
        x = self.x0.clone().requires_grad_(True)
        with torch.enable_grad():
            return x, face_features(x, self.embedder, self.perceptual)


def shipped_networks() -> dict[str, torch.nn.Module]:
    """The toy profile's denoiser, embedder and perceptual network."""
    from refbfr_core.weights import load_network

    names = {"unet": "pdgrad-unet", "embedder": "guide", "perceptual": "perceptual"}
    return {part: load_network(name, device="cpu").requires_grad_(False) for part, name in names.items()}


def step_rows(
    networks: Mapping[str, torch.nn.Module], batches: Sequence[int], side: int, repeats: int, clock: str
) -> Iterator[dict[str, Any]]:
    """One row for each batch size, with a reference and without: seconds of the pieces and ratios of the hook."""
    for batch in batches:
        for reference in (True, False):
            timings = interleaved(Step(networks, batch, reference, side).works(), repeats, clock)
            row: dict[str, Any] = {"batch": batch, "reference": reference}
            row |= {f"{name} [s]": timing.median for name, timing in timings.items()}
            for name in ("one backward", "each backward", "unet"):
                row |= _ratio(f"hook / {name}", timings["hook"], timings[name])
            row |= _ratio("stacked / each backward", timings["stacked"], timings["each backward"])
            yield row


def case(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Ruined drawn faces (count, 3, side, side) and one photo of each person (count, 1, 3, side, side)."""
    from refbfr_core.degradation import Degradation
    from refbfr_core.faces import ToyFaces

    faces = ToyFaces(resolution=side)
    people = faces.identities(count, seed=0, split="test")
    photos = faces.render(people, faces.views(people, 2, seed=0)).images
    return Degradation.preset("toy-pdgrad")(photos[:, 0], seed=0)[0], photos[:, 1:]


def restoration_rows(names: Sequence[str], batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Wall seconds of one face at a pipeline's defaults, and of `batch` together and one after the other.

    A pipeline whose weights are not there is named and left out.
    """
    from refbfr_core import load_pipeline

    for name in names:
        try:
            pipe = load_pipeline(name, device="cpu")
        except RefbfrError as error:
            print(f"  {name} is left out: {error}")
            continue
        pipe.set_progress_bar_config(disable=True)
        lq, references = case(max(batch, 1), pipe.resolution)
        run = _Restoring(pipe, lq, references)
        works: dict[str, Callable[[], Any]] = {"one": lambda run=run: run(0, 1)}
        if batch > 1:
            works["together"] = lambda run=run: run(0, batch, rows_per_call=batch)
            works["singly"] = lambda run=run: [run(i, i + 1) for i in range(batch)]
        timings = interleaved(works, repeats, "wall")
        row: dict[str, Any] = {"pipeline": name, "steps": run.steps, "one face [s]": timings["one"].median}
        if batch > 1:
            row |= {"batch": batch} | {f"{how} [s]": timings[how].median for how in ("together", "singly")}
            row |= _ratio("together / singly", timings["together"], timings["singly"])
        yield row


def markdown(table: pd.DataFrame) -> str:
    """A table of rows as Markdown; a ratio's smallest and largest pair in brackets behind it."""
    shown = [name for name in table.columns if not name.endswith((" min", " max"))]

    def cell(row: Mapping[str, Any], name: str) -> str:
        value = row[name]
        if isinstance(value, bool):
            return "yes" if value else "no"
        if not isinstance(value, float):
            return str(value)
        spread = f" ({row[name + ' min']:.2f} to {row[name + ' max']:.2f})" if f"{name} min" in row else ""
        return f"{value:.3g}{spread}" if "[s]" in name else f"{value:.2f}{spread}"

    lines = [f"| {' | '.join(shown)} |", f"|{'---|' * len(shown)}"]
    for row in table.to_dict("records"):
        lines.append(f"| {' | '.join(cell(row, name) for name in shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the tables, and keeps the steps' rows as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--clock", choices=CLOCKS, help="default: cpu with one thread, wall with more")
    parser.add_argument("--pipelines", nargs="*", choices=PIPELINES, default=list(PIPELINES), metavar="NAME")
    parser.add_argument("--together", type=int, default=8, help="faces of the batch that is compared with single ones")
    parser.add_argument("--restorations", type=int, default=1, help="repeats of whole restorations")
    parser.add_argument("--record", metavar="NAME", help="keep rows as NAME (steps) and NAME-restorations")
    parser.add_argument("--folder", help="folder of the recordings (default: the package's own)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.clock = chosen.clock or ("cpu" if torch.get_num_threads() == 1 else "wall")
    described = machine() | {"threads": torch.get_num_threads(), "load_average": round(os.getloadavg()[0], 2)}
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value) + f"; clock: {chosen.clock}\n")
    networks, start = shipped_networks(), time.perf_counter()
    side = networks["unet"].config.sample_size
    steps = pd.DataFrame(step_rows(networks, chosen.batches, side, chosen.repeats, chosen.clock))
    print(f"A guided step\n\n{markdown(steps)}\n")
    for name in ("one backward", "each backward"):
        worst = steps[f"hook / {name}"].max()
        print(f"Goal: {GOAL} times the bare networks. Largest ratio to forward and {name}: {worst:.2f}")
    whole = pd.DataFrame(restoration_rows(chosen.pipelines, chosen.together, chosen.restorations))
    if len(whole):
        print(f"\nWhole restorations, seconds on the wall\n\n{markdown(whole)}")
    print(f"\n{time.perf_counter() - start:.0f} s in all; load average now {os.getloadavg()[0]:.2f}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/pdgrad_speed.py", *sys.argv[1:]]), "settings": settings}
        about |= {"measured_on": described}
        record(chosen.record, steps, about, chosen.folder)
        if len(whole):
            record(f"{chosen.record}-restorations", whole, about, chosen.folder)


class _Restoring:
    """Restores some of the faces, and remembers how many steps it took; DifFace looks at no reference."""

    def __init__(self, pipe: Any, lq: Tensor, references: Tensor) -> None:
        self.pipe, self.lq, self.references, self.steps = pipe, lq, references, 0

    def __call__(self, first: int, last: int, **options: Any) -> Tensor:
        out = self.pipe(self.lq[first:last], self.references[first:last], seed=first, **options)
        self.steps = len(out.settings.timesteps)
        return out.images


def _low(features: FaceFeatures) -> list[Tensor]:
    return [*features.low, *features.vgg]


def _low_cotangents(features: FaceFeatures, target: Target) -> list[Tensor]:
    """The gradient of L_low (eq. 12) with respect to its features: -t, and 2 (v - t) / (h w)."""
    arc = [-each for each in target.features.low]
    pairs = zip(features.vgg, target.features.vgg, strict=True)
    return [*arc, *(2 * (mine - theirs) / mine[0, 0].numel() for mine, theirs in pairs)]


def _ratio(name: str, work: Timing, bare: Timing) -> dict[str, float]:
    middle, least, most = bare.faster_than(work)
    return {name: middle, f"{name} min": least, f"{name} max": most}


if __name__ == "__main__":
    main()
