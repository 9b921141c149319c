"""What one sampling step knows, and the checks every step passes: used by guidance, traces and the loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, RefbfrError

__all__ = ["NonFiniteError", "Predict", "StepState", "check_finite", "check_output"]

Predict = Callable[[Tensor, int], Tensor]
"""A network with its conditions already bound: (x_t of shape (B, ...), timestep) -> prediction of the same shape."""


class NonFiniteError(RefbfrError, FloatingPointError):
    """A network or a guidance hook returned NaN or infinity; sampling stopped at that step."""


@dataclass(frozen=True, eq=False)
class StepState:
    """One step of a sampling run. Tensors are the loop's own: read them, do not write into them.

    Guidance sees it before the step is taken (``x_prev`` is None), callbacks and traces after.
    """

    index: int
    """0 for the first step executed"""
    total: int
    """number of steps in this run"""
    t: int
    """training timestep the network was called with"""
    t_prev: int | None
    """timestep this step goes to; None for the last"""
    x_t: Tensor
    """(B, ...) the sample before the step"""
    eps: Tensor
    """(B, ...) noise estimate"""
    x0: Tensor
    """(B, ...) estimate of the clean sample"""
    variance: float | Tensor
    """variance of the fresh noise of this step (Sigma in PDGrad eq. 9); 0 for deterministic samplers"""
    x_prev: Tensor | None = None
    """(B, ...) the sample after the step"""
    stats: dict[str, Tensor] | None = None
    """numbers a guidance hook reported about this step: name -> 0-dim or (B,)"""

    def __repr__(self) -> str:
        step = f"step {self.index + 1} of {self.total}, t={self.t} -> {self.t_prev}"
        return f"StepState({step}, x_t {tuple(self.x_t.shape)})"


def check_output(output: object, x_t: Tensor, index: int, total: int, t: int) -> Tensor:
    """Return a network's prediction in the dtype of x_t, or raise if it cannot be one.

    Raises:
        ConfigError: not a tensor, or of another shape than x_t.
        NonFiniteError: NaN or infinity in it.
    """
    where = f"step {index + 1} of {total} (timestep {t})"
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the network returned {type(output).__name__} at {where}; expected a tensor. "
            "For a diffusers network return its .sample."
        )
    if output.shape != x_t.shape:
        raise ConfigError(
            f"the network returned shape {tuple(output.shape)} at {where} for a sample of shape {tuple(x_t.shape)}; "
            "expected equal shapes. Split off learned variances and merge guidance branches inside predict."
        )
    check_finite(output, "the network's output", index, total, t)
    return output.to(x_t.dtype)


def check_finite(x: Tensor, what: str, index: int, total: int, t: int) -> None:
    """Raise NonFiniteError, naming the step and the images of the batch, if x holds NaN or infinity."""
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return
    bad = (~finite.flatten(1).all(dim=1)).nonzero().flatten().tolist()
    raise NonFiniteError(
        f"{what} holds NaN or infinity at step {index + 1} of {total} (timestep {t}), for image(s) {bad} of a batch of "
        f"{x.shape[0]}. Run in float32, and check the weights and the inputs of these images."
    )
