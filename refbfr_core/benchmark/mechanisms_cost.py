"""What references cost, mechanism by mechanism: seconds and memory as their number grows (ReF-LDM, Table 2, right).

Costs do not depend on the values of weights, so everything here runs on random ones, at the size of the toy networks or
at the published one (118 M parameters, 64 x 64 latents).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import torch
from diffusers import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from refbfr_core.benchmark.recording import record
from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.mechanisms import MECHANISMS, ReferenceMechanism, make_mechanism

SIZES = ("toy", "paper")
RECORDINGS = MappingProxyType({"toy": "mechanisms-cost-toy", "paper": "mechanisms-cost-full"})
CLOCKS = MappingProxyType({"wall": time.perf_counter, "cpu": time.process_time})
ATTENTION = MappingProxyType(
    {
        "fused": (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
        "scores": (SDPBackend.MATH,),
    }
)
"""Which of PyTorch's ways to compute attention are allowed."""
MIB = 2**20
_TIMESTEP = 500


def measure_costs(
    counts: Sequence[int] = (0, 1, 3, 5, 8),
    size: str = "toy",
    *,
    steps: int | None = None,
    mechanisms: Sequence[str] = tuple(MECHANISMS),
    repeats: int = 3,
    clock: str = "wall",
    attention: str = "fused",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Time and memory of restoring one image, one network call a step, for every mechanism and number of references.

    Nothing is sampled to the end: references are prepared once and one step is run, which is what a restoration of S
    steps repeats; ``seconds_per_image`` = prepare + S * step. Guidance, which calls the network with twice as many
    rows, and the first stage, which is the same for all, are left out.

    Args:
        counts: numbers of references. "none" runs for 0 only, everything else for all.
        size: "toy", or "paper" for the published network (half a gigabyte of random weights, seconds a call on a CPU).
        steps: S; default 10 for the toy size and 100, as in the paper's evaluation, for the published one.
        repeats: calls that are timed; the fastest counts, because other work on the machine can only slow one down.
            The first is the one whose memory is watched.
        clock: "wall", or "cpu" for the processor time of this process: on a busy machine, and with one thread, that is
            about the time that a machine with nothing else to do would need.
        attention: "fused" never holds a whole matrix of attention scores; "scores" does, like the code of the paper's
            time. Sequences of many references then decide the memory.
        device: default: the first GPU, else the CPU.

    Returns:
        One row a mechanism and count: `prepare_seconds`, `step_seconds`, `seconds_per_image`; `weights_mib`;
        `context_mib`, what is kept for the steps; `working_mib`, the most that was in use beyond weights and inputs
        while preparing and running a step, the context included; `peak_mib`, weights and working memory together.

    Raises:
        UnknownNameError: an unknown size or mechanism. ConfigError: numbers below what makes sense.
    """
    for name in mechanisms:
        if name not in MECHANISMS:
            raise unknown_name("reference mechanism", name, MECHANISMS)
    if repeats < 1 or not counts or min(counts) < 0:
        raise ConfigError(
            f"repeats={repeats}, counts={tuple(counts)}; expected at least one repeat and counts of 0 or more."
        )
    if clock not in CLOCKS:
        raise unknown_name("clock", clock, CLOCKS)
    if attention not in ATTENTION:
        raise unknown_name("kind of attention", attention, ATTENTION)
    place = pick_device(device)
    if clock == "cpu" and (place.type != "cpu" or torch.get_num_threads() != 1):
        raise ConfigError(
            f"processor time says nothing about {torch.get_num_threads()} threads on {place}; use clock='wall', or one "
            "thread on the CPU (OMP_NUM_THREADS=1)."
        )
    unet = random_network(size).to(place)
    steps = {"toy": 10, "paper": 100}[size] if steps is None else steps
    pairs = [(name, count) for name in mechanisms for count in (counts if name != "none" else [0])]
    rows, made = [], None
    for name, count in tqdm(pairs, desc=f"costs, {size} size", disable=not progress):
        if made is None or made.name != name:
            made = make_mechanism(name, unet, max_references=max(1, *counts)).eval()
        with sdpa_kernel(list(ATTENTION[attention])):
            measured = _measure(made, count, repeats, place, clock)
        total = measured["prepare_seconds"] + steps * measured["step_seconds"]
        about = {"size": size, "steps": steps, "clock": clock, "attention": attention}
        rows.append({"mechanism": name, "references": count, **about, **measured, "seconds_per_image": total})
    return pd.DataFrame(rows)


def random_network(size: str) -> UNet2DModel:
    """A denoiser of the size of the trained arms ("toy") or of the published one ("paper"), with random weights."""
    if size not in SIZES:
        raise unknown_name("network size", size, SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if size == "toy":
            from refbfr_core.training.recipes import recipe
            from refbfr_core.training.refldm import make_denoiser

            made = make_denoiser(recipe("refldm-plain"), channels=16, size=16)
        else:
            made = UNet2DModel(
                sample_size=64,
                in_channels=16,
                out_channels=8,
                block_out_channels=(160, 320, 320, 640),
                layers_per_block=2,
                down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
                up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"),
                attention_head_dim=32,
                norm_num_groups=32,
                norm_eps=1e-5,
                freq_shift=0,
                flip_sin_to_cos=True,
            )
    return made.eval().requires_grad_(False)


def record_costs(costs: pd.DataFrame, command: str, folder: str | Path | None = None) -> Path:
    """Keep measured costs as the recording "mechanisms-cost-full" (published size) or "mechanisms-cost-toy".

    Raises:
        ConfigError: rows of several sizes or none.
    """
    sizes = set(costs["size"]) if len(costs) else set()
    if len(sizes) != 1:
        raise ConfigError(f"costs of the sizes {sorted(sizes)} came; record those of one size at a time.")
    size = sizes.pop()
    settings = {
        "size": size,
        "steps": int(costs.steps.iloc[0]),
        "threads": torch.get_num_threads(),
        "clock": costs.clock.iloc[0],
        "seconds_per_image": "prepare_seconds + steps * step_seconds; nothing was sampled to the end",
    }
    return record(RECORDINGS[size], costs, {"command": command, "settings": settings}, folder)


class Memory(NamedTuple):
    """What `peak_memory` found, in bytes beyond those allocated before; `kept` is what `result` still holds."""

    result: Any
    peak: int
    kept: int


def peak_memory(function: Callable[[], Any], device: str | torch.device = "cpu") -> Memory:
    """Call ``function()``; how much memory it needs at the highest moment, and how much stays in use after its return.

    On a GPU both are read from PyTorch's allocator. On the CPU its profiler writes down every allocation and release of
    tensor memory, and the running sum of that record is followed to its highest point; scratch memory that libraries
    take from the system by themselves is not in it.
    """
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
        before = torch.cuda.memory_allocated(place)
        torch.cuda.reset_peak_memory_stats(place)
        result = function()
        torch.cuda.synchronize(place)
        peak, after = torch.cuda.max_memory_allocated(place), torch.cuda.memory_allocated(place)
        return Memory(result, peak - before, after - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or every call prints two lines on the error stream
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    level = peak = 0
    for change in _memory_changes(profile):
        level += change
        peak = max(peak, level)
    return Memory(result, peak, level)


def _memory_changes(profile: torch.profiler.profile) -> list[int]:
    """Bytes taken (positive) and given back (negative) on the CPU, in the order in which it happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]


