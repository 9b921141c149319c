"""A finished table: every cell measured beside the one published, with n, failures, intervals and protocol.

>>> report = TableReport(run.rows, spec=table_spec("toy"))
>>> print(report.text())
>>> write_report(report, "out")  # table.md, table.tex, table.html, table.csv, discrepancies.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.severities import SEVERITIES
from refbfr_core.benchmark.tables import formats
from refbfr_core.benchmark.tables.published_cells import pooled, published_cells
from refbfr_core.benchmark.tables.significance import (
    DEG_VQFR,
    KEYS,
    LEVEL,
    RESAMPLES,
    ROW_KEYS,
    STANDING,
    direction,
    standings,
    with_deg_vqfr,
)
from refbfr_core.benchmark.tables.systems import SYSTEMS, Arm
from refbfr_core.benchmark.tables.variants import NOT_SYSTEMS
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.files import atomic_path, write_text
from refbfr_core.metrics import REGISTRY

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables.cases import TableDataset
    from refbfr_core.benchmark.tables.specs import TableSpec

SET_COLUMNS = ("dataset", "system", "references", "metric", "value", "spread", "n", "reference", "column")
FRAME = (
    "dataset", "arm", "system", "references", "metric", "direction", "kind", "published", "measured", "low", "high",
    "difference", "n", "expected", "groups", "failed", "unscored", "best", "verdict", "distinguishable", "to_best",
    "to_best_low", "to_best_high", "to_best_level", "common", "spread", "why", "printed_metric", "table", "source",
    "note", "protocol",
)  # fmt: skip
"""Columns of `TableReport.frame`."""

MEAN, SET, PRINTED = "mean", "set", "printed"
FILES = ("table.md", "table.tex", "table.html", "table.csv", "discrepancies.md")


@dataclass(frozen=True, eq=False)
class TableReport:
    """A table, ready to be read.

    The same rows give the same bytes in every format, in whatever order they come; only `times` adds numbers that
    differ from run to run.

    Attributes:
        rows: one line an item and arm, see `refbfr_core.benchmark.tables.significance.ROW_KEYS`; may be empty.
        times: columns "dataset", "item", "system", "references", "seconds"; None leaves times out.
        set_rows: distances between sets of pictures, columns `SET_COLUMNS`; None for none.
        spec: which published tables belong to it, and the order of columns and lines.
        datasets: what was measured: titles, protocols and how many pictures a paper counts.
        not_run: system -> why it did not run. unmeasured: dataset -> metric -> why it was left out.
        deg_vqfr: show the second protocol of Deg beside the first, as tables with a printed Deg always do.
        level, resamples, seed: of the intervals, see `standings`.

    Raises:
        ConfigError, UnknownNameError: rows that are no rows of a table, when something is first asked of it.
    """

    rows: pd.DataFrame | None = None
    times: pd.DataFrame | None = None
    set_rows: pd.DataFrame | None = None
    spec: TableSpec | None = None
    datasets: Sequence[TableDataset] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    unmeasured: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    deg_vqfr: bool = False
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def title(self) -> str:
        """What stands above the table."""
        return self.spec.title if self.spec is not None else "Table of restorations"

    @property
    def only_printed(self) -> bool:
        """Whether nothing of this table can be measured, such as settings or the opinions of users."""
        return self.spec is not None and not self.spec.arms

    @cached_property
    def scored(self) -> pd.DataFrame:
        """The rows that means are taken over: those given, pooled datasets and the second protocol of Deg included."""
        rows = pd.DataFrame(columns=list(ROW_KEYS)) if self.rows is None else self.rows
        if absent := [name for name in ROW_KEYS if name not in rows]:
            raise ConfigError(f"the rows have no columns {absent}; they have {list(rows.columns)}.")
        # A printed Deg comes from VQFR's script, or is said to: such a table shows what that script would average.
        wanted = self.deg_vqfr or (self.spec is not None and bool(self.spec.metrics.get("deg")))
        if wanted and "deg" in rows and DEG_VQFR not in rows:
            rows = with_deg_vqfr(rows)
        return pooled(rows, self.spec)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rows have: those of the spec first, the others in the order of the registry."""
        own = () if self.spec is None else tuple(self.spec.metrics)
        order = _with_deg_vqfr([*own, *(name for name in REGISTRY if name not in (*own, DEG_VQFR))])
        return tuple(name for name in order if name in self.scored)

    def frame(self) -> pd.DataFrame:
        """One line a dataset, arm and metric with the columns `FRAME`; a copy.

        "measured" with "low" and "high" is the mean over n pictures with its interval; "published" the printed number
        (NaN: none is known; with a "table" and a "note": the table has it, but no source tells); "difference" is
        measured minus published; "why" says why a cell was not measured; "kind" is "mean",
        "set" (a distance between sets, without interval or comparison) or "printed" (no such metric here).
        """
        return self._frame.copy()

    def wide(self, dataset: str) -> pd.DataFrame:
        """Numbers of one dataset: arms down; metrics right, each with "published", "measured", "low", "high", "n".

        Raises:
            UnknownNameError: no such dataset in this table.
        """
        own = self._frame[self._frame["dataset"] == dataset]
        if own.empty:
            raise unknown_name("dataset of this table", dataset, self._frame["dataset"].unique())
        parts = ["published", "measured", "low", "high", "difference", "n"]
        order = [(metric, part) for metric in own.metric.unique() for part in parts]
        wide = own.set_index(["arm", "metric"])[parts].unstack("metric").swaplevel(axis=1)
        return wide.reindex(index=own.arm.unique(), columns=pd.MultiIndex.from_tuples(order, names=["metric", None]))

    def text(self, width: int = 120) -> str:
        """The table for a terminal that is `width` letters wide."""
        return formats.as_text(*self._finished(), width=width)

    def markdown(self) -> str:
        """The table as GitHub's Markdown."""
        return formats.as_markdown(*self._finished())

    def latex(self) -> str:
        """The table as LaTeX with booktabs."""
        return formats.as_latex(*self._finished())

    def html(self) -> str:
        """The table as a page that needs no other file."""
        return formats.as_html(*self._finished())

    def _repr_html_(self) -> str:
        """What a notebook shows: the tables without the page around them."""
        return formats.html_part(*self._finished()[1:])

    def discrepancies(self) -> pd.DataFrame:
        """What a reader should know before comparing, see `refbfr_core.benchmark.tables.discrepancies`."""
        from refbfr_core.benchmark.tables.discrepancies import discrepancies

        return discrepancies(self)

    def _finished(self) -> tuple[str, list[formats.Sheet], list[str]]:
        from refbfr_core.benchmark.tables.sheets import finished

        return finished(self)

    @cached_property
    def _frame(self) -> pd.DataFrame:
        measured = standings(
            self.scored, self.metrics, level=self.level, resamples=self.resamples, seed=self.seed
        ).assign(kind=MEAN)
        # Lists of plain rows, because a frame without rows or with all-missing columns changes the types of others.
        lines = measured.to_dict("records") + self._sets()
        cells = {tuple(line[key] for key in KEYS): line for line in lines}
        for cell in published_cells(self.spec).to_dict("records"):
            line = cells.setdefault(tuple(cell[key] for key in KEYS), {key: cell[key] for key in KEYS})
            line |= {name: value for name, value in cell.items() if name not in KEYS}
        frame = pd.DataFrame([self._complete(line) for line in cells.values()], columns=list(FRAME))
        return self._sorted(frame)

    def _sets(self) -> list[dict]:
        if self.set_rows is None or self.set_rows.empty:
            return []
        if absent := [name for name in SET_COLUMNS if name not in self.set_rows]:
            raise ConfigError(f"the rows of set distances have no columns {absent}; expected {list(SET_COLUMNS)}.")
        lines = []
        for (dataset, metric), own in self.set_rows.groupby(["dataset", "metric"], sort=True):
            lowest = own.value.min()
            for row in own.to_dict("records"):
                protocol = f"{row['column']}; {row['n']} pictures against {row['reference']}"
                arm = {"dataset": dataset, "system": row["system"], "references": row["references"], "metric": metric}
                found = {"measured": row["value"], "spread": row["spread"], "n": int(row["n"])}
                found |= {"best": row["value"] == lowest, "failed": self._failed(arm), "why": row.get("reason") or ""}
                lines.append({**arm, "kind": SET, "direction": "lower", "protocol": protocol, **found})
        return lines

    def _failed(self, arm: Mapping[str, str]) -> int:
        rows = self.scored
        own = (rows["dataset"] == arm["dataset"]) & (rows.system == arm["system"])
        return int((own & (rows.references == arm["references"]) & (rows.status != OK)).sum())

    def _complete(self, line: dict) -> dict:
        line = dict.fromkeys(STANDING, np.nan) | {"published": np.nan, "spread": np.nan, "source": ""} | line
        line = {"note": "", "table": "", "printed_metric": "", "kind": PRINTED, "protocol": ""} | line
        # What can only be printed has no arms: its lines are methods, or no methods at all, by their printed names.
        line["arm"] = line["system"] if self.only_printed else arm_label(line["system"], line["references"])
        if "direction" not in line:
            line["direction"] = self._direction(line)
        line["difference"] = line["measured"] - line["published"]
        line["best"] = line["best"] is True or line["best"] == 1
        line["verdict"] = line["verdict"] if isinstance(line["verdict"], str) else ""
        line["distinguishable"] = {"worse": True, "bette": True, "not d": False}.get(line["verdict"][:5])
        for count in ("n", "groups", "failed", "unscored", "common"):
            line[count] = 0 if line[count] != line[count] else int(line[count])
        line["expected"] = next((d.expected for d in self.datasets if d.name == line["dataset"]), None)
        line["why"] = "" if line["measured"] == line["measured"] else line.get("why") or self._why(line)
        line["protocol"] = line["protocol"] or self._protocol(line["metric"])
        return line

    def _direction(self, line: Mapping) -> str:
        return direction(line["metric"]) if line["metric"] in REGISTRY else line.get("printed_direction", "")

    def _protocol(self, metric: str) -> str:
        return REGISTRY[metric].protocol if metric in REGISTRY else ""

    def _why(self, line: Mapping) -> str:
        dataset, system, metric = line["dataset"], line["system"], line["metric"]
        rows = self.scored
        here = rows[rows["dataset"] == dataset]
        if self.only_printed:
            return "can only be printed"
        if system in NOT_SYSTEMS:
            return NOT_SYSTEMS[system]
        if here.empty:
            return "nothing was run on this dataset"
        own = here[(here.system == system) & (here.references == line["references"])]
        if own.empty:
            entry = SYSTEMS.get(system)
            reason = self.not_run.get(system) or ("" if entry is None else entry.reason)
            return f"no rows in this run: {reason}" if reason else "no rows in this run"
        if (own.status != OK).all():
            return f"all {len(own)} pictures failed"
        if self.spec is not None and metric in self.spec.set_metrics:
            return "no distance of this arm's set of pictures was measured in this run"
        if metric not in REGISTRY:
            return "no score here has this meaning"
        return self.unmeasured.get(dataset, {}).get(metric) or "not among the metrics of this run"

    def _sorted(self, frame: pd.DataFrame) -> pd.DataFrame:
        spec = self.spec
        datasets = [d.name for d in self.datasets] + ([] if spec is None else list(spec.datasets))
        arms = [] if spec is None else [(arm.system, arm.references) for arm in spec.arms]
        printed = published_cells(spec)
        systems = [*printed.system, *SYSTEMS]
        names = [] if spec is None else _with_deg_vqfr([*spec.metrics, *spec.set_metrics])
        names += [*self.metrics, *(() if self.set_rows is None else self.set_rows.metric), *printed.metric]
        kinds = ("none", "right", "wrong")

        def key(line: Mapping) -> tuple:
            arm = line["system"], line["references"]
            return (
                _place(line["dataset"], [*datasets, *printed["dataset"]]), *_severity(line["dataset"]),
                _place(arm, arms), _place(arm[0], systems), arm[0], _place(arm[1], kinds), arm[1],
                _place(line["metric"], names), line["metric"],
            )  # fmt: skip

        lines = sorted(frame.to_dict("records"), key=key)
        return pd.DataFrame(lines, columns=list(FRAME)).astype({"best": bool})


