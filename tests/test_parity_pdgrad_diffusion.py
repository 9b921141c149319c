"""Learned-variance sampling, guidance and repeats against arrays recorded from guided diffusion and PGDiff.

The process itself (alpha bar, posterior, timestep maps, forward noising, means of single steps) is compared in
test_diffusion_schedules.py and test_diffusion_samplers.py. `fixtures/pdgrad_learned.npz` holds the tables and the
8 x 8 corners of the single steps, for every machine; whole runs need the shared folder.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import parity_pdgrad as parity
import pytest
import torch
from parity_pdgrad import SCHEDULE, Arrays
from torch import Tensor

from refbfr_core import diffusion as d
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.models.adm_unet import ADMUNet

TABLES = Path(__file__).parent / "fixtures" / "diffusion.npz"
SHAPE = (2, 3, 4, 4)
TIMESTEPS = d.adm_timesteps(1000, 6)


@pytest.fixture(scope="module")
def carried() -> Arrays:
    return parity.arrays(parity.CARRIED)


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "pdgrad"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Arrays:
    return parity.arrays(folder / "diffusion.npz")


@pytest.fixture(scope="module")
def network(folder: Path) -> ADMUNet:
    return parity.load(folder, "updown")


def two_heads(x_t: Tensor, t: int) -> Tensor:
    """A stand-in for a network with a learned variance."""
    return torch.cat([torch.tanh(x_t) * (1 - t / 2000), torch.sin(3 * x_t)], dim=1)


def run(
    predict: d.Predict = two_heads, seed: int = 0, n: int = 2, timesteps: list[int] = TIMESTEPS, **options
) -> Tensor:
    generators = d.image_generators(seed, n)
    x_T = d.image_noise(generators, SHAPE[1:])
    return d.sample_learned(predict, x_T, timesteps, SCHEDULE, generators=generators, **options)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_betas_match_in_float64(carried):
    np.testing.assert_allclose(SCHEDULE.betas.numpy(), carried["betas64"], rtol=1e-12)


def test_the_smallest_variance_is_the_clipped_posterior(carried):
    """A code of -1 gives beta tilde; at the last step that of the step before."""
    code = torch.full((1, 1), -1.0, dtype=torch.float64)
    steps = [(t, t - 1 if t else None) for t in range(1000)]
    found = [float(d.learned_range_variance(code, t, t_prev, SCHEDULE).log()) for t, t_prev in steps]
    # beta = 1 - a / a_prev loses a few digits to cancellation where beta is 1e-4.
    np.testing.assert_allclose(found, carried["posterior_log_variance_clipped64"], rtol=1e-11)


@pytest.mark.parametrize("name", ["250", "100", "10", "ddim250", "ddim100", "ddim10"])
def test_respaced_tables_match(name):
    rule = d.adm_ddim_timesteps if name.startswith("ddim") else d.adm_timesteps
    short = d.respace(SCHEDULE, rule(1000, int(name.removeprefix("ddim"))))
    with np.load(TABLES) as stored:
        np.testing.assert_allclose(short.alphas_cumprod.numpy(), stored[f"adm__ac64_{name}"], rtol=1e-12)
        np.testing.assert_allclose(short.betas.numpy(), stored[f"adm__betas64_{name}"], rtol=1e-12)


def test_every_carried_table_is_the_recorded_one(recorded, carried):
    with np.load(TABLES) as stored:
        tables = {key.removeprefix("adm__"): torch.from_numpy(stored[key]) for key in stored if key.startswith("adm__")}
    for name, values in (tables | carried).items():
        whole = recorded[name]
        assert torch.equal(whole[..., :8, :8] if values.shape != whole.shape else whole, values), name


def test_library_tables_match_in_float32(carried):
    betas = d.to_ddpm_scheduler(SCHEDULE).betas
    np.testing.assert_allclose(betas.numpy(), carried["betas64"], rtol=1e-6)


# --- single steps, whole runs, norm-ratio scaling ---------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
def test_single_steps_match(recorded, clip):
    parity.compare_single_steps(recorded, clip)


@pytest.mark.parametrize("clip", [True, False])
def test_carried_single_steps_match(carried, clip):
    parity.compare_single_steps(carried, clip)


def test_a_run_of_ten_steps_matches(network, recorded):
    parity.compare_run(network, recorded)


@pytest.mark.parametrize("count", [1, 2])
def test_guided_runs_match(network, recorded, count):
    parity.compare_guided(network, recorded, count)


def test_the_last_guided_step_matches(network, recorded):
    parity.compare_guided_ending(network, recorded)


def test_norm_ratio_scaling_matches(carried):
    parity.compare_norm_ratio(carried)


# --- learned variance -------------------------------------------------------------------------------------------------


def test_the_code_spans_beta_tilde_to_beta():
    q = d.posterior(500, 400, SCHEDULE)
    low, middle, high = d.learned_range_variance(torch.tensor([-1.0, 0.0, 1.0]), 500, 400, SCHEDULE).tolist()
    assert low == pytest.approx(q.variance, rel=1e-5) and high == pytest.approx(q.beta, rel=1e-5)
    assert middle == pytest.approx(math.sqrt(q.variance * q.beta), rel=1e-5)


def test_a_respaced_run_ends_with_its_own_variance():
    variances: list[Tensor] = []
    run(
        lambda x, t: torch.cat([x, torch.full_like(x, -1.0)], dim=1),
        timesteps=[300, 90, 10],
        callback=lambda step: variances.append(step.variance),
    )
    assert float(variances[-1].mean()) == pytest.approx(d.posterior(90, 10, SCHEDULE).variance, rel=1e-5)
    assert float(variances[1].mean()) == pytest.approx(d.posterior(90, 10, SCHEDULE).variance, rel=1e-5)


@pytest.mark.parametrize("t", [0, 400, 999])
def test_a_single_step_works(t):
    variances: list[Tensor] = []
    found = run(timesteps=[t], callback=lambda step: variances.append(step.variance))
    assert torch.isfinite(found).all()
    assert 0 < float(variances[0].min()) <= float(variances[0].max()) < 1


def test_the_fixed_ends_are_the_fixed_variances():
    """With a constant code of -1 or 1 the loop is plain ancestral sampling."""
    generators = d.image_generators(0, 2)
    x_T = d.image_noise(generators, SHAPE[1:])
    for code, variance in ((-1.0, "small"), (1.0, "large")):
        fixed = d.sample_ancestral(
            lambda x, t: two_heads(x, t)[:, :3],
            x_T,
            TIMESTEPS,
            SCHEDULE,
            generators=_later(2),
            variance=variance,
            clip_x0=1.0,
        )
        free = run(lambda x, t, code=code: torch.cat([two_heads(x, t)[:, :3], torch.full_like(x, code)], dim=1))
        torch.testing.assert_close(free, fixed, rtol=0.0, atol=2e-6)


def _later(n: int) -> list[torch.Generator]:
    """Generators from which the start has been drawn already."""
    generators = d.image_generators(0, n)
    d.image_noise(generators, SHAPE[1:])
    return generators


def test_a_picture_does_not_depend_on_its_batch():
    together = run(n=3)
    for i in range(3):
        assert torch.equal(run(seed=i, n=1), together[i : i + 1])


def test_part_way_start_is_the_end_of_the_whole_run():
    steps: list[d.StepState] = []
    noises = list(torch.randn(len(TIMESTEPS), *SHAPE))
    x_T = torch.randn(SHAPE)
    whole = d.sample_learned(two_heads, x_T, TIMESTEPS, SCHEDULE, draw=iter(noises).__next__, callback=steps.append)
    rest = d.start_from(TIMESTEPS, 699)
    skipped = len(TIMESTEPS) - len(rest)
    assert 0 < skipped < len(TIMESTEPS) - 1
    part = d.sample_learned(two_heads, steps[skipped].x_t, rest, SCHEDULE, draw=iter(noises[skipped:]).__next__)
    assert torch.equal(part, whole)


# --- repeats ----------------------------------------------------------------------------------------------------------


def test_repeats_compare_strictly_with_the_respaced_index():
    assert d.Repeats(3, start=4, end=1).passes(6) == [1, 1, 3, 3, 1, 1]
    assert d.Repeats().passes(5) == [1] * 5


def test_fractions_never_repeat_in_short_runs():
    repeats = d.Repeats.of_fractions(2)
    assert (repeats.start, repeats.end) == (1000, 700)
    assert repeats.passes(700) == [1] * 700
    assert sum(repeats.passes(1000)) == 1000 + 299


def test_every_pass_is_counted_and_starts_from_the_sample_before():
    steps: list[d.StepState] = []
    trace = d.Trace(keep=("x_prev",))
    run(repeats=d.Repeats(2, start=4, end=1), callback=steps.append, trace=trace)
    twice = (2, 3)
    visited = [t for i, t in enumerate(TIMESTEPS) for _ in range(2 if i in twice else 1)]
    assert [step.t for step in steps] == trace.timesteps == visited
    assert [step.index for step in steps] == list(range(8)) and {step.total for step in steps} == {8}
    assert all(torch.equal(a.x_prev, b.x_t) for a, b in zip(steps, steps[1:], strict=False))
    assert len(trace.stack("x_prev")) == 8


# --- guidance after the draw ------------------------------------------------------------------------------------------


def test_norm_ratio_guidance_moves_by_a_share_of_the_step():
    """Per picture, s of the way it has just come; the rest of the step is untouched."""

    def guide(scope: str, factor: float = 1.0) -> list[d.StepState]:
        steps: list[d.StepState] = []
        gradient = torch.ones(SHAPE) * torch.tensor([1.0, factor]).view(2, 1, 1, 1)
        correction = d.norm_ratio_correction(gradient, 0.1, scope)
        run(timesteps=[999, 500], callback=steps.append, guidance=lambda state: correction)
        return steps

    plain: list[d.StepState] = []
    run(timesteps=[999, 500], callback=plain.append)
    moved = guide("image")[0].x_prev - plain[0].x_prev
    way = (plain[0].x_t - plain[0].x_prev).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), 0.1 * way, rtol=1e-4, atol=0.0)
    assert (moved < 0).all()
    # Another picture's gradient is nobody's business, unless the authors' norm over the batch is asked for.
    assert torch.equal(guide("image", 50.0)[0].x_prev[0], guide("image")[0].x_prev[0])
    assert not torch.equal(guide("batch", 50.0)[0].x_prev[0], guide("batch")[0].x_prev[0])


def test_norm_ratio_of_a_zero_gradient_is_zero():
    x, sample = torch.randn(2, *SHAPE)
    gradient = torch.randn(SHAPE)
    gradient[0], gradient[1, 2] = 0.0, 0.0
    assert d.norm_ratio_factor(x, sample, gradient, 0.5).flatten()[0] == 0
    assert (d.norm_ratio_factor(x, sample, gradient, 0.5, "image-channel")[:, :, 0, 0] > 0).tolist() == [
        [False, False, False],
        [True, True, False],
    ]
    assert torch.isfinite(d.norm_ratio_shift(x, sample, gradient, 0.5, "batch-channel")).all()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("at", [0, 5])
def test_nan_in_either_half_is_noticed(part, at):
    def broken(x_t: Tensor, t: int) -> Tensor:
        output = two_heads(x_t, t)
        if t == TIMESTEPS[at]:
            output[1, 3 * part] = math.nan
        return output

    with pytest.raises(d.NonFiniteError, match=rf"step {at + 1} of 6 .*image\(s\) \[1\]"):
        run(broken)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: torch.cat([x, x, x], dim=1)[:, :7], r"expected a tensor \(B, 2C"),
        (lambda x: x[:, :2], "expected equal shapes"),
        (lambda x: (x,), "returned tuple"),
    ],
)
def test_outputs_of_another_shape_are_refused(output, message):
    with pytest.raises(ConfigError, match=message):
        run(lambda x, t: output(x))


def test_impossible_runs_are_refused():
    x_T = torch.zeros(SHAPE)
    generators = d.image_generators(0, 2)
    for sources in ({}, {"generators": generators, "draw": lambda: x_T}):
        with pytest.raises(ConfigError, match="one of the two"):
            d.sample_learned(two_heads, x_T, TIMESTEPS, SCHEDULE, **sources)
    with pytest.raises(ConfigError, match=r"ran out of noise after 2 passes.*: 5"):
        d.sample_learned(two_heads, x_T, TIMESTEPS, SCHEDULE, draw=iter([x_T, x_T]).__next__)
    with pytest.raises(ConfigError, match="expected equal shapes"):
        d.sample_learned(two_heads, x_T, TIMESTEPS, SCHEDULE, draw=lambda: x_T[:1])
    with pytest.raises(ConfigError, match="strictly descending"):
        run(timesteps=[500, 500, 0])
    with pytest.raises(ConfigError, match="no timesteps"):
        run(timesteps=[])
    with pytest.raises(ConfigError, match="positive bound"):
        run(clip_x0=0.0)
    with pytest.raises(ConfigError, match="number of passes is 0"):
        d.Repeats(0)
    with pytest.raises(UnknownNameError, match="Did you mean 'image'"):
        d.norm_ratio_correction(x_T, 0.1, "imag")
    with pytest.raises(ConfigError, match="three times"):
        d.norm_ratio_factor(x_T, x_T, x_T[:1], 0.1)
    with pytest.raises(ConfigError, match="draw_shift returned shape"):
        run(guidance=lambda state: d.Correction(draw_shift=lambda before, drawn: drawn[:1]))
    with pytest.raises(d.NonFiniteError, match="the sample holds NaN"):
        run(guidance=lambda state: d.Correction(draw_shift=lambda before, drawn: drawn * math.nan))
