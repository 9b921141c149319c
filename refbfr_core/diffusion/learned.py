"""Ancestral sampling with a learned variance, the sampler of PDGrad, PGDiff and the networks of guided diffusion.

Such a network returns twice as many channels as the sample has: first the prediction (the noise), then a code v that
says where between its two limits the variance of this step lies, for every value on its own. v = -1 is the smallest
variance the step can have (beta tilde), v = 1 the largest (beta); between them the *logarithms* are interpolated
(Nichol and Dhariwal 2021, eq. 15). The guidance of PDGrad (eq. 9) multiplies its gradient by this variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.diffusion.ddim import ddpm_update, posterior
from refbfr_core.diffusion.forward import widen
from refbfr_core.diffusion.guidance import Guidance
from refbfr_core.diffusion.sampling import Callback, Run, drawer
from refbfr_core.diffusion.schedules import Schedule
from refbfr_core.diffusion.state import Predict, StepState, check_finite
from refbfr_core.diffusion.trace import Trace
from refbfr_core.errors import ConfigError

__all__ = ["Repeats", "learned_range_variance", "sample_learned", "split_learned"]

Draw = Callable[[], Tensor]
"""Gives the noise of one step, (B, ...) standard normal."""


def split_learned(output: Tensor) -> tuple[Tensor, Tensor]:
    """A network's output (B, 2C, ...) as prediction (B, C, ...) and variance code (B, C, ...).

    Raises:
        ConfigError: not a tensor with an even number of channels.
    """
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] % 2 or not output.shape[1]:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"the network returned {came}; expected a tensor (B, 2C, ...): the prediction and then the variance code. "
            "For a network without a learned variance use sample_ancestral, for a diffusers network return its .sample."
        )
    prediction, code = output.chunk(2, dim=1)
    return prediction, code


def learned_range_variance(
    code: Tensor, t: int, t_prev: int | None, schedule: Schedule, *, before: int | None = None
) -> Tensor:
    """Variance exp(f log beta + (1 - f) log beta~), f = (v + 1) / 2 (Nichol and Dhariwal 2021, eq. 15).

    beta and beta~ belong to the step from t to t_prev, however long it is. The last step's beta~ is zero, which has no
    logarithm; as in the authors' code that of the step before it stands in. No noise is drawn there, but guidance
    multiplies by this variance.

    Args:
        code: v, (B, ...). Not clamped: values beyond [-1, 1] leave the range, as in the authors' code.
        t: timestep of this step.
        t_prev: the timestep it goes to, None for the last.
        schedule: the full process.
        before: the timestep visited before t; read for the last step only. None: t + 1, as when none is left out.

    Returns:
        variances of the shape of ``code``, float32 or wider.

    Raises:
        ConfigError: timesteps out of range or not descending.
    """
    q = posterior(t, t_prev, schedule)
    smallest = q.variance
    if t_prev is None:
        before = t + 1 if before is None else before
        # A process of a single step has no step before: its range shrinks to beta.
        smallest = posterior(before, t, schedule).variance if before < len(schedule) else q.beta
    fraction = (widen(code) + 1.0) / 2.0
    return torch.exp(fraction * math.log(q.beta) + (1.0 - fraction) * math.log(smallest))


@dataclass(frozen=True)
class Repeats:
    """PGDiff's repeats: some steps are taken several times over, network, guidance and noise included.

    An extra pass starts from the sample that the pass before has drawn and goes through the same step again, without
    adding the noise back that was taken out.

    Args:
        count: N, how often such a step is taken; 1 for no repeats.
        start, end: a step is repeated if its index i keeps end < i < start, both strictly. i counts the *visited*
            timesteps, 0 for the last one executed: in a run of 100 steps it ends at 99.

    Raises:
        ConfigError: a count below 1.
    """

    count: int = 1
    start: int = 1000
    end: int = 700

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ConfigError(f"the number of passes is {self.count!r}; expected 1 (no repeats) or more.")

    @classmethod
    def of_fractions(cls, count: int = 1, s_start: float = 1.0, s_end: float = 0.7) -> Repeats:
        """PGDiff's options: start and end as fractions of 1000, whatever the number of steps.

        With 700 steps or fewer and the default ``s_end`` nothing is ever repeated; the authors' code is like that.
        """
        return cls(count, int(s_start * 1000), int(s_end * 1000))

    def passes(self, steps: int) -> list[int]:
        """How often each of ``steps`` steps is taken, in order of execution."""
        return [self.count if self.end < index < self.start else 1 for index in reversed(range(steps))]


def sample_learned(
    predict: Predict,
    x_start: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator] | None = None,
    draw: Draw | None = None,
    prediction: str = "epsilon",
    clip_x0: float | None = 1.0,
    guidance: Guidance | None = None,
    repeats: Repeats | None = None,
    callback: Callback | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Denoise by drawing every step from N(mean, learned variance); the last step adds no noise.

    The mean comes from the clamped estimate of x_0. A guidance hook reads the variance of every value in
    ``StepState.variance``: PDGrad (eq. 9) returns ``Correction(mean_shift=-s * state.variance * gradient)``.

    Args:
        predict: (x_t (B, C, ...), timestep) -> (B, 2C, ...), prediction and variance code.
        x_start: (B, C, ...) standard normal noise; or a noised estimate, when ``timesteps`` begins part-way
            (PDGrad eq. 8: ``add_noise(y_c, noise, 699, schedule)`` for tau = 700).
        timesteps: descending timesteps of the full process, see ``spacing``.
        schedule: the full process.
        generators: one CPU generator an image; pass those that drew ``x_start``.
        draw: instead of generators, a function that gives each step's noise, (B, C, ...): for noise that was recorded
            elsewhere, ``draw=iter(noises).__next__``. It is called once a pass, but not in the last.
        prediction: what the first half of the output is: "epsilon", "sample" or "v_prediction".
        clip_x0: clamp every estimate of x_0 to [-clip_x0, clip_x0], 1 in all these papers; None: no clamping.
        guidance: hook, see ``guidance.Guidance``.
        repeats: PGDiff's repeated steps. Each pass counts as a step for callback, trace and ``StepState.index``.
        callback: called with the ``StepState`` after every pass.
        trace: filled with the run.

    Returns:
        (B, C, ...) the sample after the last step, dtype and device of ``x_start``.

    Raises:
        ConfigError: an impossible setting, shapes that differ, generators and draw together or neither.
        NonFiniteError: the network or the hook returned NaN or infinity; the message names the step and the images.
    """
    if (generators is None) == (draw is None):
        raise ConfigError("pass either generators=image_generators(seed, batch size) or draw, one of the two.")
    noise = drawer(generators, x_start, needed=None if draw else "ancestral sampling")
    timesteps = list(timesteps)
    passes = (repeats or Repeats()).passes(len(timesteps))
    network = _TwoHeads(predict, sum(passes))
    before = timesteps[-2] if len(timesteps) > 1 else None

    def variance_of(t: int, t_prev: int | None) -> Tensor:
        return learned_range_variance(network.code, t, t_prev, schedule, before=before)

    def step_noise() -> Tensor | None:
        try:
            return (draw or noise)()
        except StopIteration as end:
            raise ConfigError(
                f"draw ran out of noise after {network.calls - 1} passes; expected one a pass, but for the last: "
                f"{max(sum(passes) - 1, 0)}."
            ) from end

    def advance(state: StepState, mean_shift: Tensor | None) -> Tensor:
        return ddpm_update(
            state.x_t,
            state.x0,
            state.t,
            state.t_prev,
            schedule,
            noise=None if state.t_prev is None else step_noise(),
            variance=state.variance,
            mean_shift=mean_shift,
        )

    run = Run(network, schedule, prediction, clip_x0, guidance, callback, trace)
    return run(x_start, timesteps, variance_of, advance, passes)


class _TwoHeads:
    """A network that the loop calls for its prediction and that keeps the variance code of the latest call."""

    def __init__(self, predict: Predict, total: int) -> None:
        self._predict, self._total, self.calls = predict, total, 0
        self.code: Tensor

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        prediction, self.code = split_learned(self._predict(x_t, t))
        # The loop checks the prediction; a NaN in the code alone would pass unseen through the last step.
        check_finite(self.code, "the network's variance code", self.calls, self._total, t)
        self.calls += 1
        return prediction
