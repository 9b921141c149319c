"""Means, intervals and comparisons with the best arm, on rows whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from table_rows import random_rows, table_rows

from refbfr_core.benchmark.tables import significance as sig
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.metrics import mean_deg, mean_interval, paired_interval

A, B, C = ("Input", "none"), ("ReF-LDM", "right"), ("ReF-LDM", "wrong")


def standing(frame: pd.DataFrame, arm, metric="ids") -> pd.Series:
    own = frame[(frame.system == arm[0]) & (frame.references == arm[1]) & (frame.metric == metric)]
    assert len(own) == 1
    return own.iloc[0]


def test_one_picture_a_person_gives_the_plain_bootstrap():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=15), rng.normal(size=15) + 5
    frame = sig.standings(table_rows({"ids": {A: list(a), B: list(b)}}), ["ids"])
    mean = mean_interval(a)
    assert tuple(standing(frame, A)[["measured", "low", "high"]]) == (mean.mean, mean.low, mean.high)
    paired = paired_interval(a, b)
    found = standing(frame, A)
    assert found.to_best == pytest.approx(paired.mean)
    assert (found.to_best_low, found.to_best_high) == pytest.approx((paired.low, paired.high))
    assert found.to_best_level == pytest.approx(0.95) and found.common == 15
    assert standing(frame, B).verdict == sig.BEST and found.verdict == sig.WORSE


def test_equal_groups_give_the_interval_of_their_means():
    values = np.random.default_rng(1).normal(size=24)
    groups = np.repeat([f"g{k}" for k in range(8)], 3)
    found, expected = sig.grouped_interval(values, groups), mean_interval(values.reshape(8, 3).mean(axis=1))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high), rel=1e-12)
    assert found.n == 8


def test_constant_groups_of_unequal_size_have_the_ends_that_counting_gives():
    # Two people, one picture of 0 and three of 1: half of the resamples mix them (3/4), a quarter each is 0 or 1.
    found = sig.grouped_interval(np.array([0.0, 1, 1, 1]), ["a", "b", "b", "b"])
    assert (found.mean, found.low, found.high, found.n) == (0.75, 0.0, 1.0, 2)
    inner = sig.grouped_interval(np.array([0.0, 1, 1, 1]), ["a", "b", "b", "b"], level=0.4)
    assert (inner.low, inner.high) == (0.75, 0.75)


def test_pictures_of_one_person_do_not_count_as_independent():
    rng = np.random.default_rng(2)
    people = rng.normal(size=10)
    values = np.repeat(people, 20) + 0.01 * rng.normal(size=200)
    groups = np.repeat(np.arange(10), 20)
    clustered, naive = sig.grouped_interval(values, groups), mean_interval(values)
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_a_single_person_has_no_interval_and_no_verdict():
    rows = table_rows({"ids": {A: [0.1, 0.2], B: [0.5, 0.6]}}, groups=["one", "one"])
    frame = sig.standings(rows, ["ids"])
    assert standing(frame, A).verdict == sig.FEW and np.isnan(standing(frame, A).low)
    assert standing(frame, A).to_best == pytest.approx(-0.4)
    assert standing(frame, A).groups == 1 and standing(frame, A).n == 2


@pytest.mark.parametrize(("metric", "step"), [("ids", 0.05), ("lpips", -0.05)])
def test_planted_differences_are_found_and_planted_equality_is_not(metric, step):
    rng = np.random.default_rng(3)
    hard = rng.normal(size=40)  # shared by all arms; pairing removes it
    best = hard + 0.02 * rng.normal(size=40)
    equal = best + 0.02 * rng.permutation(np.repeat([-1.0, 1.0], 20))
    worse = best - step + 0.02 * rng.normal(size=40)
    frame = sig.standings(table_rows({metric: {A: list(worse), B: list(best + step * 1e-3), C: list(equal)}}), [metric])
    assert standing(frame, A, metric).verdict == sig.WORSE
    assert np.sign(standing(frame, A, metric).to_best) == -np.sign(step)
    assert {standing(frame, B, metric).verdict, standing(frame, C, metric).verdict} == {sig.BEST, sig.TIED}
    assert standing(frame, A, metric).to_best_level == pytest.approx(1 - 0.05 / 2)


def test_the_truly_best_arm_is_rarely_called_worse():
    # Four equal arms: whichever is best by chance, a given other one is called worse in at most 5 % of the columns.
    arms = [(f"system-{k}", "none") for k in range(4)]
    metrics = [f"bias-{colour}" for colour in ("red", "green", "blue")]
    wrong, trials = 0, 12
    for trial in range(trials):
        values = np.random.default_rng(trial).normal(size=(3, 4, 30))
        scores = {name: dict(zip(arms, values[place].tolist(), strict=True)) for place, name in enumerate(metrics)}
        frame = sig.standings(table_rows(scores), metrics, resamples=1000)
        wrong += sum(standing(frame, arms[0], metric).verdict == sig.WORSE for metric in metrics)
    assert wrong <= 5  # of 36; at most 1.8 expected


def test_scores_that_are_best_at_zero_are_compared_by_their_distance_to_it():
    rng = np.random.default_rng(4)
    cancels = np.repeat([-3.0, 3.0], 15) + 0.1 * rng.normal(size=30)
    close = 0.5 + 0.1 * rng.normal(size=30)
    frame = sig.standings(table_rows({"detail": {A: list(cancels), B: list(close)}}), ["detail"])
    assert abs(standing(frame, A, "detail").measured) < abs(standing(frame, B, "detail").measured)
    assert standing(frame, B, "detail").best and standing(frame, A, "detail").verdict == sig.WORSE
    assert standing(frame, A, "detail").to_best == pytest.approx(np.abs(cancels).mean() - np.abs(close).mean())


def test_failed_rows_change_counts_and_no_mean():
    scores = {A: [0.1, 0.2, 0.3, 0.4], B: [0.6, 0.7, 0.8, 0.9]}
    whole = sig.standings(table_rows({"ids": scores}), ["ids"])
    failing = table_rows({"ids": {arm: [*values, None, None] for arm, values in scores.items()}})
    failing.loc[failing.status == "failed", "ids"] = 1e9  # whatever stands there is no score
    frame = sig.standings(failing, ["ids"])
    assert list(frame.failed) == [2, 2] and list(frame.n) == [4, 4]
    pd.testing.assert_frame_equal(frame.drop(columns="failed"), whole.drop(columns="failed"))


def test_nobody_gains_by_failing_on_hard_pictures():
    easy, hard = [0.9] * 10, [0.1] * 10
    all_of_them = [value + 0.01 * (k % 3) for k, value in enumerate(easy + hard)]
    picky = [value - 0.05 for value in all_of_them[:10]] + [None] * 5 + [value - 0.05 for value in all_of_them[15:]]
    frame = sig.standings(table_rows({"ids": {B: all_of_them, C: picky}}), ["ids"])
    assert standing(frame, C).measured > standing(frame, B).measured
    assert standing(frame, B).best and standing(frame, C).verdict == sig.WORSE
    assert standing(frame, C).to_best == pytest.approx(-0.05) and standing(frame, C).common == 15


def test_an_arm_with_few_pictures_is_never_best():
    frame = sig.standings(table_rows({"ids": {B: [0.5] * 10, C: [0.9] * 4 + [None] * 6}}), ["ids"])
    assert standing(frame, B).best and not standing(frame, C).best
    assert standing(frame, C).verdict == sig.BETTER and standing(frame, C).common == 4


def test_an_arm_that_failed_everywhere_and_an_arm_alone():
    frame = sig.standings(table_rows({"ids": {A: [None, None, None], B: [0.1, 0.2, 0.3]}}), ["ids"])
    lost, alone = standing(frame, A), standing(frame, B)
    assert np.isnan(lost.measured) and lost.n == 0 and lost.failed == 3 and lost.verdict == "" and not lost.best
    assert alone.best and alone.verdict == sig.ALONE


def test_missing_and_infinite_scores():
    psnr = {A: [20.0, 21, 22], B: [np.inf, np.inf, np.inf]}
    rows = table_rows({"psnr": psnr, "ids": {A: [0.1, None, 0.3], B: [1, 1, 1]}})
    frame = sig.standings(rows, ["psnr", "ids"])
    assert np.isinf(standing(frame, B, "psnr").measured) and np.isnan(standing(frame, B, "psnr").low)
    assert standing(frame, B, "psnr").best and standing(frame, A, "psnr").verdict == sig.FEW
    assert standing(frame, A, "ids").unscored == 1 and standing(frame, A, "ids").n == 2


def test_the_order_of_rows_is_irrelevant():
    rows = random_rows([A, B, C], {"ids": 0.3, "psnr": 20.0}, items=21, groups=[f"g{k // 4}" for k in range(21)])
    frame = sig.standings(rows, ["ids", "psnr"])
    for seed in range(3):
        pd.testing.assert_frame_equal(sig.standings(rows.sample(frac=1, random_state=seed), ["ids", "psnr"]), frame)


def test_deg_has_two_protocols():
    torch = pytest.importorskip("torch")
    angles = [0.0, 0.5, 40.0, 50.0, 60.0]
    rows = sig.with_deg_vqfr(table_rows({"deg": {A: angles, B: [70.0] * 5}}))
    frame = sig.standings(rows, ["deg", sig.DEG_VQFR])
    for metric, protocol in (("deg", "all"), (sig.DEG_VQFR, "vqfr")):
        expected = mean_deg(torch.tensor(angles, dtype=torch.float64), protocol)
        found = standing(frame, A, metric)
        assert found.measured == pytest.approx(expected.value) and found.n == expected.counted
        assert found.unscored == expected.left_out and found.best
    with pytest.raises(ConfigError, match="'deg'"):
        sig.with_deg_vqfr(rows.drop(columns="deg"))


def test_rows_that_are_none_are_refused():
    rows = table_rows({"ids": {A: [0.1, 0.2], B: [0.3, 0.4]}})
    with pytest.raises(UnknownNameError, match="metric"):
        sig.standings(rows, ["idz"])
    with pytest.raises(ConfigError, match="psnr"):
        sig.standings(rows, ["psnr"])
    with pytest.raises(ConfigError, match="come twice"):
        sig.standings(pd.concat([rows, rows[:1]]), ["ids"])
    with pytest.raises(ConfigError, match="several groups"):
        sig.standings(rows.assign(group=["a", "b", "c", "d"]), ["ids"])
    with pytest.raises(ConfigError, match="not finite"):
        sig.grouped_interval(np.array([1.0, np.nan, 2.0]), ["a", "b", "c"])
    with pytest.raises(ConfigError, match="its group"):
        sig.grouped_interval(np.array([1.0, 2.0]), ["a"])
    assert sig.standings(rows[:0], ["ids"]).empty
