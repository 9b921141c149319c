"""`run_full`: from a full-size recipe's name and a dataset of photographs to exported weights; also what every process
of `accelerate launch` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, RefbfrError, WeightsError
from refbfr_core.faces.reference_dataset import ReferenceDataset, open_reference_dataset
from refbfr_core.metrics.identity import EmbedderLike
from refbfr_core.training.loop import any_accelerator, train
from refbfr_core.training.paper_recipes import RefLDMFullRecipe, paper_recipe
from refbfr_core.training.recipes import as_dict
from refbfr_core.training.records import CHECKPOINT, load_checkpoint
from refbfr_core.training.refldm_full import RefLDMFullTask
from refbfr_core.weights import load_network, load_onnx_recognition, read_card, save_network

DATASET = "ffhq-ref"
RELEASED, SCRATCH = "released", "scratch"


def run_full(
    name: str,
    *,
    out: str | Path,
    dataset: str | Path | tuple[ReferenceDataset, ReferenceDataset] | None = None,
    images: str | Path | None = None,
    first_stage: str | Path | VQModel | None = None,
    identity: str | Path | EmbedderLike | None = None,
    initial: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    device: str | None = None,
    workers: int = 4,
    micro_batch: int = 1,
    **changes: Any,
) -> Path:
    """Train a full-size recipe and export the averaged network; returns the folder of the exported network.

    Any number of processes shares a batch, even one that does not divide it; each goes through its share in pieces of
    ``micro_batch``. Neither number changes what is learned, beyond rounding.

    Parameters
    ----------
    name : "ldm" (stage 1, no references) or "refldm" (stage 2).
    out : folder of the run, on storage all processes share: ``checkpoint.pt``, ``log.jsonl``, ``export/refldm-unet``.
    dataset : folder of FFHQ-Ref, or its opened train and validation splits. images : its photographs, if elsewhere.
    first_stage : folder of a network "refldm-vq", or a module; None is the imported release.
    identity : folder of an exported face embedder, an ONNX file, or a module; see `load_identity`.
    initial : folder of a stage 1 run, or of an exported denoiser; "released" is the imported release, "scratch" draws
        random weights. None: "scratch" for a recipe without references, otherwise it must be named.
    resume, minutes, device : as in `refbfr_core.training.run`.
    workers : processes that make samples, for each training process.
    micro_batch : samples that go through the networks at once; more is faster and needs more memory.
    changes : values of the recipe to change.

    Raises
    ------
    ConfigError : pieces are missing (all are named at once), or do not fit. UnknownNameError : no such recipe or value.
    """
    chosen = paper_recipe(name, **changes)
    out = Path(out)
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"minutes={minutes} leaves no time to train; give a positive number, or none for no limit.")
    if workers < 0 or micro_batch < 1:
        raise ConfigError(f"workers={workers} must be 0 or more, micro_batch={micro_batch} 1 or more.")
    if resume:
        load_checkpoint(out)  # a wrong folder should be reported before everything else is read
    elif (out / CHECKPOINT).is_file():
        raise ConfigError(f"{out} already holds a training; pass resume to continue it, or choose another folder.")
    accelerator = any_accelerator(chosen.precision, device)
    with accelerator.main_process_first():
        splits, vq, embedder, weights = _all_of(
            {
                "dataset": lambda: _open_splits(chosen, dataset, images),
                "first stage": lambda: load_first_stage(first_stage),
                "identity network": lambda: load_identity(identity) if chosen.needs_identity else None,
                "initial": lambda: None if resume else load_initial(initial, chosen),
            }
        )
        options = {"micro_batch": micro_batch, "workers": workers, "pin": accelerator.device.type == "cuda"}
        task = RefLDMFullTask(chosen, *splits, vq, embedder, weights, **options)
    summary = train(task, out, accelerator, resume=resume, minutes=minutes)
    if accelerator.is_main_process:
        network = summary.pop("average").network
        save_network(
            network, chosen.network, out / "export", _card(task, name, summary), torch.float32, shippable=False
        )
    accelerator.wait_for_everyone()
    return out / "export" / chosen.network


def load_first_stage(place: str | Path | VQModel | None) -> VQModel:
    """The first stage: a module as it is, a folder of a network "refldm-vq", or the imported release (None).

    Raises
    ------
    WeightsError : nothing usable there; the message says how to get it.
    """
    if isinstance(place, VQModel):
        return place
    if place is None:
        return load_network("refldm-vq", profile="paper", device="cpu")
    return _from_folder(place, "refldm-vq")


def load_identity(place: str | Path | EmbedderLike | None) -> EmbedderLike:
    """The network of the identity loss: a module as it is, the folder of an exported face embedder, or an ONNX file.

    A module maps (B, 3, 112, 112) in [-1, 1] to (B, D), or has ``embed(images in [-1, 1])``. ReF-LDM uses an ArcFace
    ResNet-50 trained on WebFace; InsightFace's packs hold such networks as ONNX files, which are read by
    `refbfr_core.weights.load_onnx_recognition` and get ReF-LDM's crop.

    Raises
    ------
    ConfigError : none is given, or one that must not take part in a training. WeightsError : an unusable folder or
    file. MissingExtraError : an ONNX file, but no library for it.
    """
    if place is None:
        raise ConfigError(
            "the identity loss needs a face embedder: pass --identity FILE.onnx, the recognition network of an "
            "InsightFace pack, or --identity FOLDER with one exported by `refbfr train embedder-guide`, from Python "
            "any module from (B, 3, 112, 112) to (B, D), or train without it: --set identity_weight=0."
        )
    if not isinstance(place, str | Path):
        return place
    path = Path(place)
    if path.suffix == ".onnx":
        return load_onnx_recognition(path, alignment="crop")
    if path.is_file():
        raise ConfigError(
            f"{path} is a file; the identity network is an ONNX file or the folder it was exported to (with card.json)."
            " Load other formats in Python and pass the module as identity=."
        )
    kind = read_card(path)["name"]
    if kind == "judge":
        raise ConfigError("the judge only scores results and must not take part in a training; use another embedder.")
    return _from_folder(path, kind)


def load_initial(place: str | Path | None, chosen: RefLDMFullRecipe) -> dict[str, Tensor] | None:
    """The denoiser's weights to begin with; None for random ones. See `run_full`.

    From the folder of a run the weights themselves are taken, not their average, as the authors do.

    Raises
    ------
    ConfigError : stage 2 without a stage 1. WeightsError, CacheError : nothing usable there.
    """
    if place is None and chosen.references:
        raise ConfigError(
            "training with references starts from a denoiser trained without: run `refbfr train ldm --profile paper` "
            "first and pass --initial FOLDER of that run, or --initial released, or --initial scratch."
        )
    if place is None or str(place) == SCRATCH:
        return None
    if str(place) == RELEASED:
        return load_network("refldm-unet", profile="paper", device="cpu").state_dict()
    if (Path(place) / CHECKPOINT).is_file():
        return load_checkpoint(Path(place))["module"]
    return _from_folder(place, "refldm-unet").state_dict()


def _open_splits(
    chosen: RefLDMFullRecipe, dataset: Any, images: str | Path | None
) -> tuple[ReferenceDataset, ReferenceDataset]:
    if dataset is None:
        raise ConfigError(
            "a full-size recipe trains on photographs: pass --dataset FOLDER of FFHQ-Ref; `refbfr datasets list` says "
            "where its owners publish it."
        )
    if isinstance(dataset, tuple):
        return dataset
    options = {"images": images, "resolution": chosen.resolution}
    train, val = (open_reference_dataset(DATASET, dataset, split, **options) for split in ("train", "val"))
    return train, val


def _from_folder(place: str | Path, name: str) -> nn.Module:
    """The network ``name`` from its own folder or from the folder above it."""
    path = Path(place).absolute()
    if path.name != name:
        path = path / name
    found = read_card(path)["name"]
    if found != name:
        raise WeightsError(f"{path} holds a network {found!r}, but a {name!r} is needed here; name its own folder.")
    return load_network(name, device="cpu", root=path.parent)


def _all_of(pieces: dict[str, Callable[[], Any]]) -> list[Any]:
    """Load every piece; name all that are missing at once instead of one a try."""
    found, problems = [], []
    for label, load in pieces.items():
        try:
            found.append(load())
        except RefbfrError as error:
            problems.append((label, error))
    if len(problems) == 1:
        raise problems[0][1]
    if problems:
        listing = " ".join(f"({number}) {label}: {error}" for number, (label, error) in enumerate(problems, 1))
        raise ConfigError(f"{len(problems)} pieces are missing. {listing}")
    return found


def _card(task: RefLDMFullTask, name: str, summary: dict[str, Any]) -> dict[str, Any]:
    recipe, about = task.recipe, task.about()
    return {
        "summary": about["summary"],
        "training_data": {"pictures": f"photographs, {recipe.resolution} px", **task.facts},
        "recipe": {
            "name": name,
            "command": f"refbfr train {name} --profile paper",
            **as_dict(recipe),
            "steps": summary["steps"],
            "steps_planned": recipe.steps,
            "samples": summary["samples"],
            "minutes": round(summary["seconds"] / 60, 1),
        },
        "hardware": summary["hardware"],
        "results": {"data": f"{len(task.val_rows)} unseen people of the split 'val'", **summary["results"]},
        "limits": about["limits"],
        "licence": about["licence"],
    }
