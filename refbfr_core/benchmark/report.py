"""From rows to means and paired differences, each with its bootstrap interval over people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from refbfr_core.benchmark.rows import OK
from refbfr_core.metrics import Interval, mean_interval, paired_interval


@dataclass(frozen=True)
class Contrast:
    """Mean of `metric` in arm `one` minus arm `other`, paired by person; None when fewer than two people have both."""

    metric: str
    one: str
    other: str
    interval: Interval | None

    def __str__(self) -> str:
        value = "too few complete pairs" if self.interval is None else str(self.interval)
        return f"{self.metric:6} {self.one} - {self.other}: {value}"


def contrast(rows: pd.DataFrame, metric: str, one: str, other: str, **interval: Any) -> Contrast:
    """Paired difference of two arms over everybody who has a score in both.

    Args:
        rows: columns "person", "arm", "status" and the metric.
        interval: level and resamples of `refbfr_core.metrics.paired_interval`.
    """
    scores = rows[rows.status == OK].pivot(index="person", columns="arm", values=metric)
    for arm in (one, other):
        if arm not in scores:
            return Contrast(metric, one, other, None)
    pairs = scores[[one, other]].dropna()
    if len(pairs) < 2:
        return Contrast(metric, one, other, None)
    return Contrast(metric, one, other, paired_interval(pairs[one].to_numpy(), pairs[other].to_numpy(), **interval))


def mean_table(rows: pd.DataFrame, arms: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Means by arm as text "mean ± half-width of the 95 % interval", with counts of scored and failed people."""
    lines = []
    for arm in arms:
        own = rows[rows.arm == arm]
        scored = own[own.status == OK]
        cells = {metric: _cell(scored[metric]) for metric in metrics}
        lines.append({"arm": arm, **cells, "people": len(scored), "failed": len(own) - len(scored)})
    return pd.DataFrame(lines).set_index("arm")


def _cell(values: pd.Series) -> str:
    if len(values) < 2:
        return "" if values.empty else f"{values.iloc[0]:.3f}"
    interval = mean_interval(values.to_numpy())
    return f"{interval.mean:.3f} ± {(interval.high - interval.low) / 2:.3f}"
