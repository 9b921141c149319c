"""A table as text, Markdown, LaTeX and HTML: the same cells and notes in each, escaped for each.

Nothing here knows what a metric is. A `Sheet` is one table of finished texts with marks; `refbfr_core.benchmark.tables.
report` makes them. No output contains a date or anything else that changes from one call to the next.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BEST, TIED = "*", "~"
MARKS = {BEST: "best", TIED: "not distinguishable from the best"}
"""Marks after a cell's text, and what they mean; a cell may have others, which the notes of its sheet explain."""

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "∞": r"$\infty$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "→": r"$\rightarrow$", "†": r"\dag{}", "…": r"\ldots{}", "–": "--", "°": r"$^\circ$",
    '"': r"\textquotedbl{}", "\u2011": "-",
}  # fmt: skip
_MARKDOWN = frozenset("\\`*_{}[]<>|#~$!")


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and one character for each mark it has."""

    text: str
    marks: str = ""

    @property
    def best(self) -> bool:
        """Whether it is set in bold."""
        return BEST in self.marks


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: its caption.
        about: lines between title and table.
        columns: (group, name) of every column after the first; neighbours of one group share a heading.
        rows: a label and as many cells as there are columns.
        notes: lines below.
    """

    title: str
    about: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def markdown_text(text: str) -> str:
    """Text that GitHub's Markdown shows as it is, on one line, also inside a table."""
    plain = one_line(text).replace("&", "&amp;")
    return "".join(f"\\{letter}" if letter in _MARKDOWN else letter for letter in plain)


def one_line(text: str) -> str:
    """Line breaks and other control characters as single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def as_text(title: str, sheets: Sequence[Sheet], notes: Sequence[str], width: int = 120) -> str:
    """For a terminal: columns aligned, a sheet folded into blocks where it is wider than `width` letters."""
    parts = [one_line(title), ""]
    for sheet in sheets:
        parts += [one_line(sheet.title), *_wrapped(sheet.about, width)]
        parts += [line for block in _blocks(sheet, width) for line in ["", *block]]
        parts += ["", *_wrapped(sheet.notes, width), *([""] if sheet.notes else [])]
    parts += _wrapped(notes, width)
    return "\n".join(line.rstrip() for line in parts).rstrip() + "\n"


def as_markdown(title: str, sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Pipe tables under headings, as GitHub reads them."""
    parts = [f"# {markdown_text(title)}", ""]
    for sheet in sheets:
        parts += [f"## {markdown_text(sheet.title)}", ""]
        parts += [line for each in sheet.about for line in (markdown_text(each), "")]
        heads = ["method", *(f"{group} {name}".strip() for group, name in sheet.columns)]
        parts += [_pipe(heads, markdown_text), "|" + "|".join([" --- ", *(" ---: " for _ in sheet.columns)]) + "|"]
        for label, cells in sheet.rows:
            parts.append("| " + " | ".join([markdown_text(label), *map(_markdown_cell, cells)]) + " |")
        parts += ["", *(f"- {markdown_text(note)}" for note in sheet.notes), ""]
    if notes:
        parts += ["## Notes", "", *(f"- {markdown_text(note)}" for note in notes)]
    return "\n".join(parts).rstrip() + "\n"


