"""Bootstrap intervals against what theory says about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval, paired_interval


def test_mean_interval_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert interval.n == 400


def test_coverage_is_close_to_the_level() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        interval = mean_interval(generator.normal(size=40), level=0.9, resamples=500, seed=trial)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.82 <= hits / 200 <= 0.96


def test_pairing_removes_what_both_share() -> None:
    generator = np.random.default_rng(2)
    difficulty = generator.normal(0, 5, size=100)
    a = difficulty + 0.3 + generator.normal(0, 0.1, size=100)
    b = difficulty + generator.normal(0, 0.1, size=100)
    paired = paired_interval(a, b)
    assert paired.mean == pytest.approx((a - b).mean())
    assert paired.above(0.2) and paired.below(0.4)
    assert not mean_interval(a).above(0.0)


def test_constant_difference_has_no_width() -> None:
    interval = paired_interval([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_sign_follows_the_order() -> None:
    a, b = np.arange(10.0), np.arange(10.0) ** 1.1
    forward, backward = paired_interval(a, b), paired_interval(b, a)
    assert forward.mean == -backward.mean
    assert forward.low == pytest.approx(-backward.high, abs=0.05)


def test_same_seed_same_interval_and_tensors_are_welcome() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert mean_interval(values, seed=3) == mean_interval(values.numpy(), seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_wider_level_wider_interval_and_large_samples_fit_in_memory() -> None:
    values = np.random.default_rng(5).normal(size=30_000)
    narrow, wide = mean_interval(values, level=0.5, resamples=200), mean_interval(values, level=0.99, resamples=200)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_printed_form() -> None:
    assert str(Interval(0.1234, 0.1, 0.15, 128)) == "+0.123 [+0.100, +0.150] (95%, n=128)"


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], "at least two"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "equal length"),
        ([1.0, float("inf")], [1.0, 2.0], "not finite"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "at least two"),
        ([], [], "at least two"),
    ],
)
def test_bad_values_are_refused(a: list, b: list, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paired_interval(a, b)


@pytest.mark.parametrize("settings", [{"level": 95}, {"level": 0.0}, {"resamples": 10}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        mean_interval([1.0, 2.0], **settings)
