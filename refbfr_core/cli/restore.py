"""`refbfr restore`: ruined pictures in, restored pictures out, with the help of other photos of the same person."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refbfr_core.cli.failures import note, warn

if TYPE_CHECKING:
    from refbfr_core.cli.identity import Scorer
    from refbfr_core.faces.photos import PhotoAligner

TOY_WARNING = (
    "the toy networks have seen drawn faces only. On a photograph of a person the result shows how the pipeline works, "
    "it is no restoration."
)
GUESS_WARNING = "a restored face is a guess, never evidence of how somebody looked."


def restore(
    lq: Annotated[
        list[Path], typer.Argument(metavar="LQ...", help="Ruined pictures of one person: PNG, JPEG or WebP.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Result file; a folder for several pictures.")],
    ref: Annotated[
        list[Path] | None,
        typer.Option("--ref", "-r", help="Another photo of the person, or a folder of them; may be repeated."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Restoration method: refldm, pdgrad, pgdiff, difface, ldbfr or diffmac.")
    ] = "refldm",
    profile: Annotated[str, typer.Option(help="toy (drawn faces, no download) or paper.")] = "toy",
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps, of each stage for diffmac; the method's default if not given.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale; what switches guidance off is 1 for refldm and 0 for pdgrad and pgdiff."),
    ] = None,
    coarse: Annotated[
        str | None,
        typer.Option(help="Coarse restorer of pdgrad, pgdiff and difface: network, none, refldm, dcvqr, or its file."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--lambda", help="diffmac: share of the first restoration that passes, 0 to 1; else it decides."),
    ] = None,
    blend: Annotated[
        float | None,
        typer.Option(help="diffmac: from the restoration's own identity, 0, to that of the references, 1 (default)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise; the same for every picture.")] = 0,
    align: Annotated[
        bool | None,
        typer.Option(
            "--align/--no-align",
            help="Find and align the face, or take pictures as aligned crops. Default: align with --models, or when a "
            "picture is not square.",
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="InsightFace root, or one pack in it. Else $REFBFR_INSIGHTFACE_ROOT, ~/.insightface."),
    ] = None,
    face: Annotated[
        str, typer.Option(help="Which of several faces: largest, central, or a number by size from 0.")
    ] = "largest",
    target: Annotated[Path | None, typer.Option(help="The clean picture, to score identity against.")] = None,
    paste: Annotated[
        bool, typer.Option("--paste-back", help="Write the whole photo with the restored face in place.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of networks from `refbfr train` instead of the shipped ones.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the first GPU if there is one.")] = None,
) -> None:
    """Restore pictures of one person. Beside every result a JSON file says what made it."""
    from refbfr_core import __version__, load_pipeline
    from refbfr_core.cli import identity
    from refbfr_core.cli.restoration import (
        Reader,
        check_no_leak,
        picture_files,
        plan_outputs,
        restore_one,
        whole_photo,
        write_result,
    )
    from refbfr_core.errors import ConfigError

    inputs, reference_files = picture_files(lq), picture_files(ref or [])
    outputs = plan_outputs(inputs, out, [*reference_files, *([target] if target else [])])
    # What the files need is settled before the networks are loaded: a wrong name should not cost half a minute.
    aligning = _must_align(align, models, inputs)
    if paste and not aligning:
        raise ConfigError("--paste-back puts a face back where it was found; it needs --align.")
    aligner = _aligner(models) if aligning or models is not None else None
    pipe = load_pipeline(method, profile=profile, device=device, **({"root": weights} if weights else {}))
    pipe.set_progress_bar_config(disable=bool(os.environ.get("CI")) or not sys.stderr.isatty())
    reader = Reader(pipe.resolution, aligner if aligning else None, int(face) if face.isdigit() else face, note)
    pictures = [reader.read(path) for path in inputs]
    references = [reader.read(path) for path in reference_files]
    truth = reader.read(target) if target else None
    check_no_leak(pictures, references, truth)
    if not getattr(pipe, "takes_references", True):
        if references:
            note(f"{method} takes no references: those given do not change the result, they only score identity.")
    elif not references:
        note("no --ref given: restoring without references, from the ruined picture alone.")
    if profile == "toy":
        warn(TOY_WARNING)
    warn(GUESS_WARNING)

    scorer = _scorer(aligner, profile, device) if references or truth else None
    for picture, path in zip(pictures, outputs, strict=True):
        start = time.perf_counter()
        restored, settings = restore_one(
            pipe, picture, references, steps=steps, guidance=guidance, seed=seed, coarse=coarse, share=share,
            blend=blend,
        )  # fmt: skip
        scores = scorer.compare(picture, restored, references, truth) if scorer else None
        record: dict[str, Any] = {
            "made_by": f"refbfr_core {__version__}: refbfr restore",
            "method": method,
            "profile": profile,
            "settings": settings,
            "aligned_by": repr(aligner) if aligning else None,
            "pasted_back": paste,
            "input": picture.record(),
            "references": [reference.record() for reference in references],
            "target": truth.record() if truth else None,
            "identity": scores,
            "remarks": [*picture.remarks, *([TOY_WARNING] if profile == "toy" else []), GUESS_WARNING],
            "versions": _versions(),
        }
        write_result(path, whole_photo(picture, restored) if paste else restored, record)
        typer.echo(f"{path} ({time.perf_counter() - start:.1f} s)")
        if scores:
            typer.echo(f"    {identity.describe(scores)}")


def _must_align(align: bool | None, models: Path | None, inputs: list[Path]) -> bool:
    """Settle whether to look for faces: as told, else when models are named or a picture cannot be an aligned crop."""
    if align is not None:
        return align
    if models is not None:
        return True
    from refbfr_core.images import read_image

    for path in inputs:
        height, width = read_image(path).shape[-2:]
        if height != width:
            note(f"{path} is {width}x{height}, not square like an aligned crop: finding the face (--no-align refuses).")
            return True
    return False


def _aligner(models: Path | None) -> PhotoAligner:
    from refbfr_core.faces.photos import PhotoAligner

    return PhotoAligner(models)


def _scorer(aligner: PhotoAligner | None, profile: str, device: str | None) -> Scorer | None:
    """Choose who scores: the pack's network for photographs, the judge for drawn faces, nobody if neither is there."""
    from refbfr_core.cli.identity import JudgeScorer, PhotoScorer
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import load_network

    if aligner is not None and aligner.has_identity:
        return PhotoScorer(aligner)
    if aligner is not None or profile != "toy":
        note("identity similarity is not measured: that takes an InsightFace pack with a recogniser (--models PATH).")
        return None
    try:
        return JudgeScorer(load_network("judge", profile, device))
    except WeightsError as error:
        note(f"identity similarity is not measured: {error}")
        return None


def _versions() -> dict[str, str]:
    from refbfr_core.notebook.export import versions

    return versions()
