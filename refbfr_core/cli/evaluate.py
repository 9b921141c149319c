"""`refbfr evaluate`: measure on unseen drawn people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Measure on unseen drawn people.", no_args_is_help=True, rich_markup_mode=None)

_Seed = Annotated[int, typer.Option(help="Seed of people, views, degradations and noise.")]
_Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")]


@app.command("references")
def references(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 128,
    preset: Annotated[str, typer.Option(help="Degradation preset.")] = "toy-refldm-severe",
    count: Annotated[int, typer.Option("--references", help="References of each person.")] = 4,
    counts: Annotated[
        str | None, typer.Option(help="Numbers of right references to try, such as 1,3,5,8; replaces --references.")
    ] = None,
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
    from refbfr_core.benchmark.references import parse_counts

    tried = parse_counts(counts)
    pipeline = load_pipeline("refldm", device=device, root=weights) if weights is not None else None
    study = run_reference_study(
        people, preset, count, steps, guidance, seed, out, counts=tried, pipeline=pipeline, device=device
    )
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


@app.command("identity")
def identity(
    runs: Annotated[Path, typer.Option(help="Folder of runs of `refbfr train refldm-identity`, one folder a run.")],
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 128,
    preset: Annotated[str, typer.Option(help="Degradation preset.")] = "toy-refldm-severe",
    count: Annotated[int, typer.Option("--references", help="References of each person.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the method's default if not given.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; the method's default if not given.")] = None,
    seed: _Seed = 0,
    split: Annotated[str, typer.Option(help="test for results, val for choosing settings.")] = "test",
    metrics: Annotated[
        str | None, typer.Option(help="Scores, such as ids-guide,psnr; all that can be computed if not given.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows and pictures; a stopped evaluation goes on.")
    ] = Path("runs/identity-study"),
    keep: Annotated[bool, typer.Option("--record", help="Keep the rows as the recording of the package.")] = False,
    device: _Device = None,
) -> None:
    """Does the identity loss help, and which time scale? Same ruined pictures for all runs, paired intervals."""
    from refbfr_core.benchmark import run_identity_study
    from refbfr_core.benchmark.identity import record_study

    chosen = None if metrics is None else metrics.split(",")
    options = {"split": split, "metrics": chosen, "device": device}
    study = run_identity_study(runs, people, preset, count, steps, guidance, seed, out, **options)
    typer.echo(study)
    if keep:
        command = f"refbfr evaluate identity --runs RUNS --people {people} --references {count} --seed {seed} --record"
        typer.echo(f"recorded: {record_study(study, command)}")
    if len(study.failures):
        raise typer.Exit(1)


@app.command("mechanisms")
def mechanisms(
    runs: Annotated[
        Path, typer.Option(help="Folder of runs of `refbfr train refldm-mechanism`, each called like its mechanism.")
    ],
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 128,
    counts: Annotated[str, typer.Option(help="Numbers of references to try; none is always tried.")] = "1,3,5",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 10,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 switches guidance off.")] = 1.0,
    preset: Annotated[str, typer.Option(help="Degradation preset.")] = "toy-refldm-severe",
    seed: _Seed = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows and table; a stopped evaluation goes on.")
    ] = Path("runs/mechanism-study"),
    keep: Annotated[bool, typer.Option("--record", help="Keep the rows as the recording of the package.")] = False,
    device: _Device = None,
) -> None:
    """Which way for references to enter restores best? CacheKV, concatenation, cross-attention, with intervals."""
    from refbfr_core.benchmark import run_mechanism_study
    from refbfr_core.benchmark.mechanisms import record_study
    from refbfr_core.benchmark.references import parse_counts

    tried = (0, *parse_counts(counts))
    study = run_mechanism_study(runs, people, tried, steps, guidance, preset=preset, seed=seed, out=out, device=device)
    typer.echo(study)
    if keep:
        command = f"refbfr evaluate mechanisms --runs RUNS --people {people} --counts {counts} --steps {steps} "
        command += f"--guidance {guidance:g} --preset {preset} --seed {seed} --record"
        typer.echo(f"recorded: {record_study(study, command)}")
    if len(study.failures):
        raise typer.Exit(1)


@app.command("mechanism-costs")
def mechanism_costs(
    size: Annotated[str, typer.Option(help="toy, or paper for a random network of the published size.")] = "toy",
    counts: Annotated[str, typer.Option(help="Numbers of references to try; none is always tried.")] = "1,3,5,8",
    steps: Annotated[int | None, typer.Option(help="Steps of a restoration; 10 (toy) or 100 if not given.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed calls, of which the fastest counts.")] = 3,
    scores: Annotated[
        int, typer.Option("--scores-up-to", help="Also with attention that keeps its score matrices, up to so many.")
    ] = 0,
    clock: Annotated[str, typer.Option(help="wall, or cpu: time of one thread, for a busy machine.")] = "wall",
    keep: Annotated[bool, typer.Option("--record", help="Keep the rows as a recording of the package.")] = False,
    device: _Device = None,
) -> None:
    """What do references cost? Seconds and peak memory of every mechanism as their number grows."""
    import pandas as pd

    from refbfr_core.benchmark import measure_costs
    from refbfr_core.benchmark.mechanisms_cost import record_costs
    from refbfr_core.benchmark.references import parse_counts

    tried = (0, *parse_counts(counts))
    options = {"steps": steps, "repeats": repeats, "clock": clock, "device": device}
    costs = measure_costs(tried, size, **options)
    if scores:
        few = [count for count in tried if count <= scores]
        costs = pd.concat([costs, measure_costs(few, size, attention="scores", **options)], ignore_index=True)
    typer.echo(costs.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if keep:
        command = f"refbfr evaluate mechanism-costs --size {size} --counts {counts} --repeats {repeats} "
        command += f"--scores-up-to {scores} --clock {clock} --record"
        typer.echo(f"recorded: {record_costs(costs, command)}")


@app.command("pdgrad")
def pdgrad(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 64,
    preset: Annotated[str, typer.Option(help="Degradation preset.")] = "toy-refldm-severe",
    count: Annotated[int, typer.Option("--references", help="References of each person.")] = 1,
    seed: _Seed = 0,
    arms: Annotated[
        str, typer.Option(help="ablations (A1 to A6, full method), all (also relatives), or names such as A1,PDGrad.")
    ] = "all",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows; a stopped evaluation is continued there.")
    ] = Path("runs/pdgrad-study"),
    keep: Annotated[bool, typer.Option("--record", help="Keep the rows as the recording of the package.")] = False,
    device: _Device = None,
) -> None:
    """PDGrad's ablations and relatives, same faces and noise in every arm. Continues a stopped run in its folder."""
    from refbfr_core.benchmark import claim_table, run_pdgrad_study
    from refbfr_core.benchmark.pdgrad import arm_names, record_study

    study = run_pdgrad_study(people, preset, count, seed, out, arms=arm_names(arms), device=device)
    typer.echo(study.table().to_string())
    typer.echo("")
    typer.echo(claim_table(study.rows).to_string(index=False, na_rep="-"))
    for failure in study.failures.itertuples():
        typer.echo(f"failed: person {failure.person}, {failure.arm}: {failure.reason}")
    if keep:
        command = f"refbfr evaluate pdgrad --people {people} --preset {preset} --references {count} --seed {seed} "
        command += f"--arms {shlex.quote(arms)} --record"
        typer.echo(f"recorded: {record_study(study, command)}")
    if len(study.failures):
        raise typer.Exit(1)


