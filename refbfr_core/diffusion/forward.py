"""The forward process and the conversions between what networks predict.

All functions take one timestep for the whole batch (an int) or one a sample (a (B,) integer tensor), are
differentiable, and return the dtype of their first tensor. The maths inside runs in float32 or wider: the factors
span four orders of magnitude and half precision would lose x_0 at large t.

With a = alpha_bar_t:

    x_t = sqrt(a) x_0 + sqrt(1 - a) eps          forward process (Ho et al. 2020, eq. 4)
    v   = sqrt(a) eps - sqrt(1 - a) x_0          velocity (Salimans and Ho 2022, app. D)
"""

from __future__ import annotations

import torch
from torch import Tensor

from refbfr_core.diffusion.schedules import Schedule
from refbfr_core.errors import ConfigError, unknown_name

__all__ = [
    "PREDICTION_TYPES",
    "add_noise",
    "eps_and_x0",
    "predict_eps",
    "predict_v",
    "predict_x0",
    "v_to_eps",
    "v_to_x0",
]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
"""What a network may output, in diffusers' words: the noise, the clean sample x_0, the velocity v."""


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """Noise a clean sample to timestep t in one jump: x_t = sqrt(a) x_0 + sqrt(1 - a) eps.

    Args:
        x0: (B, ...) clean picture or latent.
        noise: the same shape, standard normal.
        t: timestep(s), int or (B,).
        schedule: the process.

    Raises:
        ConfigError: shapes that differ, or timesteps out of range.
    """
    signal, sigma = _factors(x0, noise, t, schedule, "x0", "noise")
    return (signal * widen(x0) + sigma * widen(noise)).to(x0.dtype)


def predict_x0(x_t: Tensor, eps: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The clean sample that a noise estimate implies: x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a).

    (PDGrad eq. 4, DiffMAC eq. 5, DDIM eq. 9.) Not clipped. Arguments and errors as ``add_noise``.
    """
    signal, sigma = _factors(x_t, eps, t, schedule, "x_t", "eps")
    return ((widen(x_t) - sigma * widen(eps)) / signal).to(x_t.dtype)


def predict_eps(x_t: Tensor, x0: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The noise that a clean estimate implies: eps = (x_t - sqrt(a) x_0) / sqrt(1 - a); inverse of ``predict_x0``."""
    signal, sigma = _factors(x_t, x0, t, schedule, "x_t", "x0")
    return ((widen(x_t) - signal * widen(x0)) / sigma).to(x_t.dtype)


def predict_v(x0: Tensor, eps: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The velocity v = sqrt(a) eps - sqrt(1 - a) x_0, the training target of v-prediction networks."""
    signal, sigma = _factors(x0, eps, t, schedule, "x0", "eps")
    return (signal * widen(eps) - sigma * widen(x0)).to(x0.dtype)


def v_to_x0(x_t: Tensor, v: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v."""
    signal, sigma = _factors(x_t, v, t, schedule, "x_t", "v")
    return (signal * widen(x_t) - sigma * widen(v)).to(x_t.dtype)


def v_to_eps(x_t: Tensor, v: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """eps = sqrt(a) v + sqrt(1 - a) x_t."""
    signal, sigma = _factors(x_t, v, t, schedule, "x_t", "v")
    return (signal * widen(v) + sigma * widen(x_t)).to(x_t.dtype)


def eps_and_x0(
    output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, prediction: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    """Read a network output of any prediction type as the pair (eps, x_0).

    Args:
        output: (B, ...) what the network returned for x_t.
        prediction: one of ``PREDICTION_TYPES``.

    Raises:
        UnknownNameError: another prediction type.
        ConfigError: shapes that differ, or timesteps out of range.
    """
    if prediction == "epsilon":
        return output, predict_x0(x_t, output, t, schedule)
    if prediction == "sample":
        return predict_eps(x_t, output, t, schedule), output
    if prediction == "v_prediction":
        return v_to_eps(x_t, output, t, schedule), v_to_x0(x_t, output, t, schedule)
    raise unknown_name("prediction type", prediction, PREDICTION_TYPES)


def widen(x: Tensor) -> Tensor:
    """x in float32 or wider. Half precision would round every product on the way; callers restore it at the end."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _factors(
    first: Tensor, second: Tensor, t: int | Tensor, schedule: Schedule, first_name: str, second_name: str
) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), after checking that the two tensors belong together."""
    if first.shape != second.shape:
        raise ConfigError(
            f"{first_name} has shape {tuple(first.shape)} but {second_name} has {tuple(second.shape)}; expected equal "
            "shapes (broadcasting would silently share one sample's noise). Draw or compute one for each sample."
        )
    return (
        schedule.coefficients(schedule.sqrt_alphas_cumprod, t, first),
        schedule.coefficients(schedule.sqrt_one_minus_alphas_cumprod, t, first),
    )
