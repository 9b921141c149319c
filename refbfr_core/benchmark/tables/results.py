"""What a run of a table ends in: rows, times, settings, and where the pictures lie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from refbfr_core.benchmark.rows import FAILED
from refbfr_core.benchmark.tables.cases import TableDataset
from refbfr_core.benchmark.tables.provenance import made_on
from refbfr_core.benchmark.tables.store import write_rows
from refbfr_core.benchmark.tables.systems import Arm
from refbfr_core.files import write_text

COLUMNS = ["key", "dataset", "item", "group", "system", "references", "status", "reason"]
TRUTH, REFERENCE = "truth", "reference"


@dataclass(frozen=True)
class TableRun:
    """A finished run.

    Attributes:
        rows: a line an item and arm: key, dataset, item, group, system, references, status, reason, a column a metric
            (NaN where failed or not measured). The same run gives the same rows, however often it was interrupted.
        times: key, dataset, item, system, references and the seconds that restoring took, scoring not included.
        settings: what was run; plain JSON values.
        not_run: system -> why it could not be run at all, such as weights that are missing or altered.
        unmeasured: dataset -> metric -> why it was left out.
        pictures: folder of the restored pictures, or None.
    """

    rows: pd.DataFrame
    times: pd.DataFrame
    settings: dict[str, Any]
    not_run: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, dict[str, str]] = field(default_factory=dict)
    pictures: Path | None = None

    @property
    def failures(self) -> pd.DataFrame:
        """Rows without scores, with their reasons."""
        return self.rows[self.rows.status == FAILED]

    def write(self, folder: str | Path) -> list[Path]:
        """Write `rows.parquet`, `times.parquet` and `settings.json`; returns their paths.

        Raises:
            DiskFullError, OutputError: they cannot be written.
        """
        folder = Path(folder)
        about = self.settings | {"not_run": self.not_run, "unmeasured": self.unmeasured} | made_on()
        write_text(folder / "settings.json", json.dumps(about, indent=2) + "\n")
        tables = {"rows.parquet": self.rows, "times.parquet": self.times}
        return [write_rows(table, folder / name) for name, table in tables.items()] + [folder / "settings.json"]


def collect(
    datasets: Sequence[TableDataset],
    arms: Sequence[Arm],
    metrics: Sequence[str],
    rows: Mapping[tuple[str, str, Arm], Mapping[str, Any]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and times in the order of datasets, items and arms; `rows` has them by those three, some may be absent."""
    order = [(d.name, item.name, arm) for d in datasets for item in d.items for arm in arms]
    mine = [rows[place] for place in order if place in rows]
    frame = pd.DataFrame([{name: row.get(name) for name in COLUMNS} for row in mine], columns=COLUMNS)
    for name in metrics:
        frame[name] = pd.Series([row.get(name, float("nan")) for row in mine], dtype="float64")
    times = frame[["key", "dataset", "item", "system", "references"]].copy()
    times["seconds"] = pd.Series([row.get("seconds", float("nan")) for row in mine], dtype="float64")
    return frame, times


def picture_path(folder: Path, dataset: str, label: str, item: str) -> Path:
    """Where a run keeps a restored picture; `label` is str(arm), or "truth" or "reference" for what it is held against.

    `folder` is the run's. Anything but letters, digits and "+-." becomes "-" in the names of folders.
    """
    plain = [re.sub(r"[^\w+.-]+", "-", name) for name in (dataset, label, item)]
    return folder / "pictures" / plain[0] / plain[1] / f"{plain[2]}.png"
