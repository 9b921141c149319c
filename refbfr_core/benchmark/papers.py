"""What the papers printed, as one tidy table, so that every measured number can stand beside the published one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from refbfr_core.errors import CacheError, ConfigError, unknown_name

COLUMNS = ("paper", "table", "dataset", "method", "metric", "direction", "value", "unit", "source", "note")
PAPERS = ("ReF-LDM", "PDGrad", "LD-BFR", "DiffMAC")
_FOLDER = Path(__file__).parent / "published_numbers"
_KEY = ["paper", "table", "dataset", "method", "metric", "source"]


def published(paper: str | None = None) -> pd.DataFrame:
    """The published numbers of one paper, or of all four.

    Args:
        paper: one of `PAPERS`, or None.

    Returns:
        One row a number with the columns of `COLUMNS`. `direction` is "up", "down" or "none" (a setting or a size);
        `value` is a float (`inf` for the PSNR of the truth itself); `unit` and `note` may be empty; units that the
        papers do not print (seconds, gigabytes, pixels, degrees) are inferred. A cell that could not be recovered is
        absent, never guessed: most of PDGrad's tables are.

    Raises:
        UnknownNameError: another paper. CacheError: a file of the package is damaged.
    """
    if paper is not None and paper not in PAPERS:
        raise unknown_name("paper", paper, PAPERS)
    frames = [_read(path) for path in sorted(_FOLDER.glob("*.csv"))]
    rows = pd.concat(frames, ignore_index=True)
    return rows if paper is None else rows[rows.paper == paper].reset_index(drop=True)


def published_value(paper: str, table: str, method: str, metric: str, dataset: str | None = None) -> float:
    """One published number.

    Raises:
        ConfigError: nothing or more than one number fits; the message lists what there is.
    """
    rows = published(paper)
    chosen = rows[(rows.table == table) & (rows.method == method) & (rows.metric == metric)]
    if dataset is not None:
        chosen = chosen[chosen.dataset == dataset]
    if len(chosen) != 1:
        near = rows[rows.table == table][["dataset", "method", "metric"]].drop_duplicates()
        raise ConfigError(
            f"{len(chosen)} published numbers fit {paper}, {table}, {method}, {metric}, {dataset}; expected one. "
            f"That table holds:\n{near.to_string(index=False) if len(near) else 'nothing; see published(paper).table'}"
        )
    return float(chosen.value.iloc[0])


def _read(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, dtype={"value": float}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} cannot be read ({error}); reinstall the package.") from error
    if tuple(rows.columns) != COLUMNS or rows.duplicated(_KEY).any():
        raise CacheError(f"{path} does not hold one row a number under {COLUMNS}; reinstall the package.")
    return rows
