"""A tiny table for tests: pictures of coloured noise, and methods that do little, break, or take their time."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.benchmark.tables import Arm, TableCase, TableDataset, TableItem, run_table
from refbfr_core.benchmark.tables.store import TableStore
from refbfr_core.errors import DiskFullError, ImageFileError

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


def fill_the_disk(methods: dict[str, Method], after: int) -> None:
    """From call number `after` on no file may grow beyond 64 bytes, as if there were no space."""

    def change(made: Tensor, names: list[str]) -> Tensor:
        if sum(each.calls for each in methods.values()) > after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        return made

    methods["Blend"].change = change


def whole_run(out: Path, pause: float = 0.0, full_after: int | None = None) -> None:
    """The tiny table with 24 rows, in the folder `out`."""
    methods = restorers(pause)
    if full_after is not None:
        fill_the_disk(methods, full_after)
    run_table([dataset(count=8)], arms(), METRICS, out=out, restorers=methods, progress=False)


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a process of its own and return its number; imports need not be done again."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except DiskFullError as error:
            print(error, flush=True)
        finally:
            os._exit(status)
    return child


def kill_and_resume(out: Path, seed: int) -> list[int]:
    """Kill a run at three random moments, let it finish, and do another one in one go; rows after each kill."""
    draws, seen = random.Random(seed), []
    store = out / "killed" / "store"
    for _ in range(3):
        before = len(list(store.glob("part-*"))) if store.is_dir() else 0
        child = in_child(lambda: whole_run(out / "killed", pause=0.1))
        while not (store.is_dir() and len(list(store.glob("part-*"))) > before):
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            raise RuntimeError("the run was finished before it could be killed; give it more rows.")
        seen.append(len(TableStore(out / "killed").rows))
    for name in ("killed", "whole"):
        os.waitpid(in_child(lambda name=name: whole_run(out / name)), 0)
    return seen


def fill_and_resume(out: Path) -> list[int]:
    """Run into a full disk, then go on with space; exit status, rows after it, unfinished files, exit status."""
    full = os.waitstatus_to_exitcode(os.waitpid(in_child(lambda: whole_run(out / "full", full_after=5)), 0)[1])
    rows, half = len(TableStore(out / "full").rows), len(list((out / "full" / "store").glob(".*")))
    return [full, rows, half, os.waitstatus_to_exitcode(os.waitpid(in_child(lambda: whole_run(out / "full")), 0)[1])]


if __name__ == "__main__":
    # Children inherit what is loaded here. One thread: a pool of them would not survive the fork.
    torch.set_num_threads(1)
    run_table([dataset(count=1)], arms(), METRICS, restorers=restorers(), progress=False)
    print(json.dumps({"killed": kill_and_resume(Path(sys.argv[1]), 5), "full": fill_and_resume(Path(sys.argv[1]))}))
