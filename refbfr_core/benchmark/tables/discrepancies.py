"""What keeps a table from being a plain reproduction: inside the papers, in the protocol, and in the numbers.

Kinds, in this order:

* `PAPER`: a printed statement that contradicts another one, and what is done here (`known_inconsistencies`);
* `PROTOCOL`: a note of the table's specification on how measuring differs from the paper;
* `VALUE`: a published number outside the interval of the measured mean;
* `COUNT`: another number of pictures than the paper counts;
* `FAILURES`: pictures without a score, by arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from refbfr_core.benchmark.papers import PAPERS
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.tables.formats import markdown_text
from refbfr_core.errors import CacheError, unknown_name

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables.report import TableReport

PAPER, PROTOCOL, VALUE, COUNT, FAILURES = "paper", "protocol", "value", "count", "failures"
KINDS = {
    PAPER: "Inconsistent in print",
    PROTOCOL: "Measured differently",
    VALUE: "Published outside the measured interval",
    COUNT: "Another number of pictures",
    FAILURES: "Failures",
}
COLUMNS = (
    "kind", "dataset", "arm", "metric", "what", "published", "measured", "difference", "low", "high", "n", "expected",
)  # fmt: skip
_FILE = Path(__file__).with_name("known_inconsistencies.csv")


def known_inconsistencies(paper: str | None = None, tables: Sequence[str] | None = None) -> pd.DataFrame:
    """Where the papers contradict themselves, each other or their released code, and what is done about it here.

    Args:
        paper: one of `refbfr_core.benchmark.PAPERS`, or None for all.
        tables: only what concerns one of these labels of `published().table`, or the paper as a whole.

    Returns:
        Columns "paper", "tables" (labels joined by "; "; empty: the whole paper), "what", "treatment".

    Raises:
        UnknownNameError: another paper. CacheError: the file of the package is damaged.
    """
    if paper is not None and paper not in PAPERS:
        raise unknown_name("paper", paper, PAPERS)
    try:
        rows = pd.read_csv(_FILE, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CacheError(f"{_FILE.name} of the package cannot be read ({error}); install the package again.") from error
    if list(rows.columns) != ["paper", "tables", "what", "treatment"] or rows.empty:
        raise CacheError(f"{_FILE.name} of the package is damaged; install the package again.")
    if paper is not None:
        rows = rows[rows.paper == paper]
    if tables is not None:
        wanted = {*tables, ""}
        rows = rows[[bool(wanted & set(labels.split("; "))) for labels in rows.tables]]
    return rows.reset_index(drop=True)


def discrepancies(report: TableReport) -> pd.DataFrame:
    """The log of one table; one line each with the columns `COLUMNS`, NaN or "" where one does not apply."""
    frame = report.frame()
    lines = [*_in_print(report), *_protocol(report), *_values(frame), *_counts(report), *_failures(report)]
    blank = dict.fromkeys(COLUMNS, "") | dict.fromkeys(COLUMNS[5:], math.nan)
    return pd.DataFrame([blank | line for line in lines], columns=list(COLUMNS))


def discrepancies_markdown(log: pd.DataFrame, title: str) -> str:
    """The log of `discrepancies` as Markdown, a heading for each kind of entry."""
    parts = [f"# Discrepancies: {markdown_text(title)}", ""]
    for kind, heading in KINDS.items():
        own = log[log.kind == kind]
        parts += [f"## {heading}", "", *([] if len(own) else ["None."])]
        for line in own.itertuples(index=False):
            where = ", ".join(part for part in (line.dataset, line.arm, line.metric) if part)
            parts.append("- " + markdown_text(f"{where}: {line.what}" if where else line.what))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _in_print(report: TableReport) -> list[dict]:
    if report.spec is None or not report.spec.paper:
        return []
    known = known_inconsistencies(report.spec.paper, report.spec.published_tables)
    return [{"kind": PAPER, "what": f"{line.what} Here: {line.treatment}"} for line in known.itertuples()]


def _protocol(report: TableReport) -> list[dict]:
    """The notes of the specification, and those that stand at published numbers."""
    notes = () if report.spec is None else report.spec.notes
    lines = [{"kind": PROTOCOL, "what": note} for note in notes]
    frame = report.frame()
    for note, cells in frame[frame.note != ""].groupby("note", sort=False):
        where = f"{', '.join(cells.metric.unique())} of {', '.join(cells.arm.unique())}"
        on = ", ".join(cells["dataset"].unique())
        lines.append({"kind": PROTOCOL, "what": f"printed {where} on {on}: {note}"})
    return lines


def _values(frame: pd.DataFrame) -> list[dict]:
    outside = frame[(frame.published < frame.low) | (frame.published > frame.high)]
    lines = []
    for cell in outside.itertuples(index=False):
        low, high = cell.low - cell.published, cell.high - cell.published
        what = (
            f"published {cell.published:.10g}, measured {cell.measured:.5g} over {cell.n} pictures; difference "
            f"{cell.difference:+.4g} [{low:+.4g}, {high:+.4g}]"
        )
        numbers = {name: getattr(cell, name) for name in ("published", "measured", "difference", "n")}
        place = {"dataset": cell.dataset, "arm": cell.arm, "metric": cell.metric}
        lines.append({"kind": VALUE, **place, "what": what, **numbers, "low": low, "high": high})
    return lines


def _counts(report: TableReport) -> list[dict]:
    lines = []
    for dataset in report.datasets:
        count = report.scored[report.scored["dataset"] == dataset.name]["item"].nunique()
        if dataset.expected is not None and count != dataset.expected:
            what = f"{count} pictures here, {dataset.expected} in the paper"
            numbers = {"n": count, "expected": dataset.expected}
            lines.append({"kind": COUNT, "dataset": dataset.name, "what": what, **numbers})
    return lines


def _failures(report: TableReport) -> list[dict]:
    from refbfr_core.benchmark.tables.report import arm_label

    frame, rows = report.frame(), report.scored
    order = {name: place for place, name in enumerate(frame["dataset"].unique())}
    failed = rows[rows.status != OK].groupby(["dataset", "system", "references"])
    found = []
    for (dataset, system, references), own in failed:
        arm = (rows["dataset"] == dataset) & (rows.system == system) & (rows.references == references)
        reasons = own.reason.value_counts()
        first = sorted(reasons[reasons == reasons.max()].index)[0]
        what = f"{len(own)} of {int(arm.sum())} pictures failed; most often: {first}"
        line = {"dataset": dataset, "arm": arm_label(system, references), "what": what}
        found.append({"kind": FAILURES, **line, "n": int(arm.sum()) - len(own)})
    found.sort(key=lambda line: (order.get(line["dataset"], len(order)), line["arm"]))
    return [*found, *_unscored(frame)]


def _unscored(frame: pd.DataFrame) -> list[dict]:
    """Restored pictures for which one metric gave no number, where others of the same arm have it."""
    lines = []
    for cell in frame[(frame.unscored > 0) & (frame.n > 0)].itertuples(index=False):
        what = f"{cell.unscored} restored pictures have no score"
        place = {"dataset": cell.dataset, "arm": cell.arm, "metric": cell.metric}
        lines.append({"kind": FAILURES, **place, "what": what, "n": cell.n})
    return lines
