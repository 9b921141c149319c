"""`refbfr train NAME`: train one of the networks by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    name: Annotated[str, typer.Argument(help="Recipe; a wrong name lists them all.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/NAME if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; the recipe's if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time; go on later with --resume.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu keeps a training off a GPU that is there.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of drawn faces and latents; $REFBFR_DATA, else data, if not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw faces; one a core if not given.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Train one network and export it. Several processes: accelerate launch -m refbfr_core.cli train NAME ..."""
    from refbfr_core.training import run

    options: dict[str, Any] = dict(_pair(change) for change in changes or [])
    if steps is not None:
        options["steps"] = steps
    place = out or Path("runs") / name
    folder = run(name, out=place, data=data, resume=resume, minutes=minutes, device=device, workers=workers, **options)
    typer.echo(f"exported to {folder}")


def _pair(change: str) -> tuple[str, str]:
    """Split KEY=VALUE. Raises ConfigError when it is not of that form."""
    from refbfr_core.errors import ConfigError

    key, sign, value = change.partition("=")
    if not sign or not key.isidentifier():
        raise ConfigError(f"--set {change!r} is not of the form KEY=VALUE, for example --set lr=0.001.")
    return key, value
