"""`refbfr table`: measure a table, or go on with one that was interrupted, beside the published numbers."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from refbfr_core.benchmark.tables import TableReport
    from refbfr_core.benchmark.tables.make import MadeTable

FORMATS = ("text", "markdown", "latex", "html", "csv")
_PAIR = "may be repeated."


def table(
    name: Annotated[str, typer.Argument(help="Table, such as toy; none lists them, `systems` lists the methods.")] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/table-NAME else.")] = None,
    people: Annotated[int | None, typer.Option(help="Drawn people at each severity (20).")] = None,
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
    limit: Annotated[int | None, typer.Option(help="Only the first items of every dataset.")] = None,
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
    printed: Annotated[bool, typer.Option("--printed", help="Only what the paper prints; measure nothing.")] = False,
    style: Annotated[str, typer.Option("--format", help=f"What to print: {', '.join(FORMATS)}.")] = "text",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed rows again.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")] = None,
    record: Annotated[str, typer.Option(metavar="NAME", help="Keep the rows as this recording of the package.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Measure a table and print it: intervals, significance, failures, published numbers, protocols.

    A run that was interrupted goes on where it was when the same command is given again. Exit code 1 when a row failed
    or something of the table could not be measured; the table says what and why. On several machines: accelerate launch
    -m refbfr_core.cli table NAME ...
    """
    from refbfr_core.errors import unknown_name

    if name in _LISTS:
        _LISTS[name]()
        return
    if style not in FORMATS:
        raise unknown_name("format", style, FORMATS)
    from refbfr_core.benchmark.tables import TableReport, table_spec
    from refbfr_core.benchmark.tables.workers import Workers, default_processes, launch, started_by_launch

    if printed or not table_spec(name).measured:
        typer.echo(_shown(TableReport(spec=table_spec(name)), style))
        return
    folders = {
        "roots": _folders(root, "--root"),
        "images": _folders(images, "--images"),
        "results": _folders(results, "--results"),
        "reference_sets": _folders(reference_set, "--reference-set"),
    }
    cpu = device is not None and device.startswith("cpu")
    wanted = processes or default_processes(table_spec(name).profile == "toy", cpu)
    worker = started_by_launch()
    if wanted > 1 and not worker and "WORLD_SIZE" not in os.environ and launch(wanted, sys.argv[1:], cpu):
        raise typer.Exit(1)
    # Only now: the processes that were started may have done all the work.
    from refbfr_core.benchmark.tables.make import PEOPLE, Choices, make_table

    choices = Choices(
        people=people or PEOPLE,
        seed=seed,
        limit=limit,
        systems=tuple(system or ()),
        datasets=tuple(dataset or ()),
        sets=sets,
        allow_small=allow_small,
        judge=judge,
        **folders,
    )
    keep = pictures or figures is not None
    options = {"device": device, "threads": threads, "progress": not quiet, "retry_failed": retry_failed}
    out = out or Path("runs") / f"table-{name}"
    made = make_table(name, choices, out=out, pictures=keep, **options)
    # Who started this process finds all rows in the folder, and reports them.
    if not worker and Workers().main:
        _report(made, out, figures, style, record)


def _report(made: MadeTable, out: Path, figures: Path | None, style: str, record: str) -> None:
    from refbfr_core.benchmark.tables.make import record_table
    from refbfr_core.benchmark.tables.report import write_report

    typer.echo(_shown(made.report, style))
    for line in made.remarks():
        typer.echo(line, err=True)
    written = write_report(made.report, out / "report")
    if figures is not None:
        from refbfr_core.notebook.table_figures import write_figures

        written += write_figures(made.run.rows, made.run.times, out, figures, report=made.report)
    if record:
        written.append(record_table(made, record, shlex.join(["refbfr", *_without_places(sys.argv[1:])])))
    typer.echo(f"rows: {out / 'rows.parquet'}; report: {out / 'report'}; {len(written)} files", err=True)
    if not made.whole:
        raise typer.Exit(1)


def _shown(report: TableReport, style: str) -> str:
    if style == "csv":
        return report.frame().to_csv(index=False).rstrip()
    return {"text": report.text, "markdown": report.markdown, "latex": report.latex, "html": report.html}[style]()


def _list() -> None:
    from refbfr_core.benchmark.tables import TABLES

    for name, spec in TABLES.items():
        typer.echo(f"{name}: {spec.title}" + ("" if spec.arms else " (printed numbers only)"))


def _without_places(arguments: list[str]) -> list[str]:
    """The arguments without folders that are somebody's own and decide nothing."""
    kept, places = [], ("--out", "-o", "--figures")
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before not in places and not argument.startswith(places[:1] + places[2:]) and argument != "-o":
            kept.append(argument)
    return kept


def _list_systems() -> None:
    from refbfr_core.benchmark.tables.systems import where_it_runs

    for row in where_it_runs():
        typer.echo(f"{row['system']}: {row['here']}; references: {row['references']}; licence: {row['licence']}")
        for line in filter(None, (row["reason"], row["page"])):
            typer.echo(f"    {line}")


_LISTS: dict[str, Callable[[], None]] = {"": _list, "list": _list, "systems": _list_systems}


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
