"""Small tables for notebooks: rounded, captioned, readable as HTML and as plain text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Table:
    """A table that shows itself when it is the last value of a cell; `frame` holds the unrounded numbers."""

    frame: pd.DataFrame
    caption: str
    digits: int

    def _cells(self) -> list[list[str]]:
        return [[_text(value, self.digits) for value in row] for row in self.frame.itertuples(index=False)]

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" style="text-align:left">{html.escape(str(name))}</th>' for name in self.frame.columns
        )
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self._cells()
        )
        caption = f'<caption style="text-align:left">{html.escape(self.caption)}</caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        rows = [[str(name) for name in self.frame.columns], *self._cells()]
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.caption, *lines])


def table(rows: Sequence[Mapping[str, object]] | pd.DataFrame, *, caption: str, digits: int = 3) -> Table:
    """Make a table.

    Parameters
    ----------
    rows : one mapping for each row, all with the same keys in the same order; or a DataFrame (its index is not shown).
    caption : one sentence above the table: what, on how many, in which unit.
    digits : decimals of floating-point numbers.

    Raises
    ------
    ConfigError : no rows, rows with different keys, no caption.
    """
    import pandas as pd

    if not isinstance(caption, str) or not caption.strip():
        raise ConfigError(
            "a table needs a caption: one sentence that says what it shows, on how many pictures, in which unit."
        )
    if not isinstance(rows, pd.DataFrame):
        rows = list(rows)
        if rows and any(list(row) != list(rows[0]) for row in rows):
            raise ConfigError(
                f"rows differ in their columns: {[list(row) for row in rows]}; give every row the same keys."
            )
        rows = pd.DataFrame(rows)
    if rows.empty:
        raise ConfigError("the table has no rows; nothing was measured.")
    return Table(rows, caption, digits)


def beside_paper(rows: Sequence[tuple[str, float, float | None, str]], *, caption: str, digits: int = 3) -> Table:
    """Make the table "measured here" beside "reported by the paper".

    Parameters
    ----------
    rows : (quantity, measured here, reported or None, where the reported value comes from). The two columns are
        never the same experiment on the toy profile: other pictures, other networks. They are set side by side to
        compare directions and sizes of effects.
    caption, digits : as for `table`.
    """
    return table(
        [
            {"quantity": what, "measured here": here, "paper": "–" if paper is None else paper, "source": source}
            for what, here, paper, source in rows
        ],
        caption=caption,
        digits=digits,
    )


def _text(value: object, digits: int) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "–" if value != value else f"{value:.{digits}f}"
    return str(value)
