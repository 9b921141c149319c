"""The `refbfr` command itself: which commands there are, and the options they share."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from refbfr_core.cli import datasets, doctor, evaluate, notebooks, restore, table, train, weights
from refbfr_core.cli.failures import DEBUG_FLAG, PlainFailures

app = typer.Typer(
    name="refbfr",
    cls=PlainFailures,
    help="Restore ruined faces with the help of other photos of the same person.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from refbfr_core import __version__

        typer.echo(f"refbfr_core {__version__}")
        raise typer.Exit


@app.callback()
def _shared(
    debug: Annotated[bool, typer.Option(DEBUG_FLAG, help="Show the traceback when something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options in front of every command; `PlainFailures` reads --debug."""
    # diffusers imports bitsandbytes where it is installed, which then warns about kernels nobody here asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


app.command("doctor")(doctor.doctor)
app.command("restore")(restore.restore)
app.command("table")(table.table)
app.command("train")(train.train)
app.add_typer(notebooks.app, name="notebooks")
app.add_typer(weights.app, name="weights")
app.add_typer(datasets.app, name="datasets")
app.add_typer(evaluate.app, name="evaluate")


def main() -> None:
    """Entry point of the `refbfr` console script."""
    app(prog_name="refbfr")
