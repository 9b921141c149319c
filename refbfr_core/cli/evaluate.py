"""`refbfr evaluate`: measure on unseen people and write the table and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure on unseen drawn people.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure on unseen drawn people."""


@app.command("references")
def references(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 128,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table and the pictures.")] = Path(
        "build/references"
    ),
    seed: Annotated[int, typer.Option(help="Seed of people, views, degradation and noise.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the method's default if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")] = None,
) -> None:
    """Do references help? Right, wrong and no references on the same ruined pictures, with paired intervals."""
    from refbfr_core.benchmark.references import run_reference_study

    study = run_reference_study(people=people, out=out, seed=seed, num_inference_steps=steps, device=device)
    typer.echo(study)