@torch.inference_mode()
def _measure(made: ReferenceMechanism, count: int, repeats: int, place: torch.device, clock: str) -> dict[str, Any]:
    channels, side = made.unet.config.out_channels, made.unet.config.sample_size
    generator = torch.Generator().manual_seed(count)
    sample = torch.randn(1, 2 * channels, side, side, generator=generator).to(place)
    references = torch.randn(1, count, channels, side, side, generator=generator).to(place)

    watch = _Stopwatch(place, clock)
    # The memory runs come first: they also are the warm-up of the others, whose times are shorter where that matters.
    context, first, kept = peak_memory(watch("prepare", lambda: made.prepare(references)), place)
    _, second, _ = peak_memory(watch("step", lambda: made(sample, _TIMESTEP, context)), place)
    for _ in range(repeats - 1):
        watch("prepare", lambda: made.prepare(references))()
        watch("step", lambda: made(sample, _TIMESTEP, context))()
    working, prepare, step = max(first, kept + second), watch.best["prepare"], watch.best["step"]
    weights = sum(weight.numel() * weight.element_size() for weight in made.parameters())
    return {
        "prepare_seconds": prepare,
        "step_seconds": step,
        "weights_mib": weights / MIB,
        "context_mib": kept / MIB,
        "working_mib": working / MIB,
        "peak_mib": (weights + working) / MIB,
    }


class _Stopwatch:
    """Times calls by name and keeps the shortest."""

    def __init__(self, place: torch.device, clock: str) -> None:
        self.place, self.now = place, CLOCKS[clock]
        self.best: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[[], Any]) -> Callable[[], Any]:
        """`function`, timed whenever it is called."""

        def timed() -> Any:
            self._wait()
            start = self.now()
            result = function()
            self._wait()
            self.best[name] = min(self.now() - start, self.best.get(name, float("inf")))
            return result

        return timed

    def _wait(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
