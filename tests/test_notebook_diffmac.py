"""Figures of notebook 09: the bottleneck on one number, and what it passes on faces."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.metrics import Interval
from refbfr_core.models.bottleneck import kl_exact, kl_printed
from refbfr_core.notebook import bottleneck_figures as dials
from refbfr_core.notebook import diffmac_figures as figures
from refbfr_core.notebook import frame_strip
from refbfr_core.notebook import scalar_bottleneck as scalar

SHARES = torch.tensor([0.0, 0.1, 0.5, 0.9], dtype=torch.float64)


# --- one number -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "r"), [(0.05, 0.5), (0.3, -2.0), (0.7, -2.0), (0.95, 0.5)])
def test_draws_find_the_exact_divergence_and_not_the_printed_one(share, r):
    found, error = scalar.kl_by_draws(share, r, draws=100_000, seed=1)
    at, x = torch.tensor(share, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    assert found == pytest.approx(float(kl_exact(at, x)), abs=4 * error)
    assert abs(found - float(kl_printed(at, x))) > 10 * error


def test_draws_at_no_share_and_bad_ones():
    assert scalar.kl_by_draws(0.0, 3.0, draws=10) == (0.0, 0.0)
    assert scalar.kl_by_draws(0.5, 1.0, seed=3) == scalar.kl_by_draws(0.5, 1.0, seed=3)
    for share, draws in ((1.0, 10), (-0.1, 10), (0.5, 1)):
        with pytest.raises(ConfigError, match="two draws"):
            scalar.kl_by_draws(share, 0.0, draws)


def test_the_squared_reading_replaces_the_logarithm_alone():
    log = (1 - SHARES).log()
    expected = -log.square() + 0.5 * ((1 - SHARES).square() + (SHARES * 0.5).square() - 1)
    assert torch.allclose(scalar.kl_square(SHARES, torch.tensor(0.5, dtype=torch.float64)), expected)


def test_the_bound_is_the_mean_over_r_and_its_gap_a_divergence():
    r = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.stack([kl_exact(share, r).mean() for share in SHARES])
    assert torch.allclose(scalar.bound(SHARES), mean, atol=5e-3)
    whole = scalar.total_variance(SHARES)
    gap = kl_divergence(Normal(0.0, whole.sqrt()), Normal(0.0, 1.0))
    assert torch.allclose(scalar.bound(SHARES) - scalar.mutual_information(SHARES), gap, atol=1e-12)


def test_the_information_is_that_of_a_gaussian_channel():
    # The correlation rho of two Gaussians gives -log(1 - rho^2) / 2.
    rho = SHARES.square() / scalar.total_variance(SHARES)
    assert torch.allclose(scalar.mutual_information(SHARES), -0.5 * (1 - rho).log(), atol=1e-12)


@pytest.mark.parametrize("compensation", ["noise", "none"])
def test_the_expected_loss_is_what_draws_give(compensation):
    draws, error, mean = torch.Generator().manual_seed(2), 0.5, 2.0
    noise = torch.randn(3, 400_000, generator=draws, dtype=torch.float64)
    truth = mean + noise[0]
    first = truth + error * noise[1]
    filler = mean + noise[2] if compensation == "noise" else 0.0
    for share in SHARES:
        z = share * first + (1 - share) * filler
        found = (z - truth).square().mean() + 0.3 * kl_exact(share, first - mean).mean()
        assert float(scalar.expected_loss(share, 0.3, compensation, error)) == pytest.approx(float(found), rel=0.01)
    with pytest.raises(UnknownNameError):
        scalar.expected_loss(SHARES, 0.1, "nothing", error)


def test_a_trained_dial_ends_where_the_loss_is_smallest():
    betas = [0.05, 1.0]
    for kind in ("noise", "none"):
        walk = scalar.train_shares(betas, kind, steps=250)
        assert walk.shares.shape == (251, 2) and walk.betas == (0.05, 1.0)
        assert walk.shares[0].tolist() == pytest.approx([1 / (1 + math.exp(-2))] * 2)
        best = [scalar.best_share(beta, kind, 0.5) for beta in betas]
        assert walk.shares[-1].tolist() == pytest.approx(best, abs=0.04)
    assert float(walk.kept[0]) == pytest.approx(1)


def test_with_an_identity_the_price_falls_and_everything_passes():
    walk, noisy = (scalar.train_shares([0.1], kind, steps=250) for kind in ("identity", "noise"))
    assert float(walk.shares[-1]) < 0.2 < float(noisy.shares[-1])
    assert float(walk.information) < 0.1 < float(noisy.information)
    assert float(walk.kept) == pytest.approx(1) and float(noisy.kept) < 0.99
    # No linear function of R is nearer to the truth.
    assert float(walk.reconstruction) == pytest.approx(0.25 / 1.25, abs=0.01)
    assert float(walk.reconstruction) < float(noisy.reconstruction)


@pytest.mark.parametrize("betas", [[], [0.1, -1.0]])
def test_betas_that_cannot_be_trained(betas):
    with pytest.raises(ConfigError, match="betas"):
        scalar.train_shares(betas, "noise")
    with pytest.raises(UnknownNameError):
        scalar.train_shares([0.1], "nothing")


# --- its figures ------------------------------------------------------------------------------------------------------


def test_the_dial_draws_both_densities():
    figure = dials.dial_figure([0.3, 1.0], [-2.0, 0.5])
    left, right = figure.axes
    z, height = left.lines[0].get_data()
    expected = Normal(-0.6, 0.7).log_prob(torch.as_tensor(z)).exp()
    assert torch.allclose(torch.as_tensor(height), expected) and left.get_title() == "λ = 0.3"
    # At lambda = 1 only a spike and the tick are left of each.
    assert len(right.lines) == 2 < len(left.lines)
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["q(Z)", "p(Z | r = -2)", "p(Z | r = 0.5)"]


def test_frames_of_the_dial_make_a_strip():
    frames, labels = dials.dial_frames([0.0, 0.5, 1.0], [-2.0, 0.5])
    assert all(frame.shape == (3, 190, 280) for frame in frames) and float((frames[0] - frames[1]).abs().max()) > 0.3
    assert labels[0] == "lambda 0.00: 0.00, 0.00 nats at r = -2, 0.5" and labels[2].endswith("infinitely many nats")
    cost = float(kl_exact(torch.tensor(0.5), torch.tensor(-2.0)))
    assert labels[1].startswith(f"lambda 0.50: {cost:.2f}, ")
    assert frame_strip(frames, labels, alt="A dial that is turned from 0 to 1.").html.count("<img") == 3


def test_the_readings_are_lines_and_the_draws_dots():
    figure = dials.divergence_figure([0.5], draws=2000)
    (ax,) = figure.axes
    names = [line.get_label() for line in ax.lines[:4]]
    assert names == ["exact", "as printed", "log squared", "2,000 draws"]
    share, height = (torch.as_tensor(part) for part in ax.lines[1].get_data())
    assert torch.allclose(height, kl_printed(share, torch.tensor(0.5, dtype=torch.float64)))
    share, height = (torch.as_tensor(part, dtype=torch.float64) for part in ax.lines[3].get_data())
    assert torch.allclose(height, kl_exact(share, torch.tensor(0.5)), atol=0.15)


def test_the_gap_figure_shows_a_gap():
    left, right = dials.bound_figure().axes
    upper, lower = (torch.as_tensor(line.get_ydata()) for line in left.lines)
    assert bool((upper >= lower - 1e-12).all())
    gap, dots = (torch.as_tensor(line.get_ydata()) for line in right.lines)
    assert torch.allclose(gap[::15], dots)


def test_walks_have_a_line_for_every_beta_and_dots_where_there_is_a_best():
    walks = {kind: scalar.train_shares([0.0, 1.0], kind, steps=3, batch=8) for kind in ("noise", "identity")}
    left, right = dials.walk_figure(walks, {"noise": [0.9, 0.5], "identity": [None, 0.0]}).axes
    assert len(left.lines) == 4 and len(right.lines) == 3 and left.get_title() == "noise"
    assert list(left.lines[2].get_ydata()) == walks["noise"].shares[:, 1].tolist()


# --- on faces ---------------------------------------------------------------------------------------------------------


def test_maps_are_drawn_on_one_range_with_their_means():
    maps = torch.stack([torch.full((4, 4), k / 10) for k in range(8)])
    figure = figures.map_figure(maps, 0.0, 1.0, "λ")
    own = figure.axes[:8]
    assert {ax.images[0].get_clim() for ax in own} == {(0.0, 1.0)}
    assert own[1].get_title() == "mean 1: 0.10" and own[4].get_title() == "log-var 0: 0.40"
    for count in (7, 0):
        with pytest.raises(ConfigError, match="as many"):
            figures.channel_names(count)


def test_histograms_have_area_one_and_stand_in_their_panel():
    normalised = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    normalised[:, 4:] = normalised[:, 4:].abs()
    left, right = figures.normalised_figure(normalised).axes
    assert [text.get_text() for text in right.get_legend().get_texts()][1:] == [f"log-var {k}" for k in range(4)]
    filled = [patch.get_xy() for patch in right.patches]
    assert min(x for outline in filled for x, y in outline if y > 0) >= -1e-6
    outline = left.patches[0].get_xy()
    # Every step of the outline stands twice, at the beginning and at the end of its bin.
    assert outline[:, 1].sum() / 2 * (10 / 80) == pytest.approx(1, abs=0.01) and left.get_title() == "means"


def test_shape_statistics_know_a_bell():
    draws = torch.Generator().manual_seed(0)
    normalised = torch.randn(4, 2, 100, 100, generator=draws)
    normalised[:, 1] = normalised[:, 1].exp()
    bell, skewed = figures.shape_statistics(normalised)
    assert bell["channel"] == "mean 0" and skewed["channel"] == "log-var 0"
    found = [bell[name] for name in ("mean", "deviation", "skewness", "excess kurtosis")]
    assert found == pytest.approx([0, 1, 0, 0], abs=0.06)
    assert skewed["skewness"] > 3 and skewed["excess kurtosis"] > 10


def test_shares_are_drawn_over_their_weights():
    heights = {weight: Interval(1 - weight, 0.9 - weight, 1 - weight, 9) for weight in (0.1, 0.01)}
    own = {weight: dict.fromkeys(figures.KINDS, height) for weight, height in heights.items()}
    left, right = figures.share_figure({"noise": own, "id": own}).axes
    weights, height = left.containers[0].lines[0].get_data()
    assert list(weights) == [0.01, 0.1] and list(height) == pytest.approx([0.99, 0.9])
    assert left.get_xscale() == "log" and right.get_title() == "log-variances"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["noise", "id"]


def test_means_by_kind_of_channel():
    maps = torch.cat([torch.full((2, 4, 3, 3), 0.2), torch.full((2, 4, 3, 3), 0.6)], dim=1)
    maps[1] += 0.1
    found = figures.kind_means(maps)
    assert found["all"].tolist() == pytest.approx([0.4, 0.5])
    assert found["means"].tolist() == pytest.approx([0.2, 0.3])
    assert found["log-variances"].tolist() == pytest.approx([0.6, 0.7])


def test_steps_down_compare_neighbours():
    columns = [torch.tensor([0.9, 0.8, 0.85]), torch.tensor([0.5, 0.4, 0.5]), torch.tensor([0.6, 0.45, 0.55])]
    first, second = figures.steps_down(columns)
    assert first.below() and first.mean == pytest.approx(-0.383, abs=1e-3)
    assert second.above()


def test_words_follow_the_interval():
    words = ("up", "down", "open")
    assert figures.decided(Interval(0.2, 0.1, 0.3, 9), *words) == "up"
    assert figures.decided(Interval(-0.2, -0.3, -0.1, 9), *words) == "down"
    assert figures.decided(Interval(0.0, -0.1, 0.1, 9), *words) == "open"
    assert figures.spread_text(torch.full((5,), 0.25), 1) == "0.2 [0.2, 0.2]"
