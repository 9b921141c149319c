"""Small statistics that metrics rest on: a safetensors file, and beside it a JSON card that says how it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import WeightsError
from refbfr_core.files import write_bytes, write_text

_FORMAT = 1


def shipped_folder() -> Path:
    """The folder inside the package that holds the shipped statistics."""
    return Path(__file__).parent / "statistics"


def write_statistics(folder: str | Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write `<name>.safetensors` (float64) and `<name>.json` with `about` and the file's SHA-256; returns the first.

    Raises:
        OutputError: the place cannot be written to.
    """
    from safetensors.torch import save

    path = Path(folder) / f"{name}.safetensors"
    data = save({key: value.detach().cpu().double().contiguous() for key, value in tensors.items()})
    card = {"format": _FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "about": dict(about)}
    text = json.dumps(card, indent=2, allow_nan=False) + "\n"
    write_bytes(path, data)
    write_text(path.with_suffix(".json"), text)
    return path


def read_statistics(
    folder: str | Path | None, name: str, keys: Sequence[str], cure: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the `about` of one file of statistics; without a folder, the shipped one.

    Args:
        keys: names of the tensors that must be there, and no others.
        cure: what to do when they are not, a sentence for the message.

    Raises:
        WeightsError: a file is missing, damaged, or not the one its card describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = (Path(folder) if folder is not None else shipped_folder()) / f"{name}.safetensors"
    try:
        card, data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} or its .json cannot be read ({error}). {cure}") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT or not card.keys() >= {"sha256", "about"}:
        raise WeightsError(f"{path.with_suffix('.json')} is not a card of format {_FORMAT}. {cure}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != card["sha256"]:
        raise WeightsError(
            f"{path} has been altered: SHA-256 {digest[:12]}… came, {card['sha256'][:12]}… is expected. {cure}"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}). {cure}") from error
    if set(tensors) != set(keys):
        raise WeightsError(f"{path} holds {sorted(tensors)}, expected {sorted(keys)}. {cure}")
    return tensors, card["about"]


def drawn_training_faces(people: int, views: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Clean drawn faces of the split "train" that shipped statistics are fitted to, and what to say about them.

    Returns:
        (people x views, 3, 128, 128) in [0, 1], and the fields split, people, views, seed and versions.
    """
    from refbfr_core.faces import ToyFaces

    faces = ToyFaces(128)
    drawn = faces.identities(people, seed, "train")
    images = faces.render(drawn, faces.views(drawn, views, seed)).images.flatten(0, 1)
    about = {"split": "train", "people": people, "views": views, "seed": seed, "versions": {"torch": torch.__version__}}
    if (found := _version("pyiqa")) is not None:
        about["versions"]["pyiqa"] = found
    return images, about


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
