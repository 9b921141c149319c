"""Diffusion core: schedules, forward process, spacings, samplers, guidance, and noise that belongs to an image.

Read in this order: ``schedules`` (how much noise when), ``forward`` (adding it, and reading predictions), ``ddim`` (one
step back), ``spacing`` (which steps), ``sampling`` (all of them), ``guidance`` (steering), ``trace`` (watching),
``noise`` (seeds), ``library`` (the same things in diffusers).
"""

from refbfr_core.diffusion.ddim import (
    Posterior,
    Step,
    alpha_bar_pairs,
    ddim_sigma,
    ddim_step,
    ddim_update,
    ddpm_step,
    ddpm_update,
    posterior,
)
from refbfr_core.diffusion.forward import (
    PREDICTION_TYPES,
    add_noise,
    eps_and_x0,
    predict_eps,
    predict_v,
    predict_x0,
    v_to_eps,
    v_to_x0,
)
from refbfr_core.diffusion.guidance import Correction, Guidance, classifier_free_guidance, guided_predict
from refbfr_core.diffusion.library import schedule_from_scheduler, to_ddpm_scheduler, to_scheduler
from refbfr_core.diffusion.noise import image_generators, image_noise, image_seeds
from refbfr_core.diffusion.sampling import Callback, sample, sample_ancestral, sample_with_scheduler
from refbfr_core.diffusion.schedules import (
    SCHEDULES,
    Schedule,
    cosine_betas,
    linear_betas,
    make_schedule,
    refldm_schedule,
    respace,
    sqrt_linear_betas,
)
from refbfr_core.diffusion.spacing import (
    PAPER_SPACINGS,
    SPACINGS,
    adm_ddim_timesteps,
    adm_timesteps,
    leading_timesteps,
    make_timesteps,
    previous_timesteps,
    start_from,
    trailing_timesteps,
    uniform_timesteps,
)
from refbfr_core.diffusion.state import NonFiniteError, Predict, StepState
from refbfr_core.diffusion.trace import Trace, TraceStep

__all__ = [
    "PAPER_SPACINGS",
    "PREDICTION_TYPES",
    "SCHEDULES",
    "SPACINGS",
    "Callback",
    "Correction",
    "Guidance",
    "NonFiniteError",
    "Posterior",
    "Predict",
    "Schedule",
    "Step",
    "StepState",
    "Trace",
    "TraceStep",
    "add_noise",
    "adm_ddim_timesteps",
    "adm_timesteps",
    "alpha_bar_pairs",
    "classifier_free_guidance",
    "cosine_betas",
    "ddim_sigma",
    "ddim_step",
    "ddim_update",
    "ddpm_step",
    "ddpm_update",
    "eps_and_x0",
    "guided_predict",
    "image_generators",
    "image_noise",
    "image_seeds",
    "leading_timesteps",
    "linear_betas",
    "make_schedule",
    "make_timesteps",
    "posterior",
    "predict_eps",
    "predict_v",
    "predict_x0",
    "previous_timesteps",
    "refldm_schedule",
    "respace",
    "sample",
    "sample_ancestral",
    "sample_with_scheduler",
    "schedule_from_scheduler",
    "sqrt_linear_betas",
    "start_from",
    "to_ddpm_scheduler",
    "to_scheduler",
    "trailing_timesteps",
    "uniform_timesteps",
    "v_to_eps",
    "v_to_x0",
]
