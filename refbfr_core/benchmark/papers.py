"""What the papers printed, as one tidy table, so that every measured number can stand beside the published one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from refbfr_core.errors import CacheError, ConfigError, unknown_name

COLUMNS = ("paper", "table", "dataset", "method", "metric", "direction", "value", "unit", "source", "note")
PAPERS = ("ReF-LDM", "PDGrad", "LD-BFR", "DiffMAC")
MISSING = "missing: "
"""How the note of a cell begins that a paper's table has but that no source at hand tells."""

_FOLDER = Path(__file__).parent / "published_numbers"
_MISSING_FILE = "missing.csv"
_KEY = ["paper", "table", "dataset", "method", "metric", "source"]


def published(paper: str | None = None, *, missing: bool = False) -> pd.DataFrame:
    """The published numbers of one paper, or of all four.

    Args:
        paper: one of `PAPERS`, or None.
        missing: also the cells that a table has but that could not be recovered: value NaN, and a note that begins with
            `MISSING` and says why.

    Returns:
        One row a number with the columns of `COLUMNS`. `direction` is "up", "down" or "none" (a setting or a size);
        `value` is a float (`inf` for the PSNR of the truth itself); `unit` and `note` may be empty; units that the
        papers do not print (seconds, gigabytes, pixels, degrees) are inferred. A cell that could not be recovered is
        never guessed: most of PDGrad's tables are such.

    Raises:
        UnknownNameError: another paper. CacheError: a file of the package is damaged.
    """
    if paper is not None and paper not in PAPERS:
        raise unknown_name("paper", paper, PAPERS)
    files = [path for path in sorted(_FOLDER.glob("*.csv")) if missing or path.name != _MISSING_FILE]
    rows = pd.concat([_read(path) for path in files], ignore_index=True)
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
        rows = pd.read_csv(path, dtype={"value": float}, keep_default_na=False, na_values={"value": [""]})
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} cannot be read ({error}); reinstall the package.") from error
    if tuple(rows.columns) != COLUMNS or rows.duplicated(_KEY).any():
        raise CacheError(f"{path} does not hold one row a number under {COLUMNS}; reinstall the package.")
    if (rows.value.isna() != rows.note.str.startswith(MISSING)).any():
        raise CacheError(f"{path} has a cell without a value and a reason, or with both; reinstall the package.")
    return rows
