"""`refbfr evaluate`: measure on unseen drawn people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure on unseen drawn people.", no_args_is_help=True, rich_markup_mode=None)

_Seed = Annotated[int, typer.Option(help="Seed of people, views, degradations and noise.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")]


@app.command("references")
def references(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 128,
    preset: Annotated[str, typer.Option(help="Degradation preset.")] = "toy-refldm-severe",
    count: Annotated[int, typer.Option("--references", help="References of each person.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the method's default if not given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 switches guidance off.")] = None,
    seed: _Seed = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows, table and pictures; a stopped run goes on.")
    ] = Path("runs/reference-study"),
    weights: Annotated[
        Path | None, typer.Option(help="Folder of networks from `refbfr train` instead of the shipped.")
    ] = None,
    device: _Device = None,
) -> None:
    """Do references help? Right, wrong and no references on the same ruined pictures, with paired intervals."""
    from refbfr_core import load_pipeline
    from refbfr_core.benchmark import run_reference_study

    pipeline = load_pipeline("refldm", device=device, root=weights) if weights is not None else None
    study = run_reference_study(people, preset, count, steps, guidance, seed, out, pipeline=pipeline, device=device)
    typer.echo(study)
    if len(study.failures):  # counted and named in the table; a script that goes on should notice
        raise typer.Exit(1)


@app.command("embedders")
def embedders(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 200,
    views: Annotated[int, typer.Option(help="Pictures of each.")] = 4,
    seed: _Seed = 0,
    device: _Device = None,
) -> None:
    """Do the embedders tell people apart? Same/different AUC, clean and degraded."""
    from refbfr_core.benchmark import run_embedder_study

    table = run_embedder_study(people=people, views=views, seed=seed, device=device)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


@app.command("first-stage")
def first_stage(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 64,
    views: Annotated[int, typer.Option(help="Pictures of each.")] = 2,
    seed: _Seed = 0,
    device: _Device = None,
) -> None:
    """What survives the first stage? PSNR, SSIM, identity, and moles, freckles and iris colour."""
    from refbfr_core.benchmark import run_first_stage_study

    typer.echo(run_first_stage_study(people=people, views=views, seed=seed, device=device))
