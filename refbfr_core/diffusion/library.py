"""Between this package's schedules and the schedulers of diffusers.

Pipelines carry a library scheduler as a component (so that ``save_pretrained`` works and any diffusers user knows what
they look at); the step functions here work on a ``Schedule``. These functions go from one to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from refbfr_core.diffusion.schedules import Schedule, library_keywords, linear_betas, sqrt_linear_betas
from refbfr_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DDPMScheduler

__all__ = ["schedule_from_scheduler", "to_ddpm_scheduler", "to_scheduler"]


def to_scheduler(
    schedule: Schedule, spacing: str = "trailing", *, exact: bool = False, **overrides: Any
) -> DDIMScheduler:
    """The diffusers ``DDIMScheduler`` of the same process: no clipping of x_0, noise prediction.

    Args:
        schedule: the process.
        spacing: diffusers' ``timestep_spacing``: "trailing", "leading" or "linspace".
        exact: replace the library's float32 alpha_bar by this schedule's float64 one (relative difference 2e-6; it
            shows in long runs at t near 0). Lost when the scheduler is saved and loaded.
        overrides: further ``DDIMScheduler`` keywords.
    """
    from diffusers import DDIMScheduler

    return _build(DDIMScheduler, schedule, spacing, exact, {"set_alpha_to_one": schedule.set_alpha_to_one} | overrides)


def to_ddpm_scheduler(
    schedule: Schedule, spacing: str = "leading", *, exact: bool = False, **overrides: Any
) -> DDPMScheduler:
    """The diffusers ``DDPMScheduler`` (ancestral sampling) of the same process; arguments as ``to_scheduler``."""
    from diffusers import DDPMScheduler

    return _build(DDPMScheduler, schedule, spacing, exact, overrides)


def _build(cls: type, schedule: Schedule, spacing: str, exact: bool, overrides: dict[str, Any]) -> Any:
    known = ("trailing", "leading", "linspace")
    if spacing not in known:
        raise unknown_name("diffusers timestep spacing", spacing, known)
    betas = schedule.library or {"trained_betas": schedule.betas.tolist()}
    keywords = {"num_train_timesteps": len(schedule), "clip_sample": False, "timestep_spacing": spacing, **betas}
    scheduler = cls(**(keywords | overrides))
    if exact:
        scheduler.alphas_cumprod = schedule.alphas_cumprod.clone()
        if hasattr(scheduler, "final_alpha_cumprod"):
            scheduler.final_alpha_cumprod = torch.tensor(schedule.ddim_final_alpha_bar(), dtype=torch.float64)
    return scheduler


def schedule_from_scheduler(scheduler: Any) -> Schedule:
    """The schedule inside a diffusers scheduler, so that a pipeline's component decides the process.

    The library keeps float32 betas; where its configuration names a known rule the betas are rebuilt in float64.

    Args:
        scheduler: a diffusers scheduler with ``betas`` (DDIM, DDPM, DPM-Solver, ...).

    Raises:
        ConfigError: a scheduler without betas (flow matching, for example).
    """
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise ConfigError(
            f"{type(scheduler).__name__} has no betas; expected a diffusion scheduler such as DDIMScheduler."
        )
    config = scheduler.config
    rules = {"linear": linear_betas, "scaled_linear": sqrt_linear_betas}
    kind, library = config.get("beta_schedule"), {}
    if config.get("trained_betas") is None and kind in rules and not config.get("rescale_betas_zero_snr", False):
        start, end = config["beta_start"], config["beta_end"]
        exact, library = rules[kind](start, end, len(betas)), library_keywords(kind, start, end)
        # Guards against a library version that reads the same keywords differently.
        if not torch.allclose(exact, betas.to(device="cpu", dtype=torch.float64), rtol=1e-4, atol=0.0):
            raise ConfigError(
                f"{type(scheduler).__name__} holds betas that are not its {kind!r} rule from {start} to {end}."
            )
        betas = exact
    return Schedule(betas, type(scheduler).__name__, bool(config.get("set_alpha_to_one", True)), library)
