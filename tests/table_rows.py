"""Rows of tables that nobody measured, for tests of reports and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from refbfr_core.benchmark.tables.significance import ROW_KEYS

Arm = tuple[str, str]


def table_rows(
    scores: Mapping[str, Mapping[Arm, Sequence[float | None]]],
    dataset: str = "drawn-mild",
    groups: Sequence[str] | None = None,
    reason: str = "ConfigError: broken",
) -> pd.DataFrame:
    """Rows of one dataset.

    Args:
        scores: metric -> (system, references) -> a score an item; None in the first metric makes the row a failure.
        groups: of the items; everybody has one picture if not given.
    """
    first = next(iter(scores.values()))
    lines = []
    for arm, values in first.items():
        for index, value in enumerate(values):
            own = {metric: arms[arm][index] for metric, arms in scores.items()}
            failed = value is None
            item = f"item-{index:03d}"
            about = [dataset, item, groups[index] if groups else item, *arm, "failed" if failed else "ok"]
            line = dict(zip(ROW_KEYS, [*about, reason if failed else ""], strict=True))
            lines.append(line | {name: np.nan if failed or number is None else number for name, number in own.items()})
    return pd.DataFrame(lines)


def random_rows(
    arms: Sequence[Arm], metrics: Mapping[str, float], items: int = 20, seed: int = 0, **about
) -> pd.DataFrame:
    """Rows with normal scores around metric + 0.01 * place of the arm, deviation 0.1; no failures."""
    generator = np.random.default_rng(seed)
    scores = {
        metric: {arm: list(middle + 0.01 * k + 0.1 * generator.normal(size=items)) for k, arm in enumerate(arms)}
        for metric, middle in metrics.items()
    }
    return table_rows(scores, **about)
