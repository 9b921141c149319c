"""A tiny table for tests: pictures of coloured noise, and methods that do little, break, or take their time."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.benchmark.tables import Arm, TableCase, TableDataset, TableItem, run_table
from refbfr_core.errors import ImageFileError

SIDE = 32
METRICS = ("psnr", "ssim")


def pictures(index: int, references: bool = True) -> TableCase:
    """A smooth random picture, the same with noise, and references."""
    draws = torch.Generator().manual_seed(index)
    truth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=draws), SIDE, mode="bilinear")
    lq = (truth + 0.1 * torch.randn(truth.shape, generator=draws)).clamp(0, 1)
    right = torch.rand(1, 2, 3, SIDE, SIDE, generator=draws) if references else None
    return TableCase(lq, truth, right, None if right is None else right.flip(1))


def dataset(
    name: str = "noise", count: int = 6, loads: dict[int, Callable[[], TableCase]] | None = None
) -> TableDataset:
    """A dataset of `count` items; `loads` replaces how some of them are read."""

    def load(index: int) -> Callable[[], TableCase]:
        return (loads or {}).get(index, lambda: pictures(index))

    items = tuple(
        TableItem(name, f"item-{index}", f"person-{index // 2}", 100 + index, f"{index:016x}", load(index))
        for index in range(count)
    )
    return TableDataset(name, name.title(), "coloured noise", items, SIDE, True, True, count)


def corrupt() -> TableCase:
    """What loading a damaged file does."""
    raise ImageFileError("item-1.png is truncated; fetch it again.")


@dataclass
class Method:
    """Stands in for a restorer: blends noise of the seed into the picture, `change` does the rest."""

    name: str = "Blend"
    change: Callable[[Tensor, list[str]], Tensor] = lambda made, names: made
    pause: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    digest: str = "0123456789ab"
    calls: int = 0

    def __call__(self, lq: Tensor, references: Tensor | None, seeds: list[int], names: list[str]) -> Tensor:
        self.calls += 1
        time.sleep(self.pause)
        noise = torch.rand(lq.shape, generator=torch.Generator().manual_seed(seeds[0]))
        other = noise if references is None else references[:, 0]
        return self.change((0.9 * lq + 0.1 * other).clamp(0, 1), list(names))


def arms() -> tuple[Arm, ...]:
    """Two methods, one of them with references."""
    return Arm("Blend"), Arm("Blend", "right"), Arm("Other")


def restorers(pause: float = 0.0) -> dict[str, Method]:
    """Their stand-ins."""
    return {"Blend": Method(pause=pause), "Other": Method("Other", lambda made, names: 1 - made, pause)}


def main(arguments: list[str]) -> None:
    """Run the tiny table in a process that somebody may kill: OUT [--pause S] [--full-after N] [--pictures]."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--full-after", type=int, default=-1)
    chosen = parser.parse_args(arguments)
    methods = restorers(chosen.pause)

    def fill(made: Tensor, names: list[str]) -> Tensor:
        if sum(each.calls for each in methods.values()) > chosen.full_after >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # no file may grow beyond 64 bytes now
        return made

    methods["Blend"].change = fill
    run_table([dataset(count=8)], arms(), METRICS, out=chosen.out, restorers=methods, progress=False)


if __name__ == "__main__":
    main(sys.argv[1:])
