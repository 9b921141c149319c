"""Noise schedules: how fast a clean picture drowns in noise.

A schedule is nothing but the list of variances beta_0 ... beta_{T-1}. Everything else (alpha, the running product
"alpha bar", signal-to-noise ratio) follows from it and is computed here in float64; the step functions cast to the
dtype of the picture at the last moment. Timesteps are zero-based: index t holds the noise level that a network sees
as ``timestep = t``.

The four papers use

===========  ======================================  =============================================
name         betas                                   paper
===========  ======================================  =============================================
``refldm``   square of a ramp, 0.0015 ... 0.0155     ReF-LDM (Hsiao et al., NeurIPS 2024)
``pdgrad``   linear, 1e-4 ... 0.02                   PDGrad, PGDiff, DifFace (the guided-diffusion net)
``ldbfr``    square of a ramp, 0.0015 ... 0.0195     LD-BFR (Du et al., ACM MM 2024), the FFHQ LDM
``diffmac``  square of a ramp, 0.00085 ... 0.012     DiffMAC (Gao et al., 2024), Stable Diffusion 2.1
===========  ======================================  =============================================

and ``linear`` (Ho et al. 2020, same numbers as ``pdgrad``) and ``cosine`` (Nichol and Dhariwal 2021) are there for
comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, unknown_name

__all__ = [
    "SCHEDULES",
    "Schedule",
    "cosine_betas",
    "library_keywords",
    "linear_betas",
    "make_schedule",
    "refldm_schedule",
    "respace",
    "sqrt_linear_betas",
]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of a diffusion process and what follows from them (all float64, on the CPU).

    Args:
        betas: (T,) variances, each in (0, 1). Copied and cast to float64.
        name: for printing and for error messages.
        set_alpha_to_one: where DDIM's last step lands. False: on ``alphas_cumprod[0]`` (ReF-LDM and the latent
            diffusion code base, so a trace of noise stays); True: on 1, a clean sample (guided-diffusion code base).
            The name is diffusers'. The ancestral (DDPM) sampler always ends on 1.
        library: the diffusers scheduler keywords that describe the same betas; empty means "pass the betas".

    Raises:
        ConfigError: betas that are not one-dimensional, empty, not finite, or not inside (0, 1).
    """

    betas: Tensor
    name: str = "custom"
    set_alpha_to_one: bool = False
    library: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas).detach().to(device="cpu", dtype=torch.float64).clone()
        if betas.ndim != 1 or betas.numel() == 0:
            raise ConfigError(
                f"betas have shape {tuple(betas.shape)}; expected one value a timestep, shape (T,) with T >= 1. "
                "Pass betas.flatten()."
            )
        if not bool(torch.isfinite(betas).all()) or float(betas.min()) <= 0.0 or float(betas.max()) >= 1.0:
            raise ConfigError(
                f"betas range from {float(betas.min()):.3g} to {float(betas.max()):.3g}; every beta is a variance "
                "strictly between 0 and 1. Check the start and end values of the schedule."
            )
        object.__setattr__(self, "betas", betas)

    def __len__(self) -> int:
        """T, the number of training timesteps."""
        return self.betas.numel()

    def __repr__(self) -> str:
        abar = self.alphas_cumprod
        return (
            f"Schedule({self.name!r}, T={len(self)}, beta {float(self.betas[0]):.3g}..{float(self.betas[-1]):.3g}, "
            f"alpha_bar {float(abar[0]):.6g}..{float(abar[-1]):.6g}, "
            f"DDIM ends on {'1' if self.set_alpha_to_one else 'alpha_bar[0]'})"
        )

    @property
    def alphas(self) -> Tensor:
        """(T,) alpha_t = 1 - beta_t, the signal variance that one step keeps."""
        return 1.0 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) alpha_bar_t = alpha_0 * ... * alpha_t, the signal variance left after t + 1 steps."""
        return torch.cumprod(self.alphas, dim=0)

    @property
    def alphas_cumprod_prev(self) -> Tensor:
        """(T,) alpha_bar of the step before; 1 (a clean picture) before the first."""
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])

    @property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """(T,) factor of the picture in x_t."""
        return self.alphas_cumprod.sqrt()

    @property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        """(T,) factor of the noise in x_t."""
        return (1.0 - self.alphas_cumprod).sqrt()

    @property
    def sqrt_recip_alphas_cumprod(self) -> Tensor:
        """(T,) factor of x_t in the estimate of x_0."""
        return self.alphas_cumprod.rsqrt()

    @property
    def sqrt_recipm1_alphas_cumprod(self) -> Tensor:
        """(T,) factor of the predicted noise in the estimate of x_0."""
        return (1.0 / self.alphas_cumprod - 1.0).sqrt()

    @property
    def snr(self) -> Tensor:
        """(T,) signal-to-noise ratio alpha_bar / (1 - alpha_bar), a ratio of variances."""
        return self.alphas_cumprod / (1.0 - self.alphas_cumprod)

    def alpha_bar(self, t: int | None) -> float:
        """alpha_bar at one timestep; ``None`` means "no noise left" and gives 1.

        Raises:
            ConfigError: t outside 0 ... T-1.
        """
        return 1.0 if t is None else float(self.alphas_cumprod[self.check_timestep(t)])

    def ddim_final_alpha_bar(self) -> float:
        """alpha_bar that DDIM's last step lands on, see ``set_alpha_to_one``."""
        return 1.0 if self.set_alpha_to_one else float(self.alphas_cumprod[0])

    def check_timestep(self, t: int) -> int:
        """Return t as an int, or raise ConfigError when it is outside 0 ... T-1."""
        t = int(t)
        if not 0 <= t < len(self):
            raise ConfigError(
                f"timestep {t} is outside 0..{len(self) - 1} of the schedule {self.name!r}. Timesteps are zero-based: "
                f"the noisiest one is {len(self) - 1}."
            )
        return t

    def coefficients(self, table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
        """Look a (T,) table up at t, shaped to multiply ``like``.

        Args:
            table: one of this schedule's (T,) tables.
            t: a single timestep, or (B,) one a sample (then ``like`` has B rows).
            like: (B, ...) the tensor to be multiplied; gives device and dtype.

        Returns:
            a 0-dim tensor or one of shape (B, 1, ..., 1), float32 or wider even when ``like`` is half precision.

        Raises:
            ConfigError: a timestep out of range (checked for ints and CPU tensors; not on an accelerator, where the
                check would stall the queue), not an integer, or a number of timesteps that is not B.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        if not isinstance(t, Tensor):
            return table[self.check_timestep(t)].to(dtype=dtype).to(like.device)
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ConfigError(f"timesteps have dtype {t.dtype}; expected integers. Pass t.long().")
        if t.ndim == 1 and t.shape[0] not in (1, like.shape[0]) or t.ndim > 1:
            raise ConfigError(
                f"timesteps have shape {tuple(t.shape)} for a batch of shape {tuple(like.shape)}; expected one "
                f"timestep, or one a sample: shape ({like.shape[0]},)."
            )
        if t.device.type == "cpu" and t.numel():
            self.check_timestep(int(t.min()))
            self.check_timestep(int(t.max()))
        values = table.to(dtype=dtype).to(like.device)[t.to(like.device)]
        return values if t.ndim == 0 else values.view(-1, *([1] * (like.ndim - 1)))


def linear_betas(start: float, end: float, num_train: int = 1000) -> Tensor:
    """(T,) float64 variances rising linearly (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, _check_count(num_train), dtype=torch.float64)


def sqrt_linear_betas(start: float, end: float, num_train: int = 1000) -> Tensor:
    """(T,) float64 variances whose square roots rise linearly (latent diffusion; diffusers: "scaled_linear")."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), _check_count(num_train), dtype=torch.float64) ** 2


def cosine_betas(num_train: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """(T,) float64 variances of the cosine schedule (Nichol and Dhariwal 2021, eq. 17).

    alpha_bar follows cos^2(pi/2 * (u + offset) / (1 + offset)) for u from 0 to 1; ``max_beta`` caps the last betas.
    """
    edges = torch.linspace(0.0, 1.0, _check_count(num_train) + 1, dtype=torch.float64)
    level = torch.cos((edges + offset) / (1.0 + offset) * (math.pi / 2)) ** 2
    return (1.0 - level[1:] / level[:-1]).clamp(max=max_beta)


def _check_count(num_train: int) -> int:
    if int(num_train) != num_train or num_train < 1:
        raise ConfigError(f"num_train is {num_train}; expected a whole number of timesteps, at least 1 (papers: 1000).")
    return int(num_train)


def library_keywords(kind: str, start: float | None = None, end: float | None = None) -> Mapping[str, Any]:
    """The diffusers keywords that describe a beta rule."""
    keywords: dict[str, Any] = {"beta_schedule": kind}
    if start is not None and end is not None:
        keywords.update(beta_start=start, beta_end=end)
    return MappingProxyType(keywords)


def _sqrt_linear_schedule(name: str, start: float, end: float, num_train: int) -> Schedule:
    return Schedule(
        sqrt_linear_betas(start, end, num_train), name, False, library_keywords("scaled_linear", start, end)
    )


def refldm_schedule(num_train: int = 1000) -> Schedule:
    """ReF-LDM: betas are the square of a ramp from sqrt(0.0015) to sqrt(0.0155); DDIM ends on alpha_bar[0]."""
    return _sqrt_linear_schedule("refldm", 0.0015, 0.0155, num_train)


def _ldbfr_schedule(num_train: int) -> Schedule:
    return _sqrt_linear_schedule("ldbfr", 0.0015, 0.0195, num_train)


def _diffmac_schedule(num_train: int) -> Schedule:
    return _sqrt_linear_schedule("diffmac", 0.00085, 0.012, num_train)


def _pdgrad_schedule(num_train: int) -> Schedule:
    return Schedule(linear_betas(1e-4, 0.02, num_train), "pdgrad", True, library_keywords("linear", 1e-4, 0.02))


def _linear_schedule(num_train: int) -> Schedule:
    return Schedule(linear_betas(1e-4, 0.02, num_train), "linear", True, library_keywords("linear", 1e-4, 0.02))


def _cosine_schedule(num_train: int) -> Schedule:
    return Schedule(cosine_betas(num_train), "cosine", True, library_keywords("squaredcos_cap_v2"))


SCHEDULES: Mapping[str, Callable[[int], Schedule]] = MappingProxyType(
    {
        "refldm": refldm_schedule,
        "pdgrad": _pdgrad_schedule,
        "ldbfr": _ldbfr_schedule,
        "diffmac": _diffmac_schedule,
        "linear": _linear_schedule,
        "cosine": _cosine_schedule,
    }
)


def make_schedule(name: str, num_train: int = 1000) -> Schedule:
    """Build a schedule by name (see the module's table).

    Raises:
        UnknownNameError: no such schedule; the message says the nearest name.
        ConfigError: ``num_train`` below 1.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    return SCHEDULES[name](num_train)


def respace(schedule: Schedule, timesteps: list[int]) -> Schedule:
    """The shorter process that visits only some timesteps (Nichol and Dhariwal 2021, eq. 19).

    Its betas make one step jump from one kept alpha_bar to the next, so ``alphas_cumprod`` of the result are the kept
    entries. Index i of the result belongs to ``sorted(timesteps)[i]`` of the original: a network is still called with
    the original timestep.

    Args:
        schedule: the full process.
        timesteps: the kept timesteps in any order, without repeats.

    Raises:
        ConfigError: empty, repeated or out-of-range timesteps.
    """
    kept = sorted(schedule.check_timestep(t) for t in timesteps)
    if not kept or len(set(kept)) != len(kept):
        raise ConfigError(f"{len(kept)} timesteps with {len(set(kept))} different values; expected some, each once.")
    level = schedule.alphas_cumprod[kept]
    before = torch.cat([level.new_ones(1), level[:-1]])
    return Schedule(1.0 - level / before, f"{schedule.name}/{len(kept)}", schedule.set_alpha_to_one)
