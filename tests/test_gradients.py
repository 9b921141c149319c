"""Combining two gradients: what must hold for any pair, where the result may jump, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from refbfr_core import diffusion
from refbfr_core.diffusion import (
    GRADIENT_MODES,
    TOTAL_MODES,
    NonFiniteError,
    Trace,
    combine_gradients,
    pcgrad,
    total_gradient,
)
from refbfr_core.errors import ConfigError, UnknownNameError

Pair = tuple[Tensor, Tensor]
every_mode = pytest.mark.parametrize("mode", GRADIENT_MODES)


def draw(count: int = 200, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pair:
    """Random pairs of (3, 2, 2); lengths spread over four powers of ten, half of them in conflict."""
    generator = torch.Generator().manual_seed(seed)
    pivot, other = torch.randn(2, count, 3, 2, 2, generator=generator, dtype=torch.float64)
    length = 10 ** (4 * torch.rand(2, count, 1, 1, 1, generator=generator, dtype=torch.float64) - 2)
    return (pivot * length[0]).to(dtype), (other * length[1]).to(dtype)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(dim=1)


def norm(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


def plane(*pairs: tuple[float, float]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.float64)


# --- what holds for any pair ------------------------------------------------------------------------------------------


def test_the_draws_hold_both_cases():
    _, stats = combine_gradients(*draw(), return_stats=True)
    assert 60 < int(stats.conflict.sum()) < 140 and int((stats.k < 1).sum()) > 20


@pytest.mark.parametrize("mode", ["project", "full", "pivot"])
@pytest.mark.parametrize("seed", range(3))
def test_the_pivot_is_never_worked_against(mode, seed):
    pivot, other = draw(seed=seed)
    gained, square = dot(combine_gradients(pivot, other, mode), pivot), dot(pivot, pivot)
    assert bool((gained >= square - 1e-12 * norm(pivot) * (norm(pivot) + norm(other))).all())


def test_a_plain_sum_and_pcgrad_keep_no_such_promise():
    pivot, other = draw()
    for found in (combine_gradients(pivot, other, "sum"), pcgrad(pivot, other)):
        assert bool((dot(found, pivot) < 0.9 * dot(pivot, pivot)).any())


@pytest.mark.parametrize("seed", range(3))
def test_in_a_conflict_the_rest_is_orthogonal_and_no_longer_than_the_pivot(seed):
    pivot, other = draw(seed=seed)
    full, stats = combine_gradients(pivot, other, "full", return_stats=True)
    added = full - pivot
    c = stats.conflict
    assert torch.equal(c, dot(pivot, other) < 0)
    assert bool((dot(added, pivot).abs() <= 1e-12 * norm(pivot) * norm(other))[c].all())
    assert bool((norm(added) <= norm(pivot) * (1 + 1e-12))[c].all())
    assert bool(((stats.k > 0) & (stats.k <= 1)).all()) and bool((stats.k[~c] == 1).all())
    assert bool((stats.k < 1).eq(c & (stats.projected_norm > stats.pivot_norm)).all())


def test_without_a_conflict_all_three_ablations_are_the_plain_sum():
    pivot, other = draw()
    c = dot(pivot, other) < 0
    ablations = [combine_gradients(pivot, other, mode) for mode in ("sum", "project", "full")]
    for found in (*ablations, pcgrad(pivot, other)):
        assert torch.equal(found[~c], (pivot + other)[~c])


def test_an_aligned_gradient_is_never_capped():
    pivot, other = plane((1, 0)), plane((1e6, 1e6))
    assert combine_gradients(pivot, other).tolist() == [[1e6 + 1, 1e6]]


def test_by_hand():
    pivot, other = plane((1, 0), (2, 0), (1, 0)), plane((-1, 4), (-1, 1), (1, 4))
    full, stats = combine_gradients(pivot, other, return_stats=True)
    assert full.tolist() == [[1, 1], [2, 1], [2, 4]]
    assert combine_gradients(pivot, other, "project").tolist() == [[1, 4], [2, 1], [2, 4]]
    assert combine_gradients(pivot, other, "sum").tolist() == [[0, 4], [1, 1], [2, 4]]
    assert stats.k.tolist() == [0.25, 1, 1] and stats.conflict.tolist() == [True, True, False]
    assert stats.dot.tolist() == [-1, -2, 1] and stats.projected_norm.tolist() == [4, 1, math.sqrt(17)]
    # PCGrad on the first pair: (-1, 4) loses (-1, 0); (1, 0) loses (1/17) (1, -4) and keeps (16/17, 4/17).
    assert torch.allclose(pcgrad(pivot, other)[0], torch.tensor([16 / 17, 4 + 4 / 17], dtype=torch.float64), rtol=1e-15)


@every_mode
@pytest.mark.parametrize("factor", [1e-300, 1e-40, 1e-30, 3.7, 1e30, 1e300])
def test_a_common_factor_passes_through(mode, factor):
    pivot, other = draw()
    expected, stats = combine_gradients(pivot, other, mode, return_stats=True)
    scaled, scaled_stats = combine_gradients(factor * pivot, factor * other, mode, return_stats=True)
    size = (norm(pivot) + norm(other))[:, None, None, None]
    assert bool(((scaled / factor - expected).abs() <= 1e-12 * size).all())
    assert torch.equal(scaled_stats.conflict, stats.conflict)
    assert torch.allclose(scaled_stats.k, stats.k, rtol=1e-11) and torch.allclose(scaled_stats.cosine, stats.cosine)


@every_mode
@pytest.mark.parametrize("exponent", [-90, -60, 90, 110])
def test_powers_of_two_pass_through_exactly_in_float32(mode, exponent):
    pivot, other = draw(dtype=torch.float32)
    scaled = combine_gradients(pivot * 2.0**exponent, other * 2.0**exponent, mode)
    assert torch.equal(scaled, combine_gradients(pivot, other, mode) * 2.0**exponent)


@pytest.mark.parametrize("ratio", [1e-200, 1e-20, 1e20, 1e200])
def test_very_different_lengths(ratio):
    pivot, other = plane((ratio, 0)), plane((-3, 4))
    full, stats = combine_gradients(pivot, other, return_stats=True)
    assert torch.allclose(full / ratio, plane((1, min(1, 4 / ratio))), rtol=1e-12)
    assert torch.allclose(stats.cosine, torch.tensor([-0.6], dtype=torch.float64)) and bool(stats.conflict)


@every_mode
def test_each_sample_is_for_itself(mode):
    pivot, other = draw(20)
    together = combine_gradients(pivot, other, mode)
    alone = torch.cat([combine_gradients(p[None], o[None], mode) for p, o in zip(pivot, other, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-13, atol=0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(combine_gradients(pivot[order], other[order], mode), together[order], rtol=1e-13, atol=0)
    # A neighbour of any size changes nothing.
    pivot[7] *= 1e9
    changed = combine_gradients(pivot, other, mode)
    keep = torch.arange(20) != 7
    assert torch.allclose(changed[keep], together[keep], rtol=1e-13, atol=0)


@every_mode
def test_the_arrangement_of_the_numbers_does_not_matter(mode):
    pivot, other = draw(20)
    flat = combine_gradients(pivot.flatten(1), other.flatten(1), mode)
    assert torch.allclose(combine_gradients(pivot, other, mode).flatten(1), flat, rtol=1e-13)
    # Strided views, as gradients of channels-last pictures are.
    strided = [x.contiguous(memory_format=torch.channels_last) for x in (pivot, other)]
    assert torch.allclose(combine_gradients(*strided, mode).flatten(1), flat, rtol=1e-12)


def test_pcgrad_has_no_pivot():
    pivot, other = draw()
    assert torch.allclose(pcgrad(pivot, other), pcgrad(other, pivot), rtol=1e-13)
    c = dot(pivot, other) < 0
    assert bool((dot(pcgrad(pivot, other), pivot)[c] > 0).all() and (dot(pcgrad(pivot, other), other)[c] > 0).all())


# --- zero vectors, opposition, and where the result jumps -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "project", "full"])
def test_zeros_and_opposition(mode):
    pivot, other = plane((0, 0), (3, 4), (0, 0), (3, 4), (3, 4)), plane((3, 4), (0, 0), (0, 0), (-3, -4), (-9, -12))
    found, stats = combine_gradients(pivot, other, mode, return_stats=True)
    opposed = [[0, 0], [-6, -8]] if mode == "sum" else [[3, 4], [3, 4]]
    assert found.tolist() == [[3, 4], [3, 4], [0, 0], *opposed]
    assert stats.k.tolist() == [1, 1, 1, 1, 1]
    assert stats.angle.isnan().tolist() == [True, True, True, False, False]
    assert stats.angle[3:].tolist() == [180, 180]
    assert torch.isfinite(pcgrad(pivot, other)).all()


def jump(length: float, turn: float) -> float:
    """How far the result moves when ``other`` of this length turns by ``turn`` degrees through the right angle."""
    angle = torch.deg2rad(torch.tensor([90 - turn / 2, 90 + turn / 2], dtype=torch.float64))
    other = length * torch.stack([angle.cos(), angle.sin()], dim=1)
    before, after = combine_gradients(plane((1, 0), (1, 0)), other)
    return float((before - after).norm())


@pytest.mark.parametrize("length", [0.01, 0.5, 1.0])
def test_no_jump_at_the_right_angle_while_the_other_is_no_longer_than_the_pivot(length):
    assert jump(length, 1e-6) <= 1e-7 * length


@pytest.mark.parametrize("length", [1.5, 3.0, 100.0])
def test_beyond_that_the_jump_is_the_difference_in_length(length):
    # The cap ends where the conflict ends.
    assert jump(length, 1e-6) == pytest.approx(length - 1, rel=1e-5)


def test_no_jump_anywhere_else():
    # Small steps around the circle, starting beyond the right angle and ending before it.
    angle = torch.deg2rad(torch.linspace(90.001, 269.999, 2000, dtype=torch.float64))
    for length in (0.3, 1.0, 3.0):
        other = length * torch.stack([angle.cos(), angle.sin()], dim=1)
        # 1.02 keeps the border where the cap sets in (projected length = pivot length) inside the sweep.
        found = combine_gradients(plane((1.02, 0)).expand_as(other), other)
        assert float((found[1:] - found[:-1]).norm(dim=1).max()) < 4 * length * math.radians(180 / 2000)


# --- totals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", TOTAL_MODES)
def test_the_total_is_the_sum_of_two_levels_with_the_pivots_of_the_article(mode):
    (low_c, low_r), (high_c, high_r) = draw(seed=1), draw(seed=2)
    total, (low, high) = total_gradient(low_c, low_r, high_c, high_r, mode, return_stats=True)
    assert torch.equal(total, total_gradient(low_c, low_r, high_c, high_r, mode))
    if mode in ("A5", "c-only"):
        expected = low_c + high_c
    elif mode in ("A6", "r-only"):
        expected = low_r + high_r
    else:
        level = {"A1": "sum", "A2": "project"}.get(mode, mode)
        expected = combine_gradients(low_c, low_r, level) + combine_gradients(high_r, high_c, level)
    assert torch.allclose(total, expected, rtol=1e-13, atol=1e-14)
    assert torch.allclose(low.pivot_norm, norm(low_c)) and torch.allclose(high.pivot_norm, norm(high_r))


def test_statistics_describe_the_pair_in_every_mode():
    pivot, other = draw()
    every = {mode: combine_gradients(pivot, other, mode, return_stats=True) for mode in GRADIENT_MODES}
    for mode, (found, stats) in every.items():
        assert torch.allclose(stats.result_norm, norm(found))
        assert torch.allclose(stats.pivot_norm, norm(pivot)) and torch.allclose(stats.other_norm, norm(other))
        assert torch.allclose(stats.cosine, dot(pivot, other) / norm(pivot) / norm(other))
        assert torch.allclose(torch.cos(torch.deg2rad(stats.angle)), stats.cosine)
        assert all(value.shape == (200,) for value in stats.named().values()), mode
    assert every["pivot"][1].k.unique().tolist() == [0] and every["other"][1].k.unique().tolist() == [1]
    assert torch.equal(every["pivot"][0], pivot) and torch.equal(every["other"][0], other)
    assert torch.equal(every["sum"][1].projected_norm, every["sum"][1].other_norm)


def test_statistics_travel_through_a_sampling_trace():
    schedule = diffusion.make_schedule("pdgrad")
    x, trace = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), Trace(keep=())

    def guidance(state: diffusion.StepState) -> diffusion.Correction:
        g, (low, high) = total_gradient(state.x0, -state.x0 + 0.1, state.eps, state.x0, return_stats=True)
        return diffusion.Correction(x0=state.x0 - 0.01 * g, stats=low.named("low_") | high.named("high_"))

    timesteps = diffusion.adm_timesteps(1000, 5)
    diffusion.sample(lambda x_t, t: 0.1 * x_t, x, timesteps, schedule, guidance=guidance, trace=trace)
    stats = trace.steps[-1].stats
    assert {"low_angle", "low_k", "high_conflict", "high_result_norm"} <= set(stats)
    assert stats["low_conflict"].tolist() == [1, 1] and stats["high_k"].shape == (2,)


# --- types and refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_mode
def test_the_result_has_the_type_of_the_inputs_and_the_accuracy_of_it(mode, dtype):
    pivot, other = draw(dtype=dtype)
    found, stats = combine_gradients(pivot, other, mode, return_stats=True)
    assert found.dtype is dtype and found.shape == pivot.shape and stats.k.dtype is torch.float64
    exact = combine_gradients(pivot.double(), other.double(), mode)
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


def test_gradients_that_carry_a_graph_are_fine_and_stay_as_they_are():
    pivot, other = draw(3)
    pivot.requires_grad_()
    before = pivot.detach().clone(), other.clone()
    assert not combine_gradients(pivot, other).requires_grad
    assert torch.equal(pivot.detach(), before[0]) and torch.equal(other, before[1])


def test_a_mode_that_is_none():
    pivot, other = draw(2)
    with pytest.raises(UnknownNameError, match="Did you mean 'project'"):
        combine_gradients(pivot, other, "projected")
    with pytest.raises(UnknownNameError, match="A5"):
        total_gradient(pivot, other, pivot, other, "A4")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (torch.ones(2, 3, 4, 5), "shape"),
        (torch.ones(1, 3, 4, 4), "shape"),
        (torch.ones(2, 3, 4, 4, dtype=torch.float64), "dtype"),
        (torch.ones(2, 3, 4, 4, dtype=torch.long), "floating-point"),
        (torch.ones(2, 3, 4, 4, device="meta"), "device"),
        (None, "NoneType"),
    ],
)
def test_pairs_that_do_not_belong_together(other, words):
    pivot = torch.ones(2, 3, 4, 4)
    for attempt in (combine_gradients, pcgrad):
        with pytest.raises(ConfigError, match=words):
            attempt(pivot, other)
    with pytest.raises(ConfigError, match=words):
        total_gradient(pivot, pivot, pivot, other)


@pytest.mark.parametrize("shape", [(5,), (), (2, 0), (0, 3, 4, 4)])
def test_what_is_no_batch_of_vectors(shape):
    with pytest.raises(ConfigError, match="expected"):
        combine_gradients(torch.ones(shape), torch.ones(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named(bad):
    pivot, other = draw(4)
    other[2, 1] = bad
    for attempt in (combine_gradients, pcgrad):
        with pytest.raises(NonFiniteError, match=r"(other|second).*\[2\] of a batch of 4"):
            attempt(pivot, other)
    with pytest.raises(NonFiniteError, match=r"high_r.*\[2\]"):
        total_gradient(pivot, pivot, pivot, other)
