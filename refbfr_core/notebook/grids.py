"""Grids of pictures on a fixed [0, 1] display range, with labelled rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError
from refbfr_core.notebook.encoding import to_pixels

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Row = torch.Tensor | Sequence[torch.Tensor | None]


def image_grid(
    rows: torch.Tensor | Sequence[Row],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str | None]] | None = None,
    title: str | None = None,
    cell: float = 1.15,
    wrap: int | None = None,
) -> Figure:
    """Draw pictures in rows and columns.

    Pictures are shown as they are: 0 is black and 1 is white in every cell, so colours and brightness can be
    compared across cells.

    Parameters
    ----------
    rows : a tensor (R, C, 3, H, W); a batch (B, 3, H, W), drawn as one row or folded after `wrap` pictures; or a
        list of rows, each a batch or a list of single pictures (3, H, W). `None` in a list leaves a cell empty; rows
        may differ in length. Values in [0, 1]. Masks with one channel are drawn in grey.
    row_labels, column_labels : one text for each row or column.
    captions : texts under single cells, in the same nesting as `rows`; `None` for no text.
    title : a line above the grid.
    cell : side of a cell in inches.

    Returns
    -------
    A matplotlib figure that belongs to no window and is not drawn by itself: hand it to `show` or `save_figure`.

    Raises
    ------
    ImageContractError : a picture out of range or of a wrong shape. ConfigError : nothing to draw, or labels that do
        not fit in number.
    """
    table = _as_table(rows, wrap)
    width = max(len(row) for row in table)
    _check_count("row_labels", row_labels, len(table))
    _check_count("column_labels", column_labels, width)
    _check_count("captions", captions, len(table))

    figure, axes = blank_figure(len(table), width, cell_width=cell, cell_height=cell)
    # Room for the texts, so that they do not take it from the pictures: about 0.075 inches a letter, 0.16 a line.
    beside = 0.1 + 0.075 * _longest(row_labels)
    above = 0.16 * _lines(column_labels) + (0.3 if title else 0.0)
    below = 0.16 * sum(_lines(texts) for texts in captions or ())
    figure.set_size_inches(width * (cell + 0.05) + beside, len(table) * (cell + 0.05) + above + below)
    for r, row in enumerate(table):
        for c in range(width):
            ax = axes[r][c]
            _clear(ax)
            if c < len(row) and row[c] is not None:
                ax.imshow(
                    to_pixels(row[c], f"the picture in row {r}, column {c}"),
                    vmin=0,
                    vmax=255,
                    interpolation="antialiased",
                )
            if captions and c < len(captions[r]) and captions[r][c]:
                ax.set_xlabel(captions[r][c], fontsize=8, labelpad=2)
        if row_labels:
            axes[r][0].set_ylabel(row_labels[r], fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    for c, label in enumerate(column_labels or ()):
        axes[0][c].set_title(label, fontsize=9, pad=3)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def blank_figure(
    rows: int = 1, columns: int = 1, *, cell_width: float = 3.2, cell_height: float = 2.4, **options: object
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with `rows` × `columns` empty axes, as a list of rows.

    The figure is made without pyplot, so nothing is kept in a hidden list and a notebook shows it only when asked to.
    `cell_width` and `cell_height` are in inches; `options` go to `matplotlib.figure.Figure.subplots`.
    """
    from matplotlib.figure import Figure

    if rows < 1 or columns < 1:
        raise ConfigError(f"a figure of {rows} × {columns} axes has nothing to draw; both must be at least 1.")
    figure = Figure(figsize=(columns * cell_width, rows * cell_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def _as_table(rows: object, wrap: int | None) -> list[list]:
    import torch

    if isinstance(rows, torch.Tensor) and rows.ndim == 5:
        table = [list(row) for row in rows]
    elif isinstance(rows, torch.Tensor) and rows.ndim == 4:
        table = [list(rows)]
    elif isinstance(rows, torch.Tensor):
        raise ConfigError(
            f"a grid takes (R, C, 3, H, W) or (B, 3, H, W); this tensor has shape {tuple(rows.shape)}. "
            "Add the missing axis, for example picture[None]."
        )
    else:
        table = [list(row) if isinstance(row, Iterable) else [row] for row in rows]
    if wrap is not None:
        if len(table) != 1 or wrap < 1:
            raise ConfigError(
                f"wrap={wrap} folds one row of pictures; this grid already has {len(table)} rows. Leave wrap out."
            )
        table = [table[0][start : start + wrap] for start in range(0, len(table[0]), wrap)]
    if not table or not any(picture is not None for row in table for picture in row):
        raise ConfigError("the grid is empty; pass at least one picture.")
    return table


def _longest(texts: Sequence[str | None] | None) -> int:
    return max((len(line) for text in texts or () for line in (text or "").split("\n")), default=0)


def _lines(texts: Sequence[str | None] | None) -> int:
    return max((text.count("\n") + 1 for text in texts or () if text), default=0)


def _check_count(name: str, labels: Sequence | None, expected: int) -> None:
    if labels is not None and len(labels) != expected:
        raise ConfigError(f"{name} has {len(labels)} entries, but the grid has {expected}; give one for each.")


def _clear(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_facecolor("none")