@app.command("ldbfr")
def ldbfr(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 64,
    severity: Annotated[
        str, typer.Option(help="all, or such as mild,severe; processes may share a folder, each with its own.")
    ] = "all",
    arms: Annotated[
        str, typer.Option(help="ablations (stage 1 and A to D), all (also coarse), or such as stage1,D,refldm.")
    ] = "all",
    seed: _Seed = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows; a stopped evaluation is continued there.")
    ] = Path("runs/ldbfr-study"),
    weights: Annotated[
        Path | None, typer.Option(help="Folder of networks from `refbfr train` instead of the shipped.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--record", help="Keep the rows as the recording of the package; all severities.")
    ] = False,
    device: _Device = None,
) -> None:
    """LD-BFR's ablations, same faces and noise in every arm. Continues a stopped run in its folder."""
    from refbfr_core.benchmark import ldbfr as study
    from refbfr_core.benchmark.ldbfr_claims import claim_table

    severities = _severities(severity, keep)
    options = {"arms": study.arm_names(arms), "device": device, "root": weights}
    studies = study.run_ldbfr_study(people, severities, seed, out, **options)
    command = f"refbfr evaluate ldbfr --people {people} --severity all --arms {arms} --seed {seed} "
    _report_severities(study, claim_table, studies, keep, command, weights)


