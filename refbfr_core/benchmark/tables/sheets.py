"""The cells, marks and notes of a report: numbers become text here, once for all formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.tables.formats import BEST, TIED, Cell, Sheet
from refbfr_core.benchmark.tables.significance import FEW, LEAST_PEOPLE
from refbfr_core.benchmark.tables.significance import TIED as TIED_VERDICT
from refbfr_core.metrics import REGISTRY

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables.report import TableReport

FEWER = "†"
PRINTED = "printed"
NOT_PUBLISHED, NOT_MEASURED, NOT_RECOVERED = "not published", "not measured", "not recovered"
ARROWS = {"higher": "↑", "lower": "↓", "zero": "→0", "": ""}
_REASONS = 12


def finished(report: TableReport) -> tuple[str, list[Sheet], list[str]]:
    """Title, a sheet a dataset, and the notes that hold for all of them: what `formats` prints."""
    frame = report.frame()
    sheets = [_sheet(report, name, own) for name, own in frame.groupby("dataset", sort=False)]
    return report.title, sheets, _notes(report, frame)


def in_grid(report: TableReport, own: pd.DataFrame) -> pd.Series:
    """Which cells stand in the table itself: all that have a counterpart here; the others are listed below it.

    A table that can only be printed has all its cells in the grid.
    """
    if report.only_printed:
        return pd.Series(True, index=own.index)
    return own.kind.ne(PRINTED) | own.protocol.ne("") | own.metric.isin(_set_metrics(report))


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many decimals, a true minus sign, and "∞" for infinity; never "-0.00"."""
    if math.isinf(value):
        return ("−" if value < 0 else "+" if sign else "") + "∞"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def digits(values: Sequence[float]) -> int:
    """Decimals that suit a column: 3, less for large numbers and more for tiny ones."""
    known = [abs(value) for value in values if math.isfinite(value)]
    largest = max(known, default=0.0)
    steps = ((1000, 1), (10, 2), (0.1, 3), (0.01, 4))
    return next((places for least, places in steps if largest >= least), 5 if largest else 3)


def printed(value: float) -> str:
    """A published number in full."""
    if math.isinf(value):
        return number(value, 0)
    return np.format_float_positional(value, trim="-").replace("-", "−")


def _sheet(report: TableReport, name: str, own: pd.DataFrame) -> Sheet:
    dataset = next((each for each in report.datasets if each.name == name), None)
    rows = report.scored[report.scored["dataset"] == name]
    inside = in_grid(report, own)
    besides, own = own[~inside], own[inside]
    columns: list[tuple[str, str]] = []
    cells: dict[str, list[Cell]] = {arm: [] for arm in own.arm.unique()}
    fewer = False
    for metric, column in own.groupby("metric", sort=False):
        if not (column.measured.notna() | column.table.ne("")).any():
            continue
        for part, texts in _parts(column):
            columns.append((f"{metric} {ARROWS.get(column.direction.iloc[0], '')}".strip(), part))
            for arm in cells:
                cells[arm].append(texts.get(arm, Cell(NOT_PUBLISHED if part == "published" else NOT_MEASURED)))
            fewer |= any(FEWER in cell.marks for cell in texts.values())
    if len(rows):
        counts = rows.assign(ok=rows.status == OK).groupby(["system", "references"]).ok.agg(["sum", "size"])
        arms = own.drop_duplicates("arm").set_index("arm")[["system", "references"]].itertuples()
        for arm, system, references in arms:
            ran = (system, references) in counts.index
            good, total = counts.loc[(system, references)] if ran else (0, 0)
            cells[arm] += [Cell(str(good)), Cell(str(total - good))]
        columns += [("n", ""), ("failed", "")]
    if report.times is not None and (report.times["dataset"] == name).any():
        columns.append(("s a picture", ""))
        for arm, text in _times(report.times, name, own).items():
            cells[arm].append(text)
    title = dataset.title if dataset is not None else name
    about = tuple(filter(None, [dataset.protocol if dataset is not None else "", _counted(dataset, rows)]))
    notes = [*_besides(besides), *_reasons(rows), *_unmeasured(own), *(_fewer(own) if fewer else [])]
    return Sheet(title, about, tuple(columns), tuple((arm, tuple(row)) for arm, row in cells.items()), tuple(notes))


