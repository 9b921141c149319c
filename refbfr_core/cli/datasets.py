"""`refbfr datasets`: which datasets of photographs with references there are, and whether one on disk is usable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Datasets of photographs with references: where to get them, and whether yours is whole.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_datasets() -> None:
    """List the datasets: what belongs to each, on whose page it is published, under which licence, where it goes."""
    from refbfr_core.faces import REFERENCE_LAYOUTS

    for layout in REFERENCE_LAYOUTS.values():
        typer.echo(layout.how_to_get())
        for name, split in layout.splits.items():
            people = "" if split.identities is None else f" of {split.identities:,} people"
            pictures = "" if layout.images is None else f"; {layout.images:,} pictures in all"
            typer.echo(f"  split {name}: {split.rows:,} targets{people}{pictures}")
    typer.echo("Nothing of these is fetched by this program; ROOT is the folder you name with --root.")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="ffhq-ref, celeba-test-ref or celebref-hq.")],
    root: Annotated[Path, typer.Option(help="Folder the release was unpacked into.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the photographs, if they lie elsewhere.")] = None,
    splits: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures", help="Decode every picture too; takes long.")] = False,
) -> None:
    """Look for missing files, unreadable or doubled rows, and people in two splits. Exit code 1 if unusable."""
    from refbfr_core.faces import validate_reference_dataset

    report = validate_reference_dataset(name, root, images=images, splits=splits or None, pictures=pictures)
    typer.echo(report)
    if not report.ok:
        raise typer.Exit(1)


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
