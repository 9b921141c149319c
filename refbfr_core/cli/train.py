"""`refbfr train NAME`: train one of the networks by its recipe, on drawn faces or at full size on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PROFILES = ("toy", "paper")
FULL_SIZE = ("ldm", "refldm")
_FULL_SIZE = "Full size: "


def train(
    name: Annotated[str, typer.Argument(help="Recipe; a wrong name lists them all.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/NAME if not given.")] = None,
    profile: Annotated[
        str, typer.Option(help="toy: small networks on drawn faces. paper: full size on photographs (ldm, refldm).")
    ] = "toy",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; the recipe's if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time; go on later with --resume.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu keeps a training off a GPU that is there.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Toy: folder of drawn faces and latents; $REFBFR_DATA, else data, if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that draw faces (one a core) or, full size, read photographs (4).")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help=f"{_FULL_SIZE}folder of FFHQ-Ref, see `refbfr datasets list`.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help=f"{_FULL_SIZE}its photographs, if they lie elsewhere.")] = None,
    first_stage: Annotated[
        Path | None, typer.Option(help=f"{_FULL_SIZE}folder of a first stage; the imported release if not given.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option(help=f"{_FULL_SIZE}ONNX file or folder of the face embedder of the identity loss.")
    ] = None,
    initial: Annotated[
        str | None, typer.Option(help=f"{_FULL_SIZE}folder of a stage 1 run, released, or scratch.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help=f"{_FULL_SIZE}samples at once on each GPU (1); the batch stays the recipe's.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Train one network and export it. Several processes: accelerate launch -m refbfr_core.cli train NAME ..."""
    options: dict[str, Any] = dict(_pair(change) for change in changes or [])
    if steps is not None:
        options["steps"] = steps
    options |= {"out": out or Path("runs") / name, "resume": resume, "minutes": minutes, "device": device}
    full = {
        "dataset": dataset,
        "images": images,
        "first_stage": first_stage,
        "identity": identity,
        "initial": initial,
        "micro_batch": micro_batch,
    }
    given = {key: value for key, value in full.items() if value is not None}
    _check(name, profile, data, given)
    if profile == "paper":
        from refbfr_core.training import run_full

        folder = run_full(name, **given, **({} if workers is None else {"workers": workers}), **options)
    else:
        from refbfr_core.training import run

        folder = run(name, data=data, workers=workers, **options)
    typer.echo(f"exported to {folder}")


def _check(name: str, profile: str, data: Path | None, full: dict[str, Any]) -> None:
    """Raise UnknownNameError for another profile, ConfigError for a recipe or options of the other one."""
    from refbfr_core.errors import ConfigError, unknown_name

    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if profile == "paper" and data is not None:
        raise ConfigError("--data holds drawn faces; a full-size recipe takes --dataset FOLDER of photographs.")
    if profile == "toy" and full:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in full)
        raise ConfigError(f"{flags}: only for full-size recipes ({', '.join(FULL_SIZE)}); add --profile paper.")
    if profile == "toy" and name in FULL_SIZE:
        raise ConfigError(
            f"{name} is a full-size recipe, for photographs: add --profile paper. On drawn faces the denoiser is "
            "trained by refldm-base."
        )


def _pair(change: str) -> tuple[str, str]:
    """Split KEY=VALUE. Raises ConfigError when it is not of that form."""
    from refbfr_core.errors import ConfigError

    key, sign, value = change.partition("=")
    if not sign or not key.isidentifier():
        raise ConfigError(f"--set {change!r} is not of the form KEY=VALUE, for example --set lr=0.001.")
    return key, value
