"""Sampling loops, as plain functions: DDIM, ancestral, and any suitable diffusers scheduler.

All three do the same at every step: call ``predict``, read its output as (eps, x_0), let the guidance hook change
them, take the step, tell trace and callback. They run without gradients, hold no state between calls, and draw noise
for each image from its own generator.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from refbfr_core.diffusion.ddim import (
    clip_estimate,
    ddim_sigma,
    ddim_update,
    ddpm_update,
    posterior,
    step_variance,
)
from refbfr_core.diffusion.forward import PREDICTION_TYPES, eps_and_x0, predict_v
from refbfr_core.diffusion.guidance import Correction, Guidance, apply_correction, apply_draw_shift
from refbfr_core.diffusion.library import schedule_from_scheduler
from refbfr_core.diffusion.noise import image_generators, image_noise
from refbfr_core.diffusion.schedules import Schedule
from refbfr_core.diffusion.spacing import previous_timesteps
from refbfr_core.diffusion.state import Predict, StepState, check_finite, check_output
from refbfr_core.diffusion.trace import Trace
from refbfr_core.errors import ConfigError, unknown_name

__all__ = ["Callback", "sample", "sample_ancestral", "sample_with_scheduler"]

Callback = Callable[[StepState], object]
"""Called after every step with the finished state; what it returns is ignored."""

Variance = Callable[[int, int | None], float | Tensor]
_Advance = Callable[[StepState, Tensor | None], Tensor]


def sample(
    predict: Predict,
    x_T: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    prediction: str = "epsilon",
    clip_x0: float | None = None,
    guidance: Guidance | None = None,
    callback: Callback | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Denoise with DDIM (Song et al. 2021, eq. 12) along a list of timesteps.

    Args:
        predict: (x_t (B, ...), timestep) -> network output of the same shape; conditions and classifier-free guidance
            are already inside (``guided_predict``).
        x_T: (B, ...) start: standard normal noise, or a noised estimate when ``timesteps`` begins part-way.
        timesteps: descending, see ``spacing``. They may be more than the number asked of the spacing.
        schedule: the process; its ``set_alpha_to_one`` says where the last step lands.
        eta: 0 deterministic, 1 as noisy as ancestral sampling.
        generators: one CPU generator an image, for eta > 0; pass the ones that drew ``x_T``.
        prediction: what ``predict`` returns: "epsilon", "sample" or "v_prediction".
        clip_x0: clamp every estimate of x_0 to [-clip_x0, clip_x0]; None (ReF-LDM): no clipping.
        guidance: hook, see ``guidance.Guidance``.
        callback: called with the ``StepState`` after every step.
        trace: filled with the run.

    Returns:
        (B, ...) the sample after the last step, dtype and device of ``x_T``.

    Raises:
        ConfigError: an impossible setting, shapes that differ, a wrong number of generators.
        NonFiniteError: the network or the hook returned NaN or infinity; the message names the step and the images.
    """
    draw = drawer(generators, x_T, needed="eta > 0" if eta > 0.0 else None)

    def advance(state: StepState, mean_shift: Tensor | None) -> Tensor:
        x_prev = ddim_update(state.x0, state.eps, state.t, state.t_prev, schedule, eta=eta, noise=draw())
        return x_prev if mean_shift is None else x_prev + mean_shift

    run = Run(predict, schedule, prediction, clip_x0, guidance, callback, trace)
    return run(x_T, timesteps, lambda t, t_prev: ddim_sigma(t, t_prev, schedule, eta) ** 2, advance)