def as_latex(title: str, sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """One `table` a sheet for a document with the package booktabs, T1 fonts and UTF-8; notes as paragraphs below."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}", f"% {one_line(title)}"]
    for sheet in sheets:
        about = " ".join(latex_text(line) for line in sheet.about)
        parts += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{latex_text(sheet.title)}. {about}}}",
            "\\begin{tabular}{l" + "r" * len(sheet.columns) + "}",
            "\\toprule",
            *_latex_heads(sheet),
            "\\midrule",
            *(" & ".join([latex_text(label), *map(_latex_cell, cells)]) + " \\\\" for label, cells in sheet.rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par\\footnotesize {latex_text(note)}" for note in sheet.notes),
            "\\end{table}",
            "",
        ]
    parts += [f"\\par\\noindent\\footnotesize {latex_text(note)}" for note in notes]
    return "\n".join(parts).rstrip() + "\n"


def as_html(title: str, sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """One page that needs no other file; headings of rows and columns are marked up for screen readers."""
    page = html.escape(one_line(title))
    parts = [
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{page}</title>", _STYLE,
        "</head>", "<body>", "<main>", f"<h1>{page}</h1>", html_part(sheets, notes), "</main>", "</body>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def html_part(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """The tables and notes of `as_html` without the page around them, such as for a notebook."""
    parts = []
    for sheet in sheets:
        about = " ".join(html.escape(one_line(line)) for line in sheet.about)
        caption = f"<strong>{html.escape(one_line(sheet.title))}</strong> {about}"
        name = html.escape(one_line(sheet.title), quote=True)
        parts += [f'<div class="wide" role="region" tabindex="0" aria-label="{name}">', "<table>"]
        parts += [f"<caption>{caption}</caption>", "<thead>", *_html_heads(sheet), "</thead>", "<tbody>"]
        for label, cells in sheet.rows:
            head = f'<th scope="row">{html.escape(one_line(label))}</th>'
            parts.append(f"<tr>{head}{''.join(map(_html_cell, cells))}</tr>")
        parts += ["</tbody>", "</table>", "</div>", *_html_list(sheet.notes)]
    return "\n".join([*parts, *(["<h2>Notes</h2>", *_html_list(notes)] if notes else [])])


_STYLE = (
    "<style>body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem;color:#111;background:#fff}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0}"
    "caption{text-align:left;max-width:60rem;padding-bottom:.5rem}th,td{padding:.25rem .6rem;text-align:right;"
    "border-bottom:1px solid #bbb;white-space:nowrap}th[scope=row],thead th:first-child{text-align:left}"
    "thead th{border-bottom:2px solid #111}ul{max-width:70rem}abbr{text-decoration:none}</style>"
)


def grouped(columns: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Headings over neighbouring columns of one group: (group, how many columns)."""
    found: list[tuple[str, int]] = []
    for group, _ in columns:
        if found and found[-1][0] == group:
            found[-1] = (group, found[-1][1] + 1)
        else:
            found.append((group, 1))
    return found


def _pipe(texts: Sequence[str], escape: Callable[[str], str]) -> str:
    return "| " + " | ".join(map(escape, texts)) + " |"


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    return (f"**{text}**" if cell.best and text else text) + markdown_text(cell.marks)


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    marks = f"\\textsuperscript{{{latex_text(cell.marks)}}}" if cell.marks else ""
    return (f"\\textbf{{{text}}}" if cell.best else text) + marks


def _html_cell(cell: Cell) -> str:
    text = html.escape(one_line(cell.text))
    marks = "".join(
        f'<abbr title="{html.escape(MARKS.get(mark, "see the note below"))}">{html.escape(mark)}</abbr>'
        for mark in cell.marks
    )
    return f"<td>{f'<strong>{text}</strong>' if cell.best else text}{marks}</td>"


def _html_list(notes: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{html.escape(one_line(note))}</li>" for note in notes), "</ul>"] if notes else []


def _html_heads(sheet: Sheet) -> list[str]:
    two = any(name for _, name in sheet.columns)
    over = ' rowspan="2"' if two else ""
    top, below, place = f'<tr><th scope="col"{over}>method</th>', "", 0
    for group, count in grouped(sheet.columns):
        names = [name for _, name in sheet.columns[place : place + count]]
        place += count
        scope = f'scope="colgroup" colspan="{count}"' if any(names) else f'scope="col"{over}'
        top += f"<th {scope}>{html.escape(one_line(group))}</th>"
        below += "".join(f'<th scope="col">{html.escape(one_line(name))}</th>' for name in names if any(names))
    return [top + "</tr>", f"<tr>{below}</tr>"] if two else [top + "</tr>"]


def _latex_heads(sheet: Sheet) -> list[str]:
    groups = grouped(sheet.columns)
    if not any(name for _, name in sheet.columns):
        return [" & ".join(["method", *(latex_text(group) for group, _ in sheet.columns)]) + " \\\\"]
    top, rules, place = [""], [], 2
    for group, count in groups:
        top.append(f"\\multicolumn{{{count}}}{{c}}{{{latex_text(group)}}}")
        if count > 1:
            rules.append(f"\\cmidrule(lr){{{place}-{place + count - 1}}}")
        place += count
    names = ["method", *(latex_text(name) for _, name in sheet.columns)]
    return [" & ".join(top) + " \\\\", *([" ".join(rules)] if rules else []), " & ".join(names) + " \\\\"]


def _blocks(sheet: Sheet, width: int) -> list[list[str]]:
    """Lines of the table, as many columns in a block as fit; groups stay together where they fit at all."""
    labels = ["", "method", *(one_line(label) for label, _ in sheet.rows)]
    columns = []
    for place, (group, name) in enumerate(sheet.columns):
        first = place == 0 or sheet.columns[place - 1][0] != group
        own = [row[1][place] for row in sheet.rows]
        # Numbers stay in line whether a mark follows or not.
        room = max((len(cell.marks) for cell in own), default=0)
        cells = [one_line(cell.text) + cell.marks.ljust(room) for cell in own]
        columns.append([one_line(group) if first else "", one_line(name), *cells])
    if not any(column[1] for column in columns):
        labels = labels[1:]
        columns = [[column[0], *column[2:]] for column in columns]
    left = max(map(len, labels))
    spans, place = [], 0
    for _, count in grouped(sheet.columns):
        spans.append(range(place, place + count))
        place += count
    blocks: list[list[int]] = [[]]
    used = left
    for span in spans:
        own = sum(2 + max(map(len, columns[index])) for index in span)
        if blocks[-1] and used + own > width:
            blocks.append([])
            used = left
        blocks[-1] += list(span)
        used += own
    return [_aligned(labels, [columns[index] for index in block]) for block in blocks]


def _aligned(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    left = max(map(len, labels))
    lines = []
    for place, label in enumerate(labels):
        cells = (column[place].rjust(width) for column, width in zip(columns, widths, strict=True))
        lines.append("  ".join([label.ljust(left), *cells]))
    return lines


def _wrapped(notes: Sequence[str], width: int) -> list[str]:
    import textwrap

    lines = []
    for note in notes:
        lines += textwrap.wrap(one_line(note), width, initial_indent="  ", subsequent_indent="    ",
                               break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return lines