def arm_label(system: str, references: str) -> str:
    """The name of an arm in tables and folders: str(Arm), also for one that no system of ours allows."""
    try:
        return str(Arm(system, references))
    except (ConfigError, KeyError):
        return f"{system}, {references}"


def write_report(report: TableReport, folder: str | Path) -> list[Path]:
    """Write the table as `FILES`, the CSV being `report.frame()`; returns the paths.

    Raises:
        DiskFullError, OutputError: the folder cannot be written to; no file is left half-written.
    """
    from refbfr_core.benchmark.tables.discrepancies import discrepancies_markdown

    folder = Path(folder)
    texts = {
        "table.md": report.markdown(),
        "table.tex": report.latex(),
        "table.html": report.html(),
        "discrepancies.md": discrepancies_markdown(report.discrepancies(), report.title),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    with atomic_path(folder / "table.csv") as temporary:
        report.frame().to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")
    return [folder / name for name in FILES]


def _with_deg_vqfr(metrics: Sequence[str]) -> list[str]:
    """The metrics with the second protocol of Deg right after the first."""
    return [each for name in metrics for each in ((name, DEG_VQFR) if name == "deg" else (name,)) if name != DEG_VQFR]


def _place(value: object, order: Sequence) -> int:
    return list(order).index(value) if value in order else len(order)


def _severity(dataset: str) -> tuple[str, int, str]:
    """Sorts mild before medium before severe, among datasets that differ in nothing else."""
    stem, _, word = dataset.rpartition("-")
    return (stem, SEVERITIES.index(word), dataset) if word in SEVERITIES else (dataset, -1, dataset)
