"""The picture of a finished reference study, as a figure with provenance.

``python -m refbfr_core.notebook.study_figure FOLDER`` reads what ``refbfr evaluate references --out FOLDER`` wrote and
makes `figures/restoration_grid.jpg`, the first picture of the README, and `figures/restoration_table.txt`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from refbfr_core.errors import ConfigError
from refbfr_core.files import write_text
from refbfr_core.images import read_image
from refbfr_core.notebook.contact_sheet import pixel_figure
from refbfr_core.notebook.export import Picture, figures_folder, save_figure

ALT = (
    "Grid of drawn faces, one person a column. Rows: the ruined input; restorations without references, with another "
    "person's photos and with the person's own photos; the true picture; the first reference photo."
)


def study_figure(study: str | Path, folder: str | Path | None = None) -> Picture:
    """Save the grid and the table of the study in the folder ``study``; returns the picture.

    Raises
    ------
    ConfigError : the study is not finished. OutputError : the figures cannot be written.
    """
    study = Path(study)
    missing = [name for name in ("grid.png", "settings.json", "table.txt") if not (study / name).is_file()]
    if missing:
        raise ConfigError(f"{study} has no {', '.join(missing)}; run: refbfr evaluate references --out {study}")
    settings = json.loads((study / "settings.json").read_text(encoding="utf-8"))
    picture = save_figure(
        pixel_figure(read_image(study / "grid.png")[0]),
        "restoration_grid",
        alt=ALT,
        made_by="refbfr evaluate references, then python -m refbfr_core.notebook.study_figure",
        settings=settings,
        kind="jpg",
        folder=folder,
        max_bytes=1_000_000,
    )
    target = Path(folder) if folder is not None else figures_folder()
    table = (study / "table.txt").read_text(encoding="utf-8")
    # The last line names the place of the pictures on the machine that ran the study.
    lines = [line for line in table.splitlines() if not line.startswith("pictures:")]
    write_text(target / "restoration_table.txt", "\n".join(lines).rstrip() + "\n")
    return picture


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m refbfr_core.notebook.study_figure FOLDER")
    print(study_figure(sys.argv[1]))  # noqa: T201 - a command tells what it wrote
