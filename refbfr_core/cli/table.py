"""`refbfr table`: measure a table, or go on with one that was interrupted, beside the published numbers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables.make import Choices, MadeTable

FORMATS = ("text", "markdown", "latex", "html", "csv")
_PAIR = "may be repeated."


def table(
    name: Annotated[str, typer.Argument(help="Table, such as toy; without a name all of them are listed.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/table-NAME else.")] = None,
    people: Annotated[int | None, typer.Option(help="Drawn people at each severity (24).")] = None,
    seed: Annotated[int, typer.Option(help="Of drawn people, views, degradations and noise.")] = 0,
    root: Annotated[
        list[str] | None, typer.Option(metavar="DATASET=FOLDER", help=f"Where a dataset of photographs lies; {_PAIR}")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(metavar="DATASET=FOLDER", help=f"Its photographs, if elsewhere; {_PAIR}")
    ] = None,
    results: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help=f"Score a folder of pictures under this name; {_PAIR}"),
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option(help=f"Only this system, or arm such as 'PDGrad, right'; {_PAIR}")
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help=f"Only this dataset of the table; {_PAIR}")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of every dataset on disk.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes on this machine; one a GPU, or one a CPU core for the toy table.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of a process.")] = 1,
    sets: Annotated[bool, typer.Option("--sets", help="Also FID or KID, which keep all pictures.")] = False,
    allow_small: Annotated[bool, typer.Option("--allow-small", help="Also for sets too small for them.")] = False,
    reference_set: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET=PATH", help=f"Statistics or pictures that FID and KID compare with; {_PAIR}"),
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="ONNX recogniser behind IDS and Deg on photographs; else an InsightFace pack.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Keep the restored pictures.")] = False,
    figures: Annotated[Path | None, typer.Option(help="Also draw the figures, into this folder.")] = None,
    style: Annotated[str, typer.Option("--format", help=f"What to print: {', '.join(FORMATS)}.")] = "text",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed rows again.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Measure a table and print it: intervals, significance, failures, published numbers, protocols.

    A run that was interrupted goes on where it was when the same command is given again. Exit code 1 when a row failed
    or something of the table could not be measured; the table says what and why. On several machines: accelerate launch
    -m refbfr_core.cli table NAME ...
    """
    from refbfr_core.errors import unknown_name

    if not name or name == "list":
        _list()
        return
    if style not in FORMATS:
        raise unknown_name("format", style, FORMATS)
    from refbfr_core.benchmark.tables.make import PEOPLE, Choices
    from refbfr_core.benchmark.tables.workers import launch, started_by_launch

    wanted = processes or _processes(name)
    worker = started_by_launch()
    if wanted > 1 and not worker and "WORLD_SIZE" not in os.environ and launch(wanted, sys.argv[1:]):
        raise typer.Exit(1)

    choices = Choices(
        people=people or PEOPLE,
        seed=seed,
        roots=_folders(root, "--root"),
        images=_folders(images, "--images"),
        limit=limit,
        systems=tuple(system or ()),
        datasets=tuple(dataset or ()),
        results=_folders(results, "--results"),
        sets=sets,
        allow_small=allow_small,
        reference_sets=_folders(reference_set, "--reference-set"),
        judge=judge,
    )
    keep = pictures or figures is not None
    options = {"device": device, "threads": threads, "progress": not quiet, "retry_failed": retry_failed}
    _make(name, choices, out or Path("runs") / f"table-{name}", figures, style, worker, pictures=keep, **options)


def _make(
    name: str, choices: Choices, out: Path, figures: Path | None, style: str, worker: bool, **options: Any
) -> None:
    from refbfr_core.benchmark.tables.make import make_table
    from refbfr_core.benchmark.tables.report import write_report
    from refbfr_core.benchmark.tables.workers import Workers

    made = make_table(name, choices, out=out, **options)
    # Who started this process finds all rows in the folder, and reports them.
    if worker or not Workers().main:
        return
    typer.echo(_shown(made, style))
    for line in made.remarks():
        typer.echo(line, err=True)
    written = write_report(made.report, out / "report")
    if figures is not None:
        from refbfr_core.notebook.table_figures import write_figures

        written += write_figures(made.run.rows, made.run.times, out, figures, report=made.report)
    typer.echo(f"rows: {out / 'rows.parquet'}; report: {out / 'report'}; {len(written)} files", err=True)
    if not made.whole:
        raise typer.Exit(1)


def _shown(made: MadeTable, style: str) -> str:
    if style == "csv":
        return made.report.frame().to_csv(index=False).rstrip()
    return {
        "text": made.report.text,
        "markdown": made.report.markdown,
        "latex": made.report.latex,
        "html": made.report.html,
    }[style]()


def _list() -> None:
    from refbfr_core.benchmark.tables import TABLES

    for name, spec in TABLES.items():
        typer.echo(f"{name}: {spec.title}" + ("" if spec.arms else " (printed numbers only)"))


def _folders(pairs: list[str] | None, flag: str) -> dict[str, Path]:
    """NAME=FOLDER, several times, as a dictionary."""
    from refbfr_core.errors import ConfigError

    found = {}
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not sign or not key.strip() or not value:
            raise ConfigError(f"{flag} {pair!r} is not of the form NAME=FOLDER.")
        if key.strip() in found:
            raise ConfigError(f"{flag} names {key.strip()!r} twice.")
        found[key.strip()] = Path(value)
    return found


def _processes(name: str) -> int:
    """One a core for the toy table, whose networks are small; else one."""
    from refbfr_core.benchmark.tables import table_spec

    return max(1, min(8, os.cpu_count() or 1)) if table_spec(name).profile == "toy" else 1