def _set_metrics(report: TableReport) -> list[str]:
    return [] if report.spec is None else list(report.spec.set_metrics)


def _besides(cells: pd.DataFrame) -> list[str]:
    """Published numbers that have no column, such as sizes of data sets and percentages of other cells."""
    if cells.empty:
        return []
    listed = "; ".join(f"{cell.arm}, {cell.metric}: {printed(cell.published)}" for cell in cells.itertuples())
    return [f"printed besides: {listed}."]


def _parts(column: pd.DataFrame) -> Iterator[tuple[str, dict[str, Cell]]]:
    """The columns of one metric: published, measured and difference where anything is published, else measured."""
    places = digits([*column.measured, *column.published])
    lines = list(column.itertuples(index=False))
    most = max(column.n)
    has_published, has_measured = column.table.ne("").any(), column.measured.notna().any()
    if has_published:
        yield "published", {line.arm: _published(line) for line in lines if line.table}
    # A table of settings or of a user study is only printed: there is nothing that could be measured.
    if has_measured or not (column.kind == PRINTED).all():
        yield ("measured" if has_published else ""), {line.arm: _measured(line, places, most) for line in lines}
    if has_published and has_measured:
        yield "difference", {line.arm: _difference(line, places) for line in lines}


def _published(line: tuple) -> Cell:
    return Cell(NOT_RECOVERED if math.isnan(line.published) else printed(line.published))


def _measured(line: tuple, places: int, most: int) -> Cell:
    if math.isnan(line.measured):
        return Cell(NOT_MEASURED)
    text = number(line.measured, places)
    if math.isfinite(line.low):
        text += f" ± {number((line.high - line.low) / 2, places)}"
    elif line.spread == line.spread:
        text += f" (spread {number(line.spread, places)})"
    marks = (BEST if line.best else TIED if line.verdict == TIED_VERDICT else "") + (FEWER if line.n < most else "")
    return Cell(text, marks)


def _difference(line: tuple, places: int) -> Cell:
    return Cell("" if math.isnan(line.difference) else number(line.difference, places, sign=True))


def _times(times: pd.DataFrame, dataset: str, own: pd.DataFrame) -> dict[str, Cell]:
    known = times[(times["dataset"] == dataset) & times.seconds.notna()]
    found = {}
    for arm, system, references in own.drop_duplicates("arm")[["arm", "system", "references"]].itertuples(index=False):
        seconds = known[(known.system == system) & (known.references == references)].seconds
        low, middle, high = seconds.quantile([0.25, 0.5, 0.75]) if len(seconds) else (math.nan,) * 3
        found[arm] = Cell(f"{middle:.3g} ({low:.3g} to {high:.3g})" if len(seconds) else NOT_MEASURED)
    return found


