"""Figures of a finished table: perception against distortion, identity against quality, differences, time a picture.

`write_figures` makes all of them from a run's rows and pictures; the command ``refbfr table NAME --figures FOLDER``
calls it, so that every figure can be made again from the files of a run alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from refbfr_core.benchmark.tables.report import TableReport
from refbfr_core.benchmark.tables.significance import ROW_KEYS
from refbfr_core.benchmark.tables.systems import INPUT
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import REGISTRY
from refbfr_core.notebook.export import Picture, save_figure
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, plot_settings
from refbfr_core.notebook.table_grid import grid_alt, table_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DISTORTION = ("psnr", "lpips", "lpips-toy", "ssim")
"""Scores against the truth for the plane, the first that a table has."""
PERCEPTION = ("niqe", "niqe-toy", "musiq", "textures")
"""Scores of how natural a picture looks, likewise."""
IDENTITY = ("ids", "deg")
MADE_BY = "refbfr table NAME --figures FOLDER"

_MARKERS = ("o", "^", "s", "D", "v", "P", "X", ">", "d", "<", "p")
# Yellow is left out: an open yellow marker on white cannot be seen. Grey takes its place.
_INKS = (*COLOURS[:7], "#7F7F7F")
_INPUT = {"fmt": "x", "color": "#000000"}
# The input is often several times worse than every method; on a logarithmic axis those still stand apart.
_WIDE = 2.5
_FILLS = {"right": "full", "none": "none", "wrong": "left"}
_BETTER = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to 0 is better"}


def write_figures(
    rows: pd.DataFrame,
    times: pd.DataFrame | None,
    pictures_folder: str | Path | None,
    out_folder: str | Path,
    *,
    report: TableReport | None = None,
    people: int = 6,
    made_by: str = MADE_BY,
) -> list[Picture]:
    """Make every figure that the run has the numbers or pictures for, each with a JSON file of its provenance.

    Args:
        rows, times: of a `TableRun`; without times there is no figure of them.
        pictures_folder: the run's folder, in which `pictures` lies; None leaves the grids of pictures out.
        out_folder: where figures go: "plane", "identity", "differences-METRIC", "time" (.png), "grid-DATASET" (.jpg).
        report: the report of these rows, if there is one already, for its titles and intervals.
        people: columns of a grid.
        made_by: the command to type to get them again.

    Returns:
        The pictures, each with its alternative text and path, in a fixed order.

    Raises:
        ConfigError: nothing can be drawn. OutputError: the folder cannot be written to.
    """
    import matplotlib

    report = TableReport(rows) if report is None else report
    titles = {dataset.name: dataset.title for dataset in report.datasets}
    frame = report.frame()
    frame = frame[(frame.kind == "mean") & frame["dataset"].isin(rows["dataset"])]
    about = {"rows": len(rows), "rows_sha256": rows_digest(rows), "level": report.level, "resamples": report.resamples}
    made = []

    def save(figure: Figure, name: str, alt: str, kind: str = "png", **settings: object) -> None:
        options = {"made_by": made_by, "settings": {**about, **settings}, "folder": out_folder, "kind": kind}
        made.append(save_figure(figure, name, alt=alt, max_bytes=2_500_000, **options))

    with matplotlib.rc_context(plot_settings()):
        across, up = first_of(frame, DISTORTION), first_of(frame, PERCEPTION)
        if across and up:
            save(plane_figure(frame, across, up, titles), "plane", plane_alt(frame, across, up), x=across, y=up)
        identity = first_of(frame, IDENTITY)
        if identity and up:
            figure = plane_figure(frame, up, identity, titles)
            save(figure, "identity", plane_alt(frame, up, identity), x=up, y=identity)
        for metric in filter(None, dict.fromkeys((identity, across, up))):
            if frame[frame.metric == metric].to_best.notna().any():
                name = f"differences-{metric}"
                save(forest_figure(frame, metric, titles), name, forest_alt(frame, metric), metric=metric)
        if times is not None and times.seconds.notna().any():
            save(time_figure(times), "time", time_alt(times))
        if pictures_folder is not None:
            for dataset in frame["dataset"].unique():
                grid = table_grid(rows, Path(pictures_folder), dataset, people, titles.get(dataset, ""))
                if grid is not None:
                    name = "grid-" + re.sub(r"[^a-z0-9_-]+", "-", dataset.lower()).strip("-")
                    save(grid.figure, name, grid_alt(grid), "jpg", items=list(grid.items), lines=list(grid.labels))
    if not made:
        raise ConfigError("there is nothing to draw: no two scores to set against each other, no times, no pictures.")
    return made


def plane_figure(frame: pd.DataFrame, across: str, up: str, titles: dict[str, str] | None = None) -> Figure:
    """Two scores against each other, a panel a dataset and a point an arm, with intervals as crosses.

    Colour and shape tell systems apart, the filling whose references: full the person's own, half somebody else's,
    open none.

    Args:
        frame: of `TableReport.frame`.
        across, up: metrics; titles: dataset -> heading.

    Raises:
        ConfigError: no arm has both scores.
    """
    points = _points(frame, across, up)
    datasets = list(points["dataset"].unique())
    figure, axes = blank_figure(1, len(datasets), cell_width=3.1, cell_height=3.3, sharey=True)
    styles = _styles(points)
    handles = {}
    for ax, dataset in zip(axes[0], datasets, strict=True):
        for point in points[points["dataset"] == dataset].itertuples():
            spread = {f"{axis}err": _reach(point, name) for axis, name in (("x", "across"), ("y", "up"))}
            handles[point.arm] = ax.errorbar(point.across, point.up, **spread, **styles[point.arm])
        ax.set(title=(titles or {}).get(dataset, dataset), xlabel=_axis(across))
        _scale(ax, "x", across, points.across)
    _scale(axes[0][0], "y", up, points.up)
    axes[0][0].set_ylabel(_axis(up))
    named = [(handles[arm], arm) for arm in styles if arm in handles]
    figure.set_size_inches(3.1 * len(datasets) + 1.7, max(3.3, 0.4 + 0.19 * len(named)))
    figure.legend(*zip(*named, strict=True), loc="outside right upper", handlelength=1.2)
    return figure


def forest_figure(frame: pd.DataFrame, metric: str, titles: dict[str, str] | None = None) -> Figure:
    """Paired differences of every arm to the best one of its dataset with their corrected intervals, a panel a dataset.

    Full markers: worse (or better) than the best; open: not distinguishable from it; the best stands at 0 as a star.

    Raises:
        ConfigError: no differences of this metric.
    """
    own = frame[(frame.metric == metric) & (frame.best | frame.to_best.notna())]
    if own.to_best.isna().all():
        raise ConfigError(f"no arm can be compared with the best one in {metric!r}.")
    datasets, arms = list(own["dataset"].unique()), list(own.arm.unique())
    figure, axes = blank_figure(1, len(datasets), cell_width=2.6, cell_height=0.9 + 0.21 * len(arms), sharey=True)
    figure.set_size_inches(2.6 * len(datasets) + 0.075 * max(map(len, arms)), 0.9 + 0.21 * len(arms))
    for ax, dataset in zip(axes[0], datasets, strict=True):
        ax.axvline(0, color="#444444", linewidth=0.8)
        for line in own[own["dataset"] == dataset].itertuples():
            place = arms.index(line.arm)
            if line.best:
                ax.plot(0, place, marker="*", markersize=10, color=COLOURS[2], linestyle="none")
                continue
            ends = [[line.to_best - line.to_best_low], [line.to_best_high - line.to_best]]
            known = np.isfinite(ends).all()
            apart = line.distinguishable is True
            ax.errorbar(line.to_best, place, xerr=ends if known else None, fmt="o", capsize=2,
                        color=COLOURS[5] if apart else COLOURS[0], fillstyle="full" if apart else "none")  # fmt: skip
        better = _BETTER[own.direction.iloc[0]]
        ax.set(title=(titles or {}).get(dataset, dataset), xlabel=f"{_unit(metric)}, minus the best\n({better})")
        ax.set_yticks(range(len(arms)), arms)
        ax.margins(x=0.08)
    axes[0][0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


def time_figure(times: pd.DataFrame) -> Figure:
    """Median seconds of a picture by arm over all datasets, as bars on a logarithmic axis, with quartiles as whiskers.

    Raises:
        ConfigError: no times.
    """
    table = time_table(times)
    middle = table["median"].to_numpy()
    floor = 10 ** np.floor(np.log10(max(table["low"].min(), 1e-6)))
    figure, axes = blank_figure(1, 1, cell_width=5.2, cell_height=0.8 + 0.24 * len(table))
    ax: Axes = axes[0][0]
    places = np.arange(len(table))
    ax.barh(places, middle - floor, left=floor, color=COLOURS[4], height=0.65)
    ends = [np.clip(middle - table["low"], 0, None), np.clip(table["high"] - middle, 0, None)]
    ax.errorbar(middle, places, xerr=ends, fmt="none", ecolor="#222222", capsize=2)
    ceiling = table["high"].max()
    for place, line in enumerate(table.itertuples()):
        ax.text(line.high * 1.12, place, f"{line.median:.3g}", va="center", fontsize=8)
    ax.set(xscale="log", xlim=(floor, ceiling * (ceiling / floor) ** 0.14))
    ax.set_xlabel("seconds a picture (median, quartiles)")
    ax.set_yticks(places, table.arm)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    return figure


def time_table(times: pd.DataFrame) -> pd.DataFrame:
    """Columns "arm", "median", "low", "high" (quartiles of positive seconds), the fastest first; raises ConfigError."""
    from refbfr_core.benchmark.tables.report import arm_label

    known = times[times.seconds > 0]
    if known.empty:
        raise ConfigError("no row has a time above 0 s.")
    lines = []
    for (system, references), own in known.groupby(["system", "references"], sort=True):
        low, middle, high = own.seconds.quantile([0.25, 0.5, 0.75])
        lines.append({"arm": arm_label(system, references), "median": middle, "low": low, "high": high})
    return pd.DataFrame(lines).sort_values(["median", "arm"], ignore_index=True)


def plane_alt(frame: pd.DataFrame, across: str, up: str) -> str:
    """What `plane_figure` shows, in words: for each dataset, which arm is best in each of the two scores."""
    points = _points(frame, across, up)
    parts = []
    for dataset, own in points.groupby("dataset", sort=False):
        best = {}
        for metric in (across, up):
            lines = frame[(frame["dataset"] == dataset) & (frame.metric == metric) & frame.best]
            best[metric] = lines.arm.iloc[0] if len(lines) else "nobody"
        parts.append(f"{dataset} ({len(own)} arms): best {across} {best[across]}, best {up} {best[up]}")
    head = f"Points with interval crosses, {up} ({_better(up)}) over {across} ({_better(across)})"
    return f"{head}, one point an arm and one panel a dataset. {'; '.join(parts)}."


def forest_alt(frame: pd.DataFrame, metric: str) -> str:
    """What `forest_figure` shows, in words."""
    parts = []
    for dataset, own in frame[frame.metric == metric].groupby("dataset", sort=False):
        tied = own[own.verdict.str.startswith("not")].arm
        best = own[own.best].arm
        others = f"not distinguishable {', '.join(tied)}" if len(tied) else "all others distinguishable"
        parts.append(f"{dataset}: best {best.iloc[0] if len(best) else 'nobody'}, {others}")
    return f"Intervals of paired differences to the best arm in {metric} ({_better(metric)}). {'; '.join(parts)}."


def time_alt(times: pd.DataFrame) -> str:
    """What `time_figure` shows, in words."""
    table = time_table(times)
    first, last = table.iloc[0], table.iloc[-1]
    return (
        f"Bars of median seconds a picture on a logarithmic axis for {len(table)} arms, from {first.arm} "
        f"({first['median']:.3g} s) to {last.arm} ({last['median']:.3g} s); whiskers are quartiles."
    )


def first_of(frame: pd.DataFrame, names: Iterable[str]) -> str | None:
    """The first of the metrics that some arm has a mean of, or None."""
    there = set(frame[frame.measured.notna()].metric)
    return next((name for name in names if name in there), None)


def rows_digest(rows: pd.DataFrame) -> str:
    """SHA-256 of the rows, in whatever order they come."""
    columns = sorted(rows.columns, key=str)
    text = rows[columns].sort_values(list(ROW_KEYS[:5]), ignore_index=True).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def _points(frame: pd.DataFrame, across: str, up: str) -> pd.DataFrame:
    keys = ["dataset", "arm", "system", "references"]
    sides = []
    for metric, name in ((across, "across"), (up, "up")):
        own = frame[(frame.metric == metric) & np.isfinite(frame.measured.astype(float))]
        own = own[[*keys, "measured", "low", "high"]]
        sides.append(own.rename(columns={"measured": name, "low": f"{name}_low", "high": f"{name}_high"}))
    points = sides[0].merge(sides[1], on=keys)
    if points.empty:
        raise ConfigError(f"no arm has both {across!r} and {up!r}; measure them on the same dataset.")
    return points


def _reach(point: tuple, name: str) -> list[list[float]] | None:
    middle, low, high = (getattr(point, each) for each in (name, f"{name}_low", f"{name}_high"))
    return [[middle - low], [high - middle]] if np.isfinite([low, high]).all() else None


def _styles(points: pd.DataFrame) -> dict[str, dict]:
    systems = sorted(points.system.unique(), key=lambda name: name != INPUT)
    styles = {}
    for line in points.drop_duplicates("arm").itertuples():
        place = systems.index(line.system) - (INPUT in systems)
        styles[line.arm] = {
            "fmt": _MARKERS[place % len(_MARKERS)],
            "color": _INKS[place % len(_INKS)],
            "fillstyle": _FILLS.get(line.references, "full"),
            "markerfacecoloralt": "white",
            "markersize": 6,
            "elinewidth": 0.9,
            "alpha": 0.9,
        } | (_INPUT if line.system == INPUT else {})
    return styles


def _scale(ax: Axes, side: str, metric: str, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers for a distance (0 to infinity, 0 is best) whose values are far apart."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    distance = metric in REGISTRY and REGISTRY[metric].range == (0.0, np.inf) and REGISTRY[metric].direction == "lower"
    if distance and values.min() > 0 and values.max() > _WIDE * values.min():
        ax.set(**{f"{side}scale": "log"})
        axis: Axis = getattr(ax, f"{side}axis")
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())


def _unit(metric: str) -> str:
    unit = REGISTRY[metric].unit if metric in REGISTRY else ""
    return f"{metric} [{unit}]" if unit else metric


def _better(metric: str) -> str:
    return _BETTER[REGISTRY[metric].direction] if metric in REGISTRY else ""


def _axis(metric: str) -> str:
    return f"{_unit(metric)} ({_better(metric)})"
