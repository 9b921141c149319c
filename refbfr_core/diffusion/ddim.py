"""One step of the two samplers, short enough to read: DDIM and DDPM (ancestral).

Both go from x_t to x_{t_prev} with two numbers, a = alpha_bar_t and a_prev = alpha_bar_{t_prev}, so they work on any
list of timesteps; ``t_prev`` is the next element of that list, and None after the last one. They equal diffusers'
``DDIMScheduler`` and ``DDPMScheduler`` (tested), and the loops in ``sampling`` are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refbfr_core.diffusion.forward import predict_eps, predict_x0, widen
from refbfr_core.diffusion.schedules import Schedule
from refbfr_core.diffusion.spacing import previous_timesteps
from refbfr_core.errors import ConfigError, unknown_name

__all__ = [
    "Posterior",
    "Step",
    "alpha_bar_pairs",
    "clip_estimate",
    "ddim_sigma",
    "ddim_step",
    "ddim_update",
    "ddpm_step",
    "ddpm_update",
    "posterior",
]


class Step(NamedTuple):
    """Result of one denoising step, both (B, ...)."""

    x_prev: Tensor
    """the sample at ``t_prev``, input of the next step"""
    x0: Tensor
    """the estimate of the clean sample that this step used"""


def ddim_step(
    x_t: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int | None,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    clip_x0: float | None = None,
) -> Step:
    """One DDIM step (Song et al. 2021, eq. 12).

    Args:
        x_t: (B, ...) sample at timestep t.
        eps: the noise estimated in it, same shape.
        t: timestep, 0 ... T-1.
        t_prev: the timestep to go to (below t), or None for the last step, which lands on ``alpha_bar[0]`` or on 1
            (``Schedule.set_alpha_to_one``).
        schedule: the process.
        eta: 0 is deterministic, 1 has the noise of ancestral sampling.
        noise: (B, ...) standard normal; needed when eta > 0.
        clip_x0: clamp the estimate to [-clip_x0, clip_x0] and re-derive eps from it (guided diffusion's way, diffusers'
            ``use_clipped_model_output``); None: no clipping, as in ReF-LDM.

    Raises:
        ConfigError: shapes that differ, t_prev not below t, eta outside 0 ... 1, eta > 0 without noise.
    """
    x0 = predict_x0(x_t, eps, t, schedule)  # eq. 9: what the picture would be if eps were right
    x0, eps = clip_estimate(x_t, x0, eps, t, schedule, clip_x0)
    return Step(ddim_update(x0, eps, t, t_prev, schedule, eta=eta, noise=noise), x0)


def ddim_update(
    x0: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int | None,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Second half of ``ddim_step``: noise the estimate x0 again, less than before, mostly along the old eps."""
    _check_pair(x0, eps, "x0", "eps")
    _, a_prev = _levels(t, t_prev, schedule)
    sigma = ddim_sigma(t, t_prev, schedule, eta)  # eq. 16
    towards_x_t = math.sqrt(max(1.0 - a_prev - sigma**2, 0.0))  # "direction pointing to x_t"
    x_prev = math.sqrt(a_prev) * widen(x0) + towards_x_t * widen(eps)  # eq. 12
    if sigma > 0.0:
        x_prev = x_prev + sigma * widen(_need_noise(noise, x0, f"eta = {eta}"))
    return x_prev.to(x0.dtype)


def ddim_sigma(t: int, t_prev: int | None, schedule: Schedule, eta: float) -> float:
    """Standard deviation of the fresh noise, eta sqrt((1 - a_prev) / (1 - a)) sqrt(1 - a / a_prev) (DDIM eq. 16)."""
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(
            f"eta is {eta}; expected a value from 0 (deterministic) to 1 (the noise of ancestral sampling)."
        )
    a, a_prev = _levels(t, t_prev, schedule)
    return eta * math.sqrt((1.0 - a_prev) / (1.0 - a)) * math.sqrt(max(1.0 - a / a_prev, 0.0))


def alpha_bar_pairs(timesteps: Sequence[int], schedule: Schedule) -> list[tuple[float, float]]:
    """(a, a_prev) of every DDIM step, in order of execution; a_prev comes from the next list element.

    Raises:
        ConfigError: timesteps out of range or not descending.
    """
    return [_levels(t, t_prev, schedule) for t, t_prev in zip(timesteps, previous_timesteps(timesteps), strict=True)]


class Posterior(NamedTuple):
    """q(x_{t_prev} | x_t, x_0) = N(coef_x0 x_0 + coef_xt x_t, variance) (Ho et al. 2020, eq. 7), as plain numbers."""

    coef_x0: float
    coef_xt: float
    variance: float
    """beta tilde, the smallest variance the reverse step can have ("fixed small")"""
    beta: float
    """beta of the (possibly long) step, the largest one ("fixed large")"""


