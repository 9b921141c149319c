"""Which arm of a table is best, and which cannot be told apart from it: bootstrap intervals over people.

Means are over pictures, as the papers print them. Pictures of one person are not independent, so intervals resample
people (the column "group") with all their pictures; where everybody has as many pictures, this is the interval of the
means of people. Differences are paired by picture, over the pictures that both arms restored.

The best arm is chosen by the data. That the truly best one is then called worse has a probability of at most
1 - `level` in a column, because each of the other arms - 1 intervals misses with at most its share of it (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.metrics import REGISTRY, Interval, mean_interval

LEVEL = 0.95
RESAMPLES = 10_000
LEAST_PEOPLE = 5
"""Intervals from fewer people say little: resampling so few of them knows only a handful of means."""
KEYS = ("dataset", "system", "references", "metric")
ROW_KEYS = ("dataset", "item", "group", "system", "references", "status", "reason")
"""Columns that rows need besides their metrics; "key" and others may stand there too."""

BEST, TIED, WORSE, BETTER, FEW, ALONE = (
    "best", "not distinguishable from the best", "worse than the best", "better than the best on common pictures",
    "too few people in common", "nothing to compare with",
)  # fmt: skip
DEG_VQFR = "deg-over-1"
"""Deg without pairs under one degree, as VQFR's script takes its mean."""

LEAST_SHARE = 0.5
"""An arm that restored fewer pictures than this share of what the fullest arm did is never called best."""

STANDING = (
    "measured", "low", "high", "n", "groups", "failed", "unscored", "best", "verdict", "to_best", "to_best_low",
    "to_best_high", "to_best_level", "common",
)  # fmt: skip
"""Columns of `standings` after `KEYS`."""

_AT_ONCE = 2_000_000

def direction(metric: str) -> str:
    """ "higher", "lower" or "zero": what is better, by the registry of metrics; raises UnknownNameError."""
    if metric not in REGISTRY:
        raise unknown_name("metric", metric, REGISTRY)
    return REGISTRY[metric].direction


def with_deg_vqfr(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `DEG_VQFR` of the same angles as "deg"; its mean leaves out pairs under one degree.

    Raises:
        ConfigError: the rows have no "deg".
    """
    if "deg" not in rows:
        raise ConfigError("the rows have no column 'deg'; measure it before asking for its second protocol.")
    return rows.assign(**{DEG_VQFR: rows["deg"]})


def grouped_interval(
    values: np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a mean over pictures, resampling groups of them; None for a single group.

    Args:
        values: (N,) finite scores or differences.
        groups: (N,) who is on each picture.
        level, resamples, seed: as in `refbfr_core.metrics.mean_interval`, which this is for groups of equal size.

    Returns:
        An interval whose `n` counts groups and whose `mean` is over pictures.

    Raises:
        ConfigError: values that are not finite, different lengths, settings out of range.
    """
    if len(values) != len(groups):
        raise ConfigError(f"{len(values)} values of {len(groups)} groups; give every value its group.")
    if not np.isfinite(np.asarray(values, np.float64)).all():  # pandas would leave NaN out of a sum without a word
        raise ConfigError("some of the values are not finite; drop those pictures first.")
    by_group = pd.Series(np.asarray(values, np.float64)).groupby(np.asarray(groups), sort=True)
    sums, sizes = by_group.sum().to_numpy(), by_group.size().to_numpy()
    if len(sums) < 2:
        return None
    means = mean_interval(sums / sizes, level, resamples, seed)
    if (sizes == sizes[0]).all():
        return means
    # A person with more pictures weighs more in the mean over pictures, so both sum and count are resampled.
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(sums))
    drawn = []
    for start in range(0, resamples, rows):
        index = generator.integers(0, len(sums), size=(min(rows, resamples - start), len(sums)))
        drawn.append(sums[index].sum(axis=1) / sizes[index].sum(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high), len(sums), level)


