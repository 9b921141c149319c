"""`refbfr notebooks`: list the series, and run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List the notebooks, or run the series.", no_args_is_help=True, rich_markup_mode=None)

_Folder = Annotated[
    Path | None, typer.Option("--notebooks", help="Folder of the notebooks; found by itself in a clone.")
]


@app.command("list")
def list_notebooks(notebooks: _Folder = None) -> None:
    """List the notebooks in reading order."""
    from refbfr_core.cli.series import find_notebooks

    series = find_notebooks(_folder(notebooks))
    width = max(len(notebook.name) for notebook in series)
    for notebook in series:
        typer.echo(f"{notebook.name:<{width}}  {notebook.title}".rstrip())


@app.command("run")
def run(
    out: Annotated[Path, typer.Option(help="Where the executed notebooks go.")] = Path("build/workbook"),
    profile: Annotated[str, typer.Option(help="toy (drawn faces, no download) or paper.")] = "toy",
    only: Annotated[
        list[str] | None, typer.Option(help="Run just this one, by number or name; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is done and unchanged.")] = False,
    notebooks: _Folder = None,
) -> None:
    """Execute the notebooks in order, each in its own kernel. A series that was stopped goes on where it was."""
    from refbfr_core.cli.series import TIMES_FILE, find_notebooks, run_series, select
    from refbfr_core.weights.registry import check_profile

    check_profile(profile)
    series = select(find_notebooks(_folder(notebooks)), only or [])
    outcomes = run_series(series, out, profile=profile, force=force, report=typer.echo)
    fresh = [outcome for outcome in outcomes if not outcome.skipped]
    seconds = sum(outcome.seconds for outcome in fresh)
    before = len(outcomes) - len(fresh)
    typer.echo(f"{len(fresh)} run in {seconds:.1f} s, {before} done before; see {out} (times: {out / TIMES_FILE})")


def _folder(given: Path | None) -> Path:
    """Return the given folder, else the notebooks of the clone around the current folder or around this package."""
    from refbfr_core.errors import ConfigError
    from refbfr_core.notebook.export import workbook_root

    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"there is no folder {given}; name the folder that holds the notebooks.")
        return given
    root = workbook_root() or workbook_root(Path(__file__).parent)
    if root is None or not (root / "notebooks").is_dir():
        raise ConfigError(
            "the notebooks come with a clone of the workbook, not with the package; run this in one, or use --notebooks"
        )
    return root / "notebooks"
