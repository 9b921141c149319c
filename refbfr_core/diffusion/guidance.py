"""Steering a sampler: classifier-free guidance, and the hook through which any other guidance enters.

Classifier-free guidance mixes two predictions of the network and so lives inside ``predict``. Everything else (a loss
on the estimate of x_0, PDGrad's gradients) is a *guidance hook*: a function that sees a ``StepState`` before the step
is taken and returns a ``Correction`` or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from refbfr_core.diffusion.forward import predict_eps, predict_x0
from refbfr_core.diffusion.schedules import Schedule
from refbfr_core.diffusion.state import Predict, StepState, check_finite
from refbfr_core.errors import ConfigError

__all__ = [
    "Correction",
    "Guidance",
    "apply_correction",
    "apply_draw_shift",
    "classifier_free_guidance",
    "guided_predict",
]


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """eps_u + s (eps_c - eps_u) (Ho and Salimans 2022, eq. 6, with s = 1 + w).

    Args:
        uncond: (B, ...) prediction without the condition. For ReF-LDM: with null references, all-zero latents.
        cond: (B, ...) prediction with it.
        scale: s; 0 ignores the condition, 1 is plain conditional sampling, above 1 exaggerates (ReF-LDM: 1.5).

    Raises:
        ConfigError: shapes that differ.
    """
    if uncond.shape != cond.shape:
        raise ConfigError(
            f"the unconditional prediction has shape {tuple(uncond.shape)}, the conditional one {tuple(cond.shape)}; "
            "expected equal shapes."
        )
    return uncond + scale * (cond - uncond)


def guided_predict(
    conditional: Predict, unconditional: Predict, scale: float, *, both: Predict | None = None
) -> Predict:
    """A ``predict`` with classifier-free guidance. With a scale of exactly 1 only ``conditional`` is ever called.

    Args:
        conditional: predicts with the condition.
        unconditional: predicts without it.
        scale: guidance scale.
        both: optional faster way: one network call that returns (2B, ...), the unconditional half first. Used instead
            of the two others when the scale is not 1.
    """
    if scale == 1.0:
        return conditional

    def predict(x_t: Tensor, t: int) -> Tensor:
        if both is None:
            return classifier_free_guidance(unconditional(x_t, t), conditional(x_t, t), scale)
        pair = both(x_t, t)
        if pair.shape[0] != 2 * x_t.shape[0]:
            raise ConfigError(
                f"both() returned {pair.shape[0]} rows for a batch of {x_t.shape[0]}; expected "
                f"{2 * x_t.shape[0]}: the unconditional predictions, then the conditional ones."
            )
        return classifier_free_guidance(*pair.chunk(2), scale)

    return predict


@dataclass(frozen=True, eq=False)
class Correction:
    """What a guidance hook wants changed in a step. All tensors have the shape of the sample.

    Args:
        eps: replaces the noise estimate (x0 follows from it).
        x0: replaces the estimate of the clean sample (eps follows from it). Not together with ``eps``.
        mean_shift: added to the sample the step arrives at, i.e. to the mean of its Gaussian: PDGrad eq. 9 passes
            ``-s * state.variance * gradient``.
        draw_shift: function of the sample before the step and the sample just drawn; what it returns is added to the
            latter. For shifts that are measured against the step itself (``norm_ratio``). Called once, without
            gradients.
        stats: numbers about this step for the trace: name -> 0-dim or (B,) tensor.

    Raises:
        ConfigError: eps and x0 together.
    """

    eps: Tensor | None = None
    x0: Tensor | None = None
    mean_shift: Tensor | None = None
    draw_shift: Callable[[Tensor, Tensor], Tensor] | None = None
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.eps is not None and self.x0 is not None:
            raise ConfigError("a correction replaces eps or x0, not both: each follows from the other. Pass one.")


class Guidance(Protocol):
    """A guidance hook. Called once a step, without gradients: a hook that needs them opens ``torch.enable_grad()``
    around a detached copy of ``state.x0``. It must treat images independently of each other (per-image sums, no means
    over the batch), or a picture would depend on its neighbours."""

    def __call__(self, state: StepState) -> Correction | None:
        """Return the change for this step, or None for no change."""


def apply_correction(state: StepState, correction: Correction | None, schedule: Schedule) -> StepState:
    """The state with a correction's eps or x0 put in (the mean shift is added by the sampler).

    Raises:
        ConfigError: a correction of another type, or with a tensor of another shape than the sample.
        NonFiniteError: NaN or infinity in a correction.
    """
    if correction is None:
        return state
    if not isinstance(correction, Correction):
        raise ConfigError(f"the guidance hook returned {type(correction).__name__}; expected a Correction or None.")
    for name in ("eps", "x0", "mean_shift"):
        value = getattr(correction, name)
        if value is None:
            continue
        if value.shape != state.x_t.shape:
            raise ConfigError(
                f"the guidance hook returned {name} of shape {tuple(value.shape)} for a sample of shape "
                f"{tuple(state.x_t.shape)}; expected equal shapes."
            )
        check_finite(value, f"the guidance hook's {name}", state.index, state.total, state.t)
    batch = state.x_t.shape[0]
    for name, value in correction.stats.items():
        if tuple(value.shape) not in ((), (batch,)):
            raise ConfigError(
                f"the guidance statistic {name!r} has shape {tuple(value.shape)}; expected one number, or one "
                f"an image: shape ({batch},)."
            )
    state = replace(state, stats=dict(correction.stats))
    if correction.eps is not None:
        eps = correction.eps.to(state.x_t.dtype)
        return replace(state, eps=eps, x0=predict_x0(state.x_t, eps, state.t, schedule))
    if correction.x0 is not None:
        x0 = correction.x0.to(state.x_t.dtype)
        return replace(state, x0=x0, eps=predict_eps(state.x_t, x0, state.t, schedule))
    return state


def apply_draw_shift(state: StepState, correction: Correction | None, x_prev: Tensor) -> Tensor:
    """The drawn sample with a correction's ``draw_shift`` added, if it has one.

    Raises:
        ConfigError: the function returned another shape than the sample's.
    """
    if correction is None or correction.draw_shift is None:
        return x_prev
    shift = correction.draw_shift(state.x_t, x_prev)
    if shift.shape != x_prev.shape:
        raise ConfigError(
            f"the guidance hook's draw_shift returned shape {tuple(shift.shape)} for a sample of shape "
            f"{tuple(x_prev.shape)}; expected equal shapes."
        )
    return x_prev + shift.to(x_prev.dtype)