def _counted(dataset: object | None, rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    text = f"{rows['item'].nunique()} pictures of {rows.group.nunique()} people"
    expected = None if dataset is None else dataset.expected
    return text + ("." if expected is None else f"; the paper counts {expected}.")


def _reasons(rows: pd.DataFrame) -> list[str]:
    failed = rows[rows.status != OK]
    if failed.empty:
        return []
    from refbfr_core.benchmark.tables.report import arm_label

    arms = failed.apply(lambda row: arm_label(row.system, row.references), axis=1)
    counted = failed.assign(arm=arms).groupby("reason").arm.agg(["size", lambda own: ", ".join(sorted(set(own)))])
    counted = sorted(counted.itertuples(), key=lambda line: (-line[1], line[0]))
    lines = [f"{count} failed ({who}): {reason}" for reason, count, who in counted[:_REASONS]]
    rest = sum(line[1] for line in counted[_REASONS:])
    return lines + ([f"{rest} failed for {len(counted) - _REASONS} other reasons; the rows have them."] if rest else [])


def _unmeasured(own: pd.DataFrame) -> list[str]:
    lines = []
    for reason, those in own[(own.why != "") & ~own.why.str.startswith("all ")].groupby("why", sort=False):
        metrics, arms = those.metric.unique(), those.arm.unique()
        whole = {arm for arm in arms if (own[own.arm == arm].why == reason).all()}
        what = ", ".join(arms) if whole == set(arms) else ", ".join(metrics)
        what = "everything" if len(those) == len(own) else what
        lines.append(f"{NOT_MEASURED}: {what}: {reason}.")
    return lines


def _fewer(own: pd.DataFrame) -> list[str]:
    parts = []
    for metric, column in own.groupby("metric", sort=False):
        most = column.n.max()
        less = column[(column.n < most) & column.measured.notna()]
        parts += [f"{line.arm} {metric}: {line.n} of {most}" for line in less.itertuples()]
    return [f"{FEWER} mean over fewer pictures than other lines have, not like for like: {'; '.join(parts)}."]


def _notes(report: TableReport, frame: pd.DataFrame) -> list[str]:
    notes = []
    if (frame.kind == "mean").any():
        notes.append(
            f"Means over pictures ± half the width of the {report.level:.0%} bootstrap interval ({report.resamples} "
            f"resamples of people with all their pictures). {BEST} best mean. {TIED} not distinguishable from it: the "
            "interval of the paired difference, over the pictures both restored, contains 0. All intervals of a column "
            f"hold together at {report.level:.0%} (Bonferroni{_levels(frame)})."
        )
        notes.append("Failed pictures enter no mean; they are counted in the column failed.")
        fewest = int(frame.groups[(frame.kind == "mean") & (frame.groups > 0)].min())
        if fewest < LEAST_PEOPLE:
            notes.append(
                f"Intervals and marks from {fewest} people say little: resampling so few knows a handful of means. "
                f"Take at least {LEAST_PEOPLE}, better 20."
            )
    if (frame.verdict == FEW).any():
        notes.append("Some lines share fewer than two people with the best one and are not compared with it.")
    if (frame.kind == "set").any():
        notes.append("A distance between sets has no interval over people and is not compared; its lowest is marked.")
    if frame.published.notna().any():
        notes.append(
            "Published: as printed, mostly without n or interval. Difference: measured minus published. Printed and "
            "measured numbers compare only as far as the discrepancies listed with this table allow."
        )
    if (frame.published.isna() & frame.table.ne("")).any():
        notes.append(f"{NOT_RECOVERED}: the paper's table has this cell, but no source at hand tells it.")
    if report.times is not None:
        notes.append("s a picture: median (quartiles) of seconds for restoring one picture on the machine of the run.")
    notes += _protocols(report, frame)
    spec_notes = () if report.spec is None else report.spec.notes
    return notes + ([spec_notes] if isinstance(spec_notes, str) and spec_notes else list(spec_notes))


def _levels(frame: pd.DataFrame) -> str:
    levels = sorted({f"{level:.2%}" for level in frame.to_best_level.dropna()})
    return f": each at {' or '.join(levels)}" if levels else ""


def _protocols(report: TableReport, frame: pd.DataFrame) -> list[str]:
    names = {} if report.spec is None else {**report.spec.metrics, **report.spec.set_metrics}
    lines = []
    for metric, own in frame[frame.protocol != ""].groupby("metric", sort=False):
        unit = REGISTRY[metric].unit if metric in REGISTRY else ""
        label = metric + (f" (printed as {names[metric]})" if names.get(metric) else "")
        better = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to 0 is better"}
        words = ", ".join(filter(None, [better.get(own.direction.iloc[0], ""), unit]))
        for protocol in own.protocol.unique():
            lines.append(f"{label}: {words}; {protocol}.")
    return lines
