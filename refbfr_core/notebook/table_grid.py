"""Grids of what the methods of a table made, like the comparison figures of the papers: a line a method, a column a
person, with the input above, the truth and a reference below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.tables.report import arm_label
from refbfr_core.benchmark.tables.results import REFERENCE, TRUTH, picture_path
from refbfr_core.benchmark.tables.systems import INPUT, SYSTEMS
from refbfr_core.errors import ImageFileError
from refbfr_core.images import read_image
from refbfr_core.notebook.grids import image_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


@dataclass(frozen=True)
class TableGrid:
    """A grid of pictures: the figure, the labels of its lines, the items of its columns, and which cells failed."""

    figure: Figure
    dataset: str
    labels: tuple[str, ...]
    items: tuple[str, ...]
    failed: int


def table_grid(
    rows: pd.DataFrame, folder: Path, dataset: str, people: int = 6, title: str = "", cell: float = 1.28
) -> TableGrid | None:
    """Draw one dataset of a run.

    The columns are the first pictures of as many different people, by name: chosen before anything was restored, not
    for how they look. A cell says "failed" where the row did, and stays empty where a picture was not kept.

    Args:
        rows: of the run.
        folder: of the run, in which `pictures` lies.
        dataset: a name in the rows.
        people: columns. title: a line above; the dataset's name if empty. cell: side of a picture in inches.

    Returns:
        The grid, or None when no picture of the dataset was kept.
    """
    own = rows[rows["dataset"] == dataset]
    first = own.sort_values("item").drop_duplicates("group")
    items = list(first["item"])[:people]
    arms = sorted({*zip(own.system, own.references, strict=True)}, key=_order)
    lines: dict[str, list[Tensor | None]] = {}
    captions: dict[str, list[str | None]] = {}
    for system, references in arms:
        label = arm_label(system, references)
        these = own[(own.system == system) & (own.references == references)].set_index("item")
        bad = [item in these.index and these.status[item] != OK for item in items]
        lines[label] = [None if failed else _read(folder, dataset, label, item)
                        for item, failed in zip(items, bad, strict=True)]  # fmt: skip
        captions[label] = ["failed" if failed else None for failed in bad]
    for label in (TRUTH, REFERENCE):
        lines[label] = [_read(folder, dataset, label, item) for item in items]
        captions[label] = [None] * len(items)
    kept = {name: line for name, line in lines.items() if any(each is not None for each in line) or any(captions[name])}
    if not any(each is not None for line in kept.values() for each in line):
        return None
    figure = image_grid(
        list(kept.values()),
        row_labels=list(kept),
        captions=[captions[name] for name in kept] if any(any(captions[name]) for name in kept) else None,
        title=title or dataset,
        cell=cell,
    )
    failed = sum(text is not None for name in kept for text in captions[name])
    return TableGrid(figure, dataset, tuple(kept), tuple(items), failed)


def grid_alt(grid: TableGrid) -> str:
    """What the grid shows, in words."""
    failures = f" Cells marked as failed: {grid.failed}." if grid.failed else ""
    return (
        f"Grid of faces of {grid.dataset}, one of {len(grid.items)} people a column. Lines from top to bottom: "
        f"{'; '.join(grid.labels)}.{failures}"
    )


def _order(arm: tuple[str, str]) -> tuple:
    """The input first, then the systems in their order, then others by name."""
    systems = [INPUT, *SYSTEMS]
    place = systems.index(arm[0]) if arm[0] in systems else len(systems)
    return place, arm[0], ("none", "right", "wrong").index(arm[1]) if arm[1] in ("none", "right", "wrong") else 3


def _read(folder: Path, dataset: str, label: str, item: str) -> Tensor | None:
    path = picture_path(folder, dataset, label, item)
    if not path.is_file():
        return None
    try:
        return read_image(path)[0]
    except ImageFileError:
        return None
