"""Make the notebooks from their sources: `src/NAME.py` (percent format, easy to review) becomes `NAME.ipynb`.

    python notebooks/build.py                 every notebook; outputs stay where the code did not change
    python notebooks/build.py --execute 03    also run it on the toy profile; outputs and figures are renewed
    python notebooks/build.py --execute --measure        and record the times, on a machine with nothing else to do

The notebooks are committed with their outputs, so that they can be read without running anything. A test compares
sources and notebooks cell by cell.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LARGEST = 700_000
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def source_paths(only: list[str]) -> list[Path]:
    """The sources in reading order; `only` holds numbers or names, all when it is empty."""
    paths = sorted((HERE / "src").glob("[0-9][0-9]_*.py"))
    chosen = [path for path in paths if not only or path.stem in only or path.stem.split("_")[0] in only]
    if not chosen:
        raise SystemExit(f"no notebook matches {only}; there are {', '.join(path.stem for path in paths)}")
    return chosen


def converted(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs. The same text gives the same bytes."""
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell["id"] = f"cell-{index:02d}"
    return notebook


def content(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """What a reader edits: kind, text and tags of every cell."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))) for cell in notebook.cells]


def code(notebook: NotebookNode) -> list[str]:
    """The code cells only; outputs belong to these."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def take_outputs(target: NotebookNode, executed: NotebookNode) -> bool:
    """Copy outputs cell by cell if the code is the same, and say whether it was."""
    cells = [
        cell
        for cell in executed.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    if [cell.source for cell in cells] != code(target):
        return False
    blanks = (cell for cell in target.cells if cell.cell_type == "code")
    for number, (blank, cell) in enumerate(zip(blanks, cells, strict=True), start=1):
        blank.outputs = [tidy(output, number) for output in cell.outputs]
        blank.execution_count = number if cell.execution_count is not None else None
    return True


def tidy(output: NotebookNode, number: int) -> NotebookNode:
    """An output with the number of its cell, and without what changes from run to run."""
    output = nbformat.from_dict(dict(output))
    if "execution_count" in output:
        output.execution_count = number
    return output


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one step, refusing sizes that would be slow to open."""
    from refbfr_core.files import write_text

    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode("utf-8")) > LARGEST:
        raise SystemExit(f"{path.name} takes {len(text):,} bytes, more than {LARGEST:,}: show fewer or smaller pictures")
    write_text(path, text)


def execute(names: list[str], measure: bool) -> None:
    """Run notebooks through the series runner of `refbfr notebooks run`, with figures going to `figures/`."""
    from refbfr_core.cli.series import describe_machine, find_notebooks, run_series, select
    from refbfr_core.notebook.export import FIGURES_VARIABLE

    out = ROOT / "build" / "notebooks"
    os.environ[FIGURES_VARIABLE] = str(ROOT / "figures")
    series = select(find_notebooks(HERE), names)
    outcomes = run_series(series, out, force=True, report=lambda line: sys.stdout.write(line + "\n"))
    for name in names:
        notebook = converted(HERE / "src" / f"{name}.py")
        if not take_outputs(notebook, nbformat.read(out / f"{name}.ipynb", as_version=4)):
            raise SystemExit(f"{name} changed while it ran; run it again")
        write(notebook, HERE / f"{name}.ipynb")
    if measure:
        record({outcome.name: outcome.seconds for outcome in outcomes}, describe_machine())


def record(seconds: dict[str, float], machine: str) -> None:
    """Write measured times into `docs/measured.json`; entries of other notebooks stay as they are."""
    from refbfr_core.files import write_text

    path = ROOT / "docs" / "measured.json"
    known = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}
    known |= {name: {"seconds": round(value, 1), "machine": machine} for name, value in seconds.items()}
    write_text(path, json.dumps({"notebooks": known}, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Command line; see the text at the top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="numbers or names; all when none is given")
    parser.add_argument("--execute", action="store_true", help="run them, too")
    parser.add_argument("--measure", action="store_true", help="record the times of this run in docs/measured.json")
    arguments = parser.parse_args()
    paths = source_paths(arguments.only)
    for path in paths:
        notebook, target = converted(path), HERE / f"{path.stem}.ipynb"
        kept = target.is_file() and take_outputs(notebook, nbformat.read(target, as_version=4))
        kept = kept and any(cell.get("outputs") for cell in notebook.cells)
        write(notebook, target)
        sys.stdout.write(f"{target.name}: {len(notebook.cells)} cells, {'outputs kept' if kept else 'not executed'}\n")
    if arguments.execute:
        execute([path.stem for path in paths], arguments.measure)


if __name__ == "__main__":
    main()
