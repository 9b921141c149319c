"""Write the table of notebooks in README.md, with the times in docs/measured.json; `make times` calls it.

The times come from `notebooks/build.py --execute --measure`. No time in the README is typed by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "measured.json"
README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- notebooks: written by docs/times\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def notebook_heading(path: Path) -> str:
    """Return the first heading of a notebook; raises `ValueError` when it has none."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else []:
            if line.startswith("# "):
                return line[2:].strip()
    raise ValueError(f"{path} has no heading")


def table(folder: Path, measured: dict[str, dict[str, object]]) -> str:
    """Return the Markdown table of the notebooks in `folder`, with the times in `measured` where there are any."""
    lines = ["| notebook | subject | time |", "|---|---|---:|"]
    machines = set()
    for path in sorted(folder.glob("*.ipynb")):
        entry = measured.get(path.stem)
        time = "not measured"
        if entry:
            time = f"{float(entry['seconds']):.0f} s"
            machines.add(str(entry["machine"]))
        lines.append(f"| [`{path.stem}`](notebooks/{path.name}) | {notebook_heading(path)} | {time} |")
    if machines:
        lines += ["", f"Measured on the toy profile: {'; '.join(sorted(machines))}."]
    return "\n".join(lines) + "\n"


def with_table(readme: str, new: str) -> str:
    """Return the text of the README with `new` between its two marks; raises `ValueError` when they are missing."""
    if not _TABLE.search(readme):
        raise ValueError("README.md has lost the marks around the table of notebooks")
    return _TABLE.sub(lambda found: found[1] + new + found[2], readme)


def main() -> None:
    """Write the table."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))["notebooks"] if MEASURED.is_file() else {}
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_table(readme, table(ROOT / "notebooks", measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
