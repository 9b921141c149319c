"""Parts of a finished table in the form in which notebook 11 shows them: compact cells, and differences of two arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from refbfr_core.benchmark.recording import Recording
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.tables.significance import DEG_VQFR, LEAST_PEOPLE, TIED, grouped_interval
from refbfr_core.benchmark.tables.store import TableStore
from refbfr_core.benchmark.tables.systems import Arm
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import REGISTRY, SET_REGISTRY, Interval

KNOWN = (*REGISTRY, DEG_VQFR, *SET_REGISTRY)
"""Names of everything that can be measured here."""

ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0"}


def measured_table(frame: pd.DataFrame, dataset: str, metrics: Sequence[str], digits: int = 2) -> list[dict[str, str]]:
    """One line an arm: every metric as "mean ± half width" with * for the best and ~ for what cannot be told from it.

    Below `LEAST_PEOPLE` it is the mean alone.

    Args:
        frame: of `TableReport.frame`. dataset, metrics: which part of it.

    Raises:
        ConfigError: nothing of that dataset was measured.
    """
    own = frame[(frame["dataset"] == dataset) & frame.metric.isin(metrics) & frame.measured.notna()]
    if own.empty:
        raise ConfigError(f"nothing of {dataset!r} was measured in {list(metrics)}.")
    lines = []
    for arm, cells in own.groupby("arm", sort=False):
        by_metric = cells.set_index("metric")
        line = {"arm": arm}
        for metric in metrics:
            cell = by_metric.loc[metric] if metric in by_metric.index else None
            line[_heading(metric)] = "–" if cell is None else _cell(cell, digits)
        counts = cells.iloc[0]
        lines.append({**line, "n": str(counts.n), "failed": str(counts.failed)})
    return lines


def paper_table(frame: pd.DataFrame) -> list[dict[str, str]]:
    """One line a method, one column a dataset and score: "published | measured | difference"; dashes where missing.

    Args:
        frame: of `TableReport.frame`, with or without measured numbers. Settings, sizes and percentages, which no score
            here measures, are left out.
    """
    own = frame[(frame.published.notna() | frame.measured.notna()) & frame.metric.isin(KNOWN)]
    columns = list(dict.fromkeys(zip(own["dataset"], own.metric, strict=True)))
    several = len({dataset for dataset, _ in columns}) > 1
    lines = []
    for arm, cells in own.groupby("arm", sort=False):
        found = {(cell["dataset"], cell.metric): cell for _, cell in cells.iterrows()}
        line = {"method": arm}
        for dataset, metric in columns:
            heading = f"{dataset}: {metric}" if several else metric
            line[heading] = _triple(found.get((dataset, metric)))
        lines.append(line)
    return lines


def arm_difference(rows: pd.DataFrame, dataset: str, metric: str, one: str, other: str) -> Interval | None:
    """Mean of arm `one` minus arm `other` over the pictures both restored, people resampled.

    None where one of the arms is not there, or fewer than `LEAST_PEOPLE` have both.

    Args:
        rows: of a run. one, other: as str(Arm) prints them, such as "ReF-LDM, right".
    """
    own = rows[(rows["dataset"] == dataset) & (rows.status == OK)]
    names = [str(Arm(system, references)) for system, references in zip(own.system, own.references, strict=True)]
    scores = own.assign(arm=names).pivot(index="item", columns="arm", values=metric)
    for arm in (one, other):
        if arm not in scores:
            return None
    pairs = scores[[one, other]].dropna()
    groups = own.drop_duplicates("item").set_index("item").group.loc[pairs.index]
    if groups.nunique() < LEAST_PEOPLE:
        return None
    return grouped_interval((pairs[one] - pairs[other]).to_numpy(), groups.to_numpy())


def recorded_rows(recording: Recording) -> pd.DataFrame:
    """The rows of a recorded run as `TableReport` takes them: with a column "reason" that has no gaps."""
    reasons = recording.rows["reason"].astype(object).fillna("") if "reason" in recording.rows else ""
    return recording.rows.assign(reason=reasons)


def kept_rows(folder: str | Path) -> pd.DataFrame:
    """The rows that a run has finished so far, also one that is still going or was killed; empty before the first.

    Raises:
        CacheError: a file of the run is damaged.
    """
    rows = TableStore(folder).rows
    return pd.DataFrame(list(rows.values()) if rows else [], columns=None if rows else ["key"])


def _heading(metric: str) -> str:
    return f"{metric} {ARROWS[REGISTRY[metric].direction]}" if metric in REGISTRY else metric


def _cell(cell: pd.Series, digits: int) -> str:
    if cell.groups < LEAST_PEOPLE:
        return f"{cell.measured:.{digits}f}"
    mark = "*" if cell.best else "~" if cell.verdict == TIED else ""
    spread = "" if math.isnan(cell.low) else f" ± {(cell.high - cell.low) / 2:.{digits}f}"
    return f"{cell.measured:.{digits}f}{spread}{mark}"


def _triple(cell: pd.Series | None) -> str:
    if cell is None:
        return "–"
    formats = {"published": "g", "measured": ".4g", "difference": "+.3g"}
    return " | ".join("–" if math.isnan(cell[name]) else format(cell[name], how) for name, how in formats.items())
