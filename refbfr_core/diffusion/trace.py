"""Recording a sampling run without holding more of it than asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from refbfr_core.diffusion.state import StepState
from refbfr_core.errors import ConfigError, unknown_name

__all__ = ["Trace", "TraceStep"]

_TENSORS = ("x_t", "eps", "x0", "x_prev")


@dataclass(frozen=True, eq=False)
class TraceStep:
    """One recorded step."""

    index: int
    t: int
    t_prev: int | None
    rms: dict[str, Tensor]
    """root mean square of x_t, eps and x0, each (B,) float32 on the CPU; empty with ``norms=False``"""
    stats: dict[str, Tensor]
    """what the guidance hook reported, 0-dim or (B,), on the CPU"""
    tensors: dict[str, Tensor]
    """copies of the tensors asked for, on the CPU; empty for steps between two kept ones"""


@dataclass(eq=False)
class Trace:
    """The record of one run: numbers of every step, and tensors of the steps and kinds asked for.

    Memory: at most ``len(keep) * (steps / every + 1)`` copies of the sample in ``dtype`` (``bytes_needed`` says it
    exactly) plus a few hundred bytes a step. It is checked against ``max_bytes`` before the first network call. The
    recorded tensors are copies on the CPU: nothing keeps a network, a graph or GPU memory alive.

    Args:
        keep: which tensors, among "x_t" (sample before the step), "eps", "x0" and "x_prev" (sample after it).
        every: keep tensors of steps 0, every, 2 * every, ... and of the last step.
        norms: record the root mean square of x_t, eps and x0 at every step.
        dtype: of the copies.
        max_bytes: refuse runs that would need more (default 1 GiB).

    Raises:
        UnknownNameError: another name in ``keep``.
        ConfigError: ``every`` below 1.
    """

    keep: tuple[str, ...] = ("x0",)
    every: int = 1
    norms: bool = True
    dtype: torch.dtype = torch.float32
    max_bytes: int = 1 << 30
    steps: list[TraceStep] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.keep = (self.keep,) if isinstance(self.keep, str) else tuple(dict.fromkeys(self.keep))
        for name in self.keep:
            if name not in _TENSORS:
                raise unknown_name("tensor to trace", name, _TENSORS)
        if self.every < 1:
            raise ConfigError(f"every is {self.every}; expected 1 (all steps) or more.")

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"Trace({len(self.steps)} steps, keep={self.keep}, every={self.every}, {self.nbytes / 2**20:.1f} MiB)"

    def bytes_needed(self, shape: tuple[int, ...], total: int) -> int:
        """Bytes of tensors that a run of ``total`` steps on samples of this (B, ...) shape will hold."""
        kept = sum(self._keeps(i, total) for i in range(total))
        return kept * len(self.keep) * math.prod(shape) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of tensors held now."""
        return sum(x.numel() * x.element_size() for step in self.steps for x in step.tensors.values())

    @property
    def timesteps(self) -> list[int]:
        """Timesteps of all recorded steps, in order of execution."""
        return [step.t for step in self.steps]

    @property
    def kept_timesteps(self) -> list[int]:
        """Timesteps of the steps whose tensors are held: the first axis of ``stack``."""
        return [step.t for step in self.steps if step.tensors]

    def stack(self, name: str = "x0") -> Tensor:
        """The kept tensors of one kind, (kept steps, B, ...).

        Raises:
            UnknownNameError: a kind that this trace was not asked to keep.
            ConfigError: nothing recorded yet.
        """
        if name not in self.keep:
            raise unknown_name("kept tensor", name, self.keep)
        self._need_steps()
        return torch.stack([step.tensors[name] for step in self.steps if step.tensors])

    def rms(self, name: str = "x0") -> Tensor:
        """Root mean square of "x_t", "eps" or "x0" over all steps, (steps, B)."""
        self._need_steps()
        if name not in self.steps[0].rms:
            raise unknown_name("recorded norm", name, self.steps[0].rms)
        return torch.stack([step.rms[name] for step in self.steps])

    def begin(self, shape: tuple[int, ...], total: int) -> None:
        """Called by the samplers before the first step.

        Raises:
            ConfigError: the trace already holds a run, or this one would exceed ``max_bytes``.
        """
        if self.steps:
            raise ConfigError(
                f"this trace already holds a run of {len(self.steps)} steps. Make a new Trace() for each run."
            )
        needed = self.bytes_needed(shape, total)
        if needed > self.max_bytes:
            raise ConfigError(
                f"tracing {', '.join(self.keep)} over {total} steps of {tuple(shape)} needs {needed / 2**20:.0f} MiB, "
                f"above max_bytes = {self.max_bytes / 2**20:.0f} MiB. Raise every or max_bytes, or keep fewer kinds."
            )

    def record(self, state: StepState) -> None:
        """Called by the samplers after each step."""
        rms = {name: _rms(getattr(state, name)) for name in ("x_t", "eps", "x0")} if self.norms else {}
        tensors: dict[str, Tensor] = {}
        if self._keeps(state.index, state.total):
            tensors = {name: _copy(getattr(state, name), self.dtype) for name in self.keep}
        stats = {name: _copy(value, torch.float32) for name, value in (state.stats or {}).items()}
        self.steps.append(TraceStep(state.index, state.t, state.t_prev, rms, stats, tensors))

    def _keeps(self, index: int, total: int) -> bool:
        return bool(self.keep) and (index % self.every == 0 or index == total - 1)

    def _need_steps(self) -> None:
        if not self.steps:
            raise ConfigError("this trace is empty; pass it to a sampler as trace=... first.")


def _rms(x: Tensor) -> Tensor:
    return x.detach().float().flatten(1).square().mean(dim=1).sqrt().cpu()


def _copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    # copy=True: on the CPU, .to() alone would hand out the loop's own tensor.
    return x.detach().to(device="cpu", dtype=dtype, copy=True)