def sample_ancestral(
    predict: Predict,
    x_T: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    variance: str = "small",
    prediction: str = "epsilon",
    clip_x0: float | None = None,
    guidance: Guidance | None = None,
    callback: Callback | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Denoise by drawing every step from its Gaussian (Ho et al. 2020, algorithm 2), over all or spaced timesteps.

    The last step adds no noise and lands on the estimate of x_0.

    Args:
        generators: one CPU generator an image.
        variance: "small" (beta tilde: DiffMAC's and diffusers' default) or "large" (beta).
        others: as for ``sample``.

    Raises: as ``sample``; UnknownNameError for another variance.
    """
    draw = drawer(generators, x_T, needed="ancestral sampling")

    def variance_of(t: int, t_prev: int | None) -> float | Tensor:
        return step_variance(posterior(t, t_prev, schedule), variance)

    def advance(state: StepState, mean_shift: Tensor | None) -> Tensor:
        noise = None if state.t_prev is None else draw()
        return ddpm_update(
            state.x_t, state.x0, state.t, state.t_prev, schedule, noise=noise, variance=variance, mean_shift=mean_shift
        )

    run = Run(predict, schedule, prediction, clip_x0, guidance, callback, trace)
    return run(x_T, timesteps, variance_of, advance)


def sample_with_scheduler(
    predict: Predict,
    x_T: Tensor,
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    guidance: Guidance | None = None,
    callback: Callback | None = None,
    trace: Trace | None = None,
    **step_keywords: Any,
) -> Tensor:
    """Denoise with a diffusers scheduler: DDIM, DDPM, DPM-Solver, ... (any whose x_t is sqrt(a) x_0 + sqrt(1-a) eps).

    The scheduler is copied first: yours is neither re-timed nor left with the memory of this run. Its configuration
    decides prediction type, spacing and clipping.

    Args:
        scheduler: the diffusers scheduler.
        num_inference_steps: passed to its ``set_timesteps``; or
        timesteps: an explicit descending list, for schedulers that accept one (DDPM; not DDIM: use ``sample``).
        generators: one CPU generator an image; needed by schedulers that draw noise.
        step_keywords: further arguments of the scheduler's ``step``, such as ``eta=1.0`` for DDIM.
        others: as for ``sample``. ``StepState.variance`` is 0 and its ``x0`` unclipped here: the library keeps its own.

    Raises: as ``sample``; ConfigError also for a scheduler that cannot be used or an argument its ``step`` lacks.
    """
    _check_start(x_T)
    scheduler = copy.deepcopy(scheduler)
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        raise ConfigError(
            f"{type(scheduler).__name__} scales its samples by sigma (init_noise_sigma is not 1); x_0 cannot be "
            "read off them here. Use a DDIM, DDPM or DPM-Solver scheduler."
        )
    schedule = schedule_from_scheduler(scheduler)
    _set_timesteps(scheduler, num_inference_steps, timesteps)
    scheduler_times = scheduler.timesteps
    accepted = inspect.signature(scheduler.step).parameters
    for name in step_keywords:
        if name not in accepted:
            raise ConfigError(f"{type(scheduler).__name__}.step takes no argument {name!r}. Leave it out.")
    # Without generators a scheduler may run, but only if it draws nothing: an untouched stand-in proves it.
    batch = x_T.shape[0]
    step_generators = image_generators(0, batch) if generators is None else _check_generators(generators, batch)
    untouched = step_generators[0].get_state() if generators is None else None
    if "generator" in accepted:
        step_keywords["generator"] = step_generators
    prediction = scheduler.config.get("prediction_type", "epsilon")

    def advance(state: StepState, mean_shift: Tensor | None) -> Tensor:
        output = {"epsilon": state.eps, "sample": state.x0}.get(prediction)
        if output is None:
            output = predict_v(state.x0, state.eps, state.t, schedule)
        x_prev = scheduler.step(output, scheduler_times[state.index], state.x_t, **step_keywords).prev_sample
        if untouched is not None and not torch.equal(untouched, step_generators[0].get_state()):
            raise ConfigError(
                f"{type(scheduler).__name__} draws noise with these settings; pass "
                "generators=image_generators(seed, batch size)."
            )
        return x_prev if mean_shift is None else x_prev + mean_shift

    run = Run(predict, schedule, prediction, None, guidance, callback, trace)
    return run(x_T, [int(t) for t in scheduler_times], lambda t, t_prev: 0.0, advance)


@dataclass(frozen=True)
class Run:
    """What all loops share, also the one in ``learned``."""

    predict: Predict
    schedule: Schedule
    prediction: str
    clip_x0: float | None
    guidance: Guidance | None
    callback: Callback | None
    trace: Trace | None

    @torch.no_grad()
    def __call__(
        self,
        x_T: Tensor,
        timesteps: Sequence[int],
        variance_of: Variance,
        advance: _Advance,
        passes: Sequence[int] | None = None,
    ) -> Tensor:
        """Runs the loop; ``passes`` says how often each timestep is visited (default: once)."""
        timesteps = _check_timesteps(timesteps, self.schedule)
        if self.prediction not in PREDICTION_TYPES:
            raise unknown_name("prediction type", self.prediction, PREDICTION_TYPES)
        pairs = zip(timesteps, previous_timesteps(timesteps), strict=True)
        passes = [1] * len(timesteps) if passes is None else passes
        visits = [pair for pair, count in zip(pairs, passes, strict=True) for _ in range(count)]
        total = len(visits)
        if self.trace is not None:
            self.trace.begin(tuple(x_T.shape), total)
        x_t = x_T
        for index, (t, t_prev) in enumerate(visits):
            output = check_output(self.predict(x_t, t), x_t, index, total, t)
            eps, x0 = eps_and_x0(output, x_t, t, self.schedule, self.prediction)
            x0, eps = clip_estimate(x_t, x0, eps, t, self.schedule, self.clip_x0)
            state = StepState(index, total, t, t_prev, x_t, eps, x0, variance_of(t, t_prev))
            state, correction = self._guide(state)
            x_prev = advance(state, _mean_shift(correction, x_t.dtype))
            x_prev = apply_draw_shift(state, correction, x_prev)
            check_finite(x_prev, "the sample", index, total, t)
            if self.trace is not None or self.callback is not None:
                state = replace(state, x_prev=x_prev)
            if self.trace is not None:
                self.trace.record(state)
            if self.callback is not None:
                self.callback(state)
            x_t = x_prev
        return x_t

    def _guide(self, state: StepState) -> tuple[StepState, Correction | None]:
        if self.guidance is None:
            return state, None
        correction = self.guidance(state)
        return apply_correction(state, correction, self.schedule), correction


def _mean_shift(correction: Correction | None, dtype: torch.dtype) -> Tensor | None:
    return None if correction is None or correction.mean_shift is None else correction.mean_shift.to(dtype)


def _check_start(x_T: Tensor) -> None:
    if x_T.ndim < 2 or x_T.shape[0] < 1 or not x_T.is_floating_point():
        raise ConfigError(
            f"x_T has shape {tuple(x_T.shape)} and dtype {x_T.dtype}; expected floating point (B, ...) with B >= 1. "
            "Draw it with image_noise(generators, (C, H, W))."
        )
    if not bool(torch.isfinite(x_T).all()):
        raise ConfigError("x_T holds NaN or infinity before the first step. Check what it was made from.")


def _check_timesteps(timesteps: Sequence[int], schedule: Schedule) -> list[int]:
    """The timesteps as ints, in range and strictly descending."""
    steps = [schedule.check_timestep(t) for t in timesteps]
    if not steps:
        raise ConfigError("no timesteps given; expected a descending list such as trailing_timesteps(1000, 50).")
    for t, t_prev in zip(steps, steps[1:], strict=False):
        if t_prev >= t:
            raise ConfigError(
                f"timestep {t_prev} follows {t}; expected strictly descending. Pass sorted(..., reverse=True)."
            )
    return steps


def _check_generators(generators: Sequence[torch.Generator], n: int) -> list[torch.Generator]:
    # Seeds are refused: a generator seeded anew would repeat the numbers that x_T was drawn from.
    if not isinstance(generators, (list, tuple)) or not all(isinstance(g, torch.Generator) for g in generators):
        raise ConfigError(
            "generators must be a list of torch.Generator, one an image. Pass the list from image_generators(seed, n) "
            "that drew x_T."
        )
    return image_generators(generators, n)


def drawer(
    generators: Sequence[torch.Generator] | None, x_T: Tensor, needed: str | None
) -> Callable[[], Tensor | None]:
    """A function that draws one step's noise, or gives None where the sampler needs no noise."""
    _check_start(x_T)
    if generators is not None:
        generators = _check_generators(generators, x_T.shape[0])
    elif needed is not None:
        raise ConfigError(f"{needed} draws noise; pass generators=image_generators(seed, batch size).")
    if needed is None or generators is None:
        return lambda: None
    return lambda: image_noise(generators, x_T.shape[1:], device=x_T.device, dtype=x_T.dtype)


def _set_timesteps(scheduler: Any, num_inference_steps: int | None, timesteps: Sequence[int] | None) -> None:
    if (num_inference_steps is None) == (timesteps is None):
        raise ConfigError("pass either num_inference_steps or timesteps, one of the two.")
    if timesteps is None:
        scheduler.set_timesteps(num_inference_steps)
    elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(timesteps=list(timesteps))
    else:
        raise ConfigError(
            f"{type(scheduler).__name__} takes no list of timesteps. Use refbfr_core.diffusion.sample, which does."
        )
