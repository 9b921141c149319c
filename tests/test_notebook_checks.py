"""The checks at the end of notebooks pass when they should, fail when they should, and always say the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refbfr_core.errors import ConfigError
from refbfr_core.notebook import (
    check,
    check_above,
    check_below,
    check_between,
    check_close,
    check_interval_above,
)


@pytest.mark.parametrize("truth", [True, np.bool_(True), torch.tensor(True), np.array([True]), torch.tensor([1.0]) > 0])
def test_check_passes_and_prints_the_numbers(truth, capsys):
    check(truth, "the sky is up", height_in_metres=3.0, count=12000)
    assert capsys.readouterr().out == "✓ the sky is up: height in metres = 3, count = 12,000\n"


@pytest.mark.parametrize("lie", [False, np.bool_(False), torch.tensor(False)])
def test_check_fails_with_the_numbers(lie):
    with pytest.raises(AssertionError, match="psnr = 12.35"):
        check(lie, "restored is closer", psnr=12.3456)


@pytest.mark.parametrize("unclear", [None, "yes", [True], np.array([True, False]), torch.ones(2) > 0])
def test_check_refuses_what_is_not_one_truth_value(unclear):
    with pytest.raises(ConfigError, match="one truth value"):
        check(unclear, "unclear")


def test_close_compares_everywhere(capsys):
    check_close(torch.tensor([1.0, 2.0]), [1.0, 2.0005], 1e-3, "equal")
    assert "0.0005" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="largest difference 0.5"):
        check_close([0.0, 1.0], [0.0, 1.5], 0.1, "equal")
    with pytest.raises(AssertionError, match=r"shapes are \(2,\) and \(3,\)"):
        check_close([0.0, 1.0], [0.0, 1.0, 2.0], 0.1, "equal")
    with pytest.raises(AssertionError):
        check_close([float("nan")], [float("nan")], 1.0, "not a number never passes")
    with pytest.raises(AssertionError):
        check_close([], [], 1.0, "nothing was compared")


def test_bounds():
    check_above(2.0, 1.0, "above")
    check_below(1.0, 2.0, "below")
    check_between(1.0, 1.0, 2.0, "between")
    for failing in (
        lambda: check_above(1.0, 1.0, "m"),
        lambda: check_below(2.0, 2.0, "m"),
        lambda: check_between(2.1, 1.0, 2.0, "m"),
        lambda: check_above(float("nan"), 0.0, "m"),
        lambda: check_below(float("nan"), 0.0, "m"),
    ):
        with pytest.raises(AssertionError, match="measured"):
            failing()


def test_interval_check_looks_at_the_lower_end():
    values = np.random.default_rng(0).normal(0.5, 0.5, 50)
    interval = check_interval_above(values, 0.2, "right − wrong")
    assert 0.2 < interval.low < interval.mean
    with pytest.raises(AssertionError, match="must lie above"):
        check_interval_above(values, interval.mean - 0.01, "right − wrong")
    with pytest.raises(ConfigError):
        check_interval_above([0.5], 0.0, "one value has no interval")
    with pytest.raises(ConfigError, match="not finite"):
        check_interval_above([0.5, 0.6, float("nan")], 0.0, "a failed row")