def posterior(t: int, t_prev: int | None, schedule: Schedule) -> Posterior:
    """The Gaussian an ancestral step draws from if x_0 is known (Ho et al. 2020, eq. 6 and 7).

    For a spaced list of timesteps beta is that of the respaced process, 1 - a / a_prev. After the last timestep
    a_prev is 1: the step lands on x_0 itself, without noise, whatever ``set_alpha_to_one`` says about DDIM.

    Raises:
        ConfigError: t out of range or t_prev not below t.
    """
    a, _ = _levels(t, t_prev, schedule)
    a_prev = schedule.alpha_bar(t_prev)
    beta = 1.0 - a / a_prev
    return Posterior(
        coef_x0=math.sqrt(a_prev) * beta / (1.0 - a),
        coef_xt=math.sqrt(a / a_prev) * (1.0 - a_prev) / (1.0 - a),
        variance=beta * (1.0 - a_prev) / (1.0 - a),
        beta=beta,
    )


def ddpm_step(
    x_t: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int | None,
    schedule: Schedule,
    *,
    noise: Tensor | None = None,
    variance: str | Tensor = "small",
    clip_x0: float | None = None,
) -> Step:
    """One ancestral step (Ho et al. 2020, algorithm 2): draw from N(mean, variance).

    Args:
        x_t, eps, t, t_prev, schedule, clip_x0: as for ``ddim_step``.
        noise: (B, ...) standard normal; needed for every step but the last, which adds none.
        variance: "small" (beta tilde), "large" (beta), or a tensor of variances that broadcasts to x_t, such as a
            learned one.

    Raises:
        ConfigError: shapes that differ, t_prev not below t, noise missing.
        UnknownNameError: another name for the variance.
    """
    x0 = predict_x0(x_t, eps, t, schedule)
    x0, _ = clip_estimate(x_t, x0, eps, t, schedule, clip_x0)
    return Step(ddpm_update(x_t, x0, t, t_prev, schedule, noise=noise, variance=variance), x0)


def ddpm_update(
    x_t: Tensor,
    x0: Tensor,
    t: int,
    t_prev: int | None,
    schedule: Schedule,
    *,
    noise: Tensor | None = None,
    variance: str | Tensor = "small",
    mean_shift: Tensor | None = None,
) -> Tensor:
    """Second half of ``ddpm_step``: mean from x0 and x_t, then noise; ``mean_shift`` is added to the mean."""
    _check_pair(x_t, x0, "x_t", "x0")
    q = posterior(t, t_prev, schedule)
    mean = q.coef_x0 * widen(x0) + q.coef_xt * widen(x_t)  # eq. 7
    if mean_shift is not None:
        _check_pair(x_t, mean_shift, "x_t", "mean_shift")
        mean = mean + widen(mean_shift)
    if t_prev is not None:
        spread = torch.as_tensor(step_variance(q, variance), dtype=mean.dtype, device=mean.device).sqrt()
        mean = mean + spread * widen(_need_noise(noise, x_t, "an ancestral step before the last"))
    return mean.to(x_t.dtype)


def step_variance(q: Posterior, variance: str | Tensor) -> float | Tensor:
    """The variance an ancestral step uses: q's small or large one by name, or the tensor that was given."""
    if isinstance(variance, Tensor):
        return variance
    known = {"small": q.variance, "large": q.beta}
    if variance not in known:
        raise unknown_name("variance", variance, known)
    return known[variance]


def clip_estimate(
    x_t: Tensor, x0: Tensor, eps: Tensor, t: int, schedule: Schedule, clip_x0: float | None
) -> tuple[Tensor, Tensor]:
    """Clamp x0 to [-clip_x0, clip_x0] and return it with the eps that belongs to it; None returns both unchanged."""
    if clip_x0 is None:
        return x0, eps
    if not clip_x0 > 0.0:
        raise ConfigError(f"clip_x0 is {clip_x0}; expected a positive bound (1.0 for pictures in [-1, 1]) or None.")
    x0 = x0.clamp(-clip_x0, clip_x0)
    return x0, predict_eps(x_t, x0, t, schedule)


def _levels(t: int, t_prev: int | None, schedule: Schedule) -> tuple[float, float]:
    """alpha_bar before and after a DDIM step."""
    a = schedule.alpha_bar(t)
    if t_prev is None:
        return a, schedule.ddim_final_alpha_bar()
    if t_prev >= t:
        raise ConfigError(f"the step goes from timestep {t} to {t_prev}; timesteps descend. Sort them, highest first.")
    return a, schedule.alpha_bar(t_prev)


def _check_pair(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    if first.shape != second.shape:
        raise ConfigError(
            f"{first_name} has shape {tuple(first.shape)} but {second_name} has {tuple(second.shape)}; expected equal "
            "shapes. Compute one for each sample."
        )


def _need_noise(noise: Tensor | None, like: Tensor, reason: str) -> Tensor:
    if noise is None:
        raise ConfigError(
            f"{reason} needs noise; pass noise=image_noise(generators, x_t.shape[1:]), one draw an image."
        )
    _check_pair(like, noise, "the sample", "noise")
    return noise
