"""`refbfr datasets`: which datasets of photographs there are, and whether one on disk is usable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Datasets of photographs, with and without references: where to get them, and whether yours is whole.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_datasets() -> None:
    """List the datasets: what belongs to each, on whose page it is published, under which licence, where it goes."""
    from refbfr_core.faces import REFERENCE_LAYOUTS
    from refbfr_core.faces.blind_layouts import BLIND_LAYOUTS

    typer.echo("With references\n")

    for layout in REFERENCE_LAYOUTS.values():
        typer.echo(layout.how_to_get())
        for name, split in layout.splits.items():
            people = "" if split.identities is None else f" of {split.identities:,} people"
            pictures = "" if layout.images is None else f"; {layout.images:,} pictures in all"
            typer.echo(f"  split {name}: {split.rows:,} targets{people}{pictures}")
        if layout.lq_folders:
            typer.echo(f"  degraded test pictures come with it: {', '.join(layout.lq_folders)}")
    typer.echo("\nWithout references\n")
    for blind in BLIND_LAYOUTS.values():
        typer.echo(blind.how_to_get())
        typer.echo(f"  {blind.images:,} pictures, {'with' if blind.has_truth else 'without'} the clean ones")
    typer.echo("Nothing of these is fetched by this program; ROOT is the folder you name with --root.")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A dataset or a column of a table, such as ffhq-ref or lfw-test.")],
    root: Annotated[Path, typer.Option(help="Folder the release was unpacked into.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the photographs, if they lie elsewhere.")] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Decode every picture too; takes long.")] = False,
    training: Annotated[
        Path | None, typer.Option(help="Folder of training photographs that no test picture may be among.")
    ] = None,
) -> None:
    """Look for missing files, wrong counts, copies, and people or pictures in two splits. Exit code 1 if unusable."""
    from refbfr_core.errors import ConfigError, unknown_name
    from refbfr_core.faces import REFERENCE_LAYOUTS, validate_reference_dataset
    from refbfr_core.faces.blind_check import overlap_findings, training_leaks, validate_blind
    from refbfr_core.faces.blind_layouts import BLIND_LAYOUTS

    layout = next((known for known in REFERENCE_LAYOUTS if name == known or name in _degraded(known)), None)
    if name in BLIND_LAYOUTS:
        if splits:
            raise ConfigError(f"{name} has no splits; leave --split out.")
        report = validate_blind(name, root, images=images, pictures=pictures, training=training)
    elif layout is not None:
        report = validate_reference_dataset(layout, root, images=images, splits=splits or None, pictures=pictures)
        found = [] if training is None else training_leaks(layout, root, training, images=images)
        report = replace(report, findings=(*report.findings, *found, *overlap_findings(layout)))
    else:
        known = [*REFERENCE_LAYOUTS, *(each for layout in REFERENCE_LAYOUTS for each in _degraded(layout))]
        raise unknown_name("dataset", name, [*known, *BLIND_LAYOUTS])
    typer.echo(report)
    if not report.ok:
        raise typer.Exit(1)


def _degraded(layout: str) -> list[str]:
    """The columns of the tables that show one dataset at several degradations: "ffhq-ref-severe" and its like."""
    from refbfr_core.faces import REFERENCE_LAYOUTS

    return [f"{layout}-{degradation}" for degradation in REFERENCE_LAYOUTS[layout].lq_folders]


@app.command("pairs")
def pairs(
    root: Annotated[Path, typer.Option(help="Folder CelebRef-HQ was unpacked into.")],
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File to write; default ROOT/pairs.csv.")] = None,
) -> None:
    """Draw PDGrad's pairs of CelebRef-HQ, one ground truth and one reference a person, and record them with SHA-256."""
    from refbfr_core.faces.celebref import PAIRS_FILE, celebref_pairs, write_pairs

    drawn = celebref_pairs(root, seed)
    place = write_pairs(root / PAIRS_FILE if output is None else output, drawn)
    typer.echo(f"{len(drawn):,} pairs, seed {seed}, written to {place}")
