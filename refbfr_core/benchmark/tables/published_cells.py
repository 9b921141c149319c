"""Which published number belongs beside which measured one: the cells of a table's paper under our own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.tables.systems import ALIASES, SYSTEMS

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables.specs import TableSpec

COLUMNS = (
    "dataset", "system", "references", "metric", "published", "printed_metric", "printed_direction", "table", "source",
    "note",
)  # fmt: skip
ARROWS = {"up": "higher", "down": "lower", "none": ""}
"""Direction as the published numbers have it -> as the registry of metrics has it."""


def published_cells(spec: TableSpec | None) -> pd.DataFrame:
    """Every published number of the tables that `spec` reproduces, once, with our names where there are such.

    Cells that a table has but no source tells are there, too, with NaN and a note that says why.

    A printed dataset, method or metric without a counterpart keeps its printed name. Of several metrics of ours for one
    printed column the first has the number. A method with several arms has it at the arm with the right references, or
    none: never at the one with wrong references. One printed dataset that is several of ours (splits printed
    together) keeps its printed name; `pooled` measures it.

    Returns:
        Columns `COLUMNS`; no lines for a table without a paper.
    """
    if spec is None or not spec.paper:
        return pd.DataFrame(columns=list(COLUMNS))
    cells = published(spec.paper, missing=True)
    cells = cells[cells.table.isin(list(spec.published_tables))]
    datasets, metrics = _ours(spec.datasets), _ours({**spec.metrics, **spec.set_metrics}, first=True)
    lines = []
    for cell in cells.itertuples(index=False):
        system = ALIASES.get(cell.method, cell.method)
        lines.append(
            {
                "dataset": datasets.get(cell.dataset, cell.dataset),
                "system": system,
                "references": _references(system, spec),
                "metric": metrics.get(cell.metric, cell.metric),
                "published": cell.value,
                "printed_metric": cell.metric,
                "printed_direction": ARROWS[cell.direction],
                "table": cell.table,
                "source": cell.source,
                "note": cell.note if isinstance(cell.note, str) else "",
            }
        )
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    # The same dataset, method and metric in two tables of one paper are two numbers: the later keeps its table's name.
    again = frame.duplicated(["dataset", "system", "references", "metric"])
    frame.loc[again, "metric"] = frame.metric[again] + " (" + frame.table[again] + ")"
    return frame


def pooled(rows: pd.DataFrame, spec: TableSpec | None) -> pd.DataFrame:
    """The rows, and once more under the printed name those of several datasets that a paper prints as one.

    Only if the rows hold every one of these datasets: part of them has another mean.
    """
    if spec is None or not spec.paper:
        return rows
    parts = [rows]
    for printed, names in _printed(spec.datasets).items():
        if len(names) > 1 and set(names) <= set(rows["dataset"]):
            own = rows[rows["dataset"].isin(names)]
            parts.append(own.assign(item=own["dataset"] + "/" + own["item"], dataset=printed))
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else rows


def _printed(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Printed name -> all of ours that stand for it."""
    found: dict[str, list[str]] = {}
    for ours, printed in names.items():
        if printed:
            found.setdefault(printed, []).append(ours)
    return found


def _ours(names: Mapping[str, str], first: bool = False) -> dict[str, str]:
    """Printed name -> ours; of several the first, or none at all."""
    return {printed: own[0] for printed, own in _printed(names).items() if first or len(own) == 1}


def _references(system: str, spec: TableSpec) -> str:
    own = [arm.references for arm in spec.arms if arm.system == system]
    for kind in ("right", "none"):
        if kind in own:
            return kind
    entry = SYSTEMS.get(system)
    return "right" if entry is not None and entry.references == "needs" else "none"