@app.command("diffmac")
def diffmac(
    people: Annotated[int, typer.Option(help="How many unseen people.")] = 64,
    severity: Annotated[
        str, typer.Option(help="all, or such as mild,severe; processes may share a folder, each with its own.")
    ] = "all",
    arms: Annotated[
        str,
        typer.Option(
            help="ablations (Table 3), identity (whose is injected), bounds (what one could do at most), extension, "
            "all (without extension), or such as stage1,0.001_id,0.001_id+ref."
        ),
    ] = "all",
    seed: _Seed = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for rows; a stopped evaluation is continued there.")
    ] = Path("runs/diffmac-study"),
    weights: Annotated[
        Path | None, typer.Option(help="Folder of networks from `refbfr train` instead of the shipped.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--record", help="Keep the rows as the recording of the package; all severities.")
    ] = False,
    device: _Device = None,
) -> None:
    """DiffMAC's ablations, same faces and noise in every arm. Continues a stopped run in its folder."""
    from refbfr_core.benchmark import diffmac as study
    from refbfr_core.benchmark.diffmac_claims import claim_table

    severities = _severities(severity, keep)
    options = {"arms": study.arm_names(arms), "device": device, "root": weights}
    studies = study.run_diffmac_study(people, severities, seed, out, **options)
    command = f"refbfr evaluate diffmac --people {people} --severity all --arms {arms} --seed {seed} "
    _report_severities(study, claim_table, studies, keep, command, weights)


def _severities(text: str, keep: bool) -> tuple[str, ...]:
    """The severities that were asked for. Raises ConfigError where some are to be recorded without the others."""
    from refbfr_core.benchmark.severities import SEVERITIES, severity_names
    from refbfr_core.errors import ConfigError

    chosen = severity_names(text)
    if keep and chosen != SEVERITIES:
        raise ConfigError("a recording holds all severities: use --severity all, which continues what is in --out.")
    return chosen


def _report_severities(
    study: Any,
    claim_table: Callable[..., Any],
    studies: Mapping[str, Any],
    keep: bool,
    command: str,
    weights: Path | None,
) -> None:
    """Print the tables of all severities, failures and verdicts; record them if asked to. Exit 1 after a failure."""
    from refbfr_core.benchmark.ldbfr_claims import verdict_grid
    from refbfr_core.benchmark.severities import study_rows

    failures = 0
    for name, each in studies.items():
        typer.echo(f"{name}\n{each.table().to_string()}\n")
        for failure in each.failures.itertuples():
            typer.echo(f"failed: {name}, person {failure.person}, {failure.arm}: {failure.reason}")
        failures += len(each.failures)
    typer.echo(verdict_grid(claim_table(study_rows(studies))).to_string(index=False))
    if keep:
        command += "--record" if weights is None else "--weights NETWORKS --record"
        typer.echo(f"recorded: {study.record_study(studies, command)}")
    if failures:
        raise typer.Exit(1)
