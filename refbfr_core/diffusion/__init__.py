"""Diffusion core: schedules, forward process, spacings, samplers, guidance, and noise that belongs to an image.

Read in this order: ``schedules`` (how much noise when), ``forward`` (adding it, and reading predictions), ``ddim`` (one
step back), ``spacing`` (which steps), ``sampling`` (all of them), ``learned`` (with a variance the network predicts),
``guidance`` (steering), ``norm_ratio`` (by a share of the step), ``trace`` (watching), ``noise`` (seeds), ``library``
(the same things in diffusers).
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
from refbfr_core.diffusion.gradients import (
    GRADIENT_MODES,
    TOTAL_MODES,
    GradientStats,
    combine_gradients,
    pcgrad,
    total_gradient,
)
from refbfr_core.diffusion.guidance import Correction, Guidance, classifier_free_guidance, guided_predict
from refbfr_core.diffusion.learned import Repeats, learned_range_variance, sample_learned, split_learned
from refbfr_core.diffusion.library import schedule_from_scheduler, to_ddpm_scheduler, to_scheduler
from refbfr_core.diffusion.noise import image_generators, image_noise, image_seeds
from refbfr_core.diffusion.norm_ratio import NORM_SCOPES, norm_ratio_correction, norm_ratio_factor, norm_ratio_shift
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
    "GRADIENT_MODES",
    "NORM_SCOPES",
    "PAPER_SPACINGS",
    "PREDICTION_TYPES",
    "SCHEDULES",
    "SPACINGS",
    "TOTAL_MODES",
    "Callback",
    "Correction",
    "GradientStats",
    "Guidance",
    "NonFiniteError",
    "Posterior",
    "Predict",
    "Repeats",
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
    "combine_gradients",
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
    "learned_range_variance",
    "linear_betas",
    "make_schedule",
    "make_timesteps",
    "norm_ratio_correction",
    "norm_ratio_factor",
    "norm_ratio_shift",
    "pcgrad",
    "posterior",
    "predict_eps",
    "predict_v",
    "predict_x0",
    "previous_timesteps",
    "refldm_schedule",
    "respace",
    "sample",
    "sample_ancestral",
    "sample_learned",
    "sample_with_scheduler",
    "schedule_from_scheduler",
    "split_learned",
    "sqrt_linear_betas",
    "start_from",
    "to_ddpm_scheduler",
    "to_scheduler",
    "total_gradient",
    "trailing_timesteps",
    "uniform_timesteps",
    "v_to_eps",
    "v_to_x0",
]