def standings(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of every arm, and its paired difference to the best arm of its dataset and metric.

    Failed rows enter no mean and are counted. An arm that failed somewhere is compared with the others on the pictures
    both have, so that a method does not gain by failing on hard ones. "Best" is who wins the most such comparisons of
    means (the best mean, when nobody failed); arms with fewer than `LEAST_SHARE` of the pictures take no part in that.
    Metrics that are best at zero are compared by their distance to it, picture by picture.

    Args:
        rows: one row a dataset, item and arm: `ROW_KEYS` and the metrics, NaN where there is no score.
        metrics: columns of rows; names of `refbfr_core.metrics.REGISTRY`. Values that a metric's protocol leaves out of
            a mean (`Metric.counts_from`) count as unscored.
        level: coverage of the intervals of means, and of all intervals to the best of a column together.
        resamples, seed: of the bootstrap.

    Returns:
        One line a dataset, arm and metric, sorted: `KEYS`, "measured", "low", "high" (NaN below two people), "n"
        (pictures with a score), "groups", "failed", "unscored" (restored, but without this score), "best", "verdict",
        "to_best" (mean difference, arm minus best), "to_best_low", "to_best_high", "to_best_level", "common".

    Raises:
        ConfigError: missing columns, or several rows of one picture and arm. UnknownNameError: no such metric.
    """
    check_rows(rows, metrics)
    lines = []
    for dataset, own in rows.sort_values(["dataset", "item", "system", "references"]).groupby("dataset", sort=True):
        arms = sorted({*zip(own.system, own.references, strict=True)})
        groups = own.drop_duplicates("item").set_index("item").group
        fine = own[own.status == OK]
        for metric in metrics:
            scores = _scores(fine, groups.index, arms, metric)
            best, versus = _versus_best(scores, groups, metric, level, resamples, seed)
            for arm in arms:
                of_arm = (own.system == arm[0]) & (own.references == arm[1])
                restored, scored = int((of_arm & (own.status == OK)).sum()), int(scores[arm].notna().sum())
                counts = {"failed": int(of_arm.sum()) - restored, "unscored": restored - scored}
                about = dict(zip(KEYS, (dataset, *arm, metric), strict=True))
                mean = _mean(scores[arm].dropna(), groups, level, resamples, seed)
                lines.append({**about, **mean, **counts, "best": arm == best, **versus[arm]})
    return pd.DataFrame(lines, columns=[*KEYS, *STANDING])


def check_rows(rows: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Raises ConfigError or UnknownNameError, as `standings` does, for rows that are no rows of a table."""
    for metric in metrics:
        direction(metric)
    if absent := [name for name in (*ROW_KEYS, *metrics) if name not in rows]:
        raise ConfigError(f"the rows have no columns {absent}; they have {list(rows.columns)}.")
    twice = rows.duplicated(["dataset", "item", "system", "references"])
    if twice.any():
        first = rows[twice].iloc[0]
        raise ConfigError(
            f"{int(twice.sum())} rows come twice, the first for {first['dataset']}, {first['item']}, {first.system} "
            f"({first.references}); a picture and arm has one row. Merge runs by their keys first."
        )
    if (names := rows.groupby(["dataset", "item"]).group.nunique()).gt(1).any():
        raise ConfigError(f"{names.idxmax()} belongs to several groups; a picture shows one person.")


def _scores(fine: pd.DataFrame, items: pd.Index, arms: Sequence[tuple[str, str]], metric: str) -> pd.DataFrame:
    """Items down, arms right; NaN where an arm failed or has no number that counts."""
    columns = {}
    for arm in arms:
        own = fine[(fine.system == arm[0]) & (fine.references == arm[1])]
        values = own.set_index("item")[metric].astype(np.float64).reindex(items)
        columns[arm] = values.where(values >= REGISTRY[metric].counts_from)
    return pd.DataFrame(columns)


def _mean(values: pd.Series, groups: pd.Series, level: float, resamples: int, seed: int) -> dict[str, Any]:
    names = groups.loc[values.index].to_numpy()
    found = {"measured": float(values.mean()) if len(values) else np.nan, "low": np.nan, "high": np.nan}
    # A PSNR of a picture with itself is infinite; its mean is too, and has no interval.
    if np.isfinite(values).all() and (interval := _interval(values, names, level, resamples, seed)):
        found = {"measured": interval.mean, "low": interval.low, "high": interval.high}
    return {**found, "n": len(values), "groups": len(set(names))}


def _interval(values: pd.Series, names: np.ndarray, level: float, resamples: int, seed: int) -> Interval | None:
    return grouped_interval(values.to_numpy(), names, level, resamples, seed) if len(values) else None


def _versus_best(
    scores: pd.DataFrame, groups: pd.Series, metric: str, level: float, resamples: int, seed: int
) -> tuple[tuple[str, str] | None, dict[tuple[str, str], dict[str, Any]]]:
    sign = -1.0 if direction(metric) == "higher" else 1.0
    cost = sign * (scores.abs() if direction(metric) == "zero" else scores)
    best = _best(cost)
    others = len([arm for arm in cost if cost[arm].notna().any()]) - 1
    shared = 1 - (1 - level) / max(1, others)
    return best, {arm: _compare(cost, arm, best, groups, sign, shared, resamples, seed) for arm in cost}


def _best(cost: pd.DataFrame) -> tuple[str, str] | None:
    """The arm that loses the fewest comparisons of means over common pictures, lower cost being better."""
    counts = cost.notna().sum()
    if not counts.max():
        return None
    arms = [arm for arm in cost if counts[arm] >= LEAST_SHARE * counts.max()]
    values = cost[arms].to_numpy()
    places = []
    for index, arm in enumerate(arms):
        with np.errstate(invalid="ignore"):
            behind = values[:, [index]] - values  # pictures down, other arms right; NaN where one of the two is missing
        lost = int((np.nansum(behind, axis=0) > 0).sum())
        places.append((lost, float(np.nanmean(values[:, index])), arm))
    return min(places)[2]


def _compare(
    cost: pd.DataFrame,
    arm: tuple[str, str],
    best: tuple[str, str] | None,
    groups: pd.Series,
    sign: float,
    level: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    none = {"to_best": np.nan, "to_best_low": np.nan, "to_best_high": np.nan, "to_best_level": np.nan, "common": 0}
    if best is None or not cost[arm].notna().any():
        return {"verdict": "", **none}
    alone = sum(cost[each].notna().any() for each in cost) == 1
    if arm == best:
        return {"verdict": ALONE if alone else BEST, **none, "common": int(cost[arm].notna().sum())}
    with np.errstate(invalid="ignore"):
        pairs = (cost[arm] - cost[best]).replace([np.inf, -np.inf], np.nan).dropna()
    found = {**none, "common": len(pairs)}
    if not len(pairs):
        return {"verdict": FEW, **found}
    interval = _interval(pairs, groups.loc[pairs.index].to_numpy(), level, resamples, seed)
    if interval is None:
        return {"verdict": FEW, **found, "to_best": sign * float(pairs.mean())}
    verdict = WORSE if interval.above() else BETTER if interval.below() else TIED
    ends = sorted((sign * interval.low, sign * interval.high))
    return {
        "verdict": verdict,
        "to_best": sign * interval.mean,
        "to_best_low": ends[0],
        "to_best_high": ends[1],
        "to_best_level": level,
        "common": len(pairs),
    }
