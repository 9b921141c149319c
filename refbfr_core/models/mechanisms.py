"""Five ways for references to enter one and the same denoising U-Net, side by side (ReF-LDM, Table 2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet2DModel

from refbfr_core.errors import WeightsError, unknown_name
from refbfr_core.files import atomic_path, file_sha256, write_text
from refbfr_core.models.mechanism_attention import CacheKV, CrossAttention
from refbfr_core.models.mechanism_base import Context, ReferenceMechanism
from refbfr_core.models.mechanism_concatenation import ChannelConcatenation, SpatialConcatenation

__all__ = ["MECHANISMS", "Context", "ReferenceMechanism", "load_mechanism", "make_mechanism", "save_mechanism"]

MECHANISMS: Mapping[str, type[ReferenceMechanism]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (ReferenceMechanism, CacheKV, SpatialConcatenation, ChannelConcatenation, CrossAttention)
    }
)
"""Name -> class, in the order of a table: none, cachekv, spatial, channel, cross."""

_WEIGHTS, _ABOUT = "mechanism.safetensors", "mechanism.json"


def make_mechanism(name: str, unet: UNet2DModel, max_references: int = 5, seed: int = 0) -> ReferenceMechanism:
    """Let references into a copy of a stock network.

    Parameters
    ----------
    name : one of `MECHANISMS`. unet : from 2C to C channels; its weights are kept.
    max_references : slots of "channel"; the others take any number and ignore it.
    seed : of weights that are added; the global random state stays as it was.

    Raises
    ------
    UnknownNameError : no such mechanism. ConfigError : a network or a number of slots that cannot work.
    """
    if name not in MECHANISMS:
        raise unknown_name("reference mechanism", name, MECHANISMS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == ChannelConcatenation.name:
            return ChannelConcatenation(unet, max_references)
        made = MECHANISMS[name](unet)
    weight = made.unet.conv_in.weight
    return made.to(weight.device, weight.dtype)


def save_mechanism(mechanism: ReferenceMechanism, folder: str | Path, about: Mapping[str, Any]) -> Path:
    """Write all weights and what is needed to build the network again; returns the folder.

    `about` are plain JSON values that say how it was made. Raises `OutputError` where the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    with atomic_path(folder / _WEIGHTS) as path:
        state = {key: value.detach().cpu().contiguous() for key, value in mechanism.state_dict().items()}
        save_file(state, path)
    described = {
        "mechanism": mechanism.name,
        "max_references": mechanism.max_references,
        "unet": {key: value for key, value in mechanism.unet.config.items() if not key.startswith("_")},
        "sha256": file_sha256(folder / _WEIGHTS),
        "about": dict(about),
    }
    write_text(folder / _ABOUT, json.dumps(described, indent=2, allow_nan=False) + "\n")
    return folder


def load_mechanism(folder: str | Path) -> ReferenceMechanism:
    """The network that `save_mechanism` wrote, on the CPU, `eval()`, parameters frozen; keys must match exactly.

    Raises
    ------
    WeightsError : files missing, altered, or not fitting each other.
    """
    from safetensors.torch import load_file

    described = read_mechanism(folder)
    path = Path(folder) / _WEIGHTS
    if not path.is_file() or file_sha256(path) != described["sha256"]:
        raise WeightsError(f"{path} is missing or has been altered since it was written; train or copy it again.")
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DModel.from_config(described["unet"])
    made = make_mechanism(described["mechanism"], unet, described["max_references"] or 1)
    try:
        made.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"the weights in {folder} do not fit the network described there: {error}") from error
    return made.eval().requires_grad_(False)


def read_mechanism(folder: str | Path) -> dict[str, Any]:
    """What `save_mechanism` wrote beside the weights. Raises `WeightsError` when it is missing or unreadable."""
    path = Path(folder) / _ABOUT
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); pass a folder that `refbfr train refldm-mechanism` exported to."
        ) from error
    missing = {"mechanism", "max_references", "unet", "sha256", "about"} - set(described)
    if missing:
        raise WeightsError(f"{path} lacks {sorted(missing)}; export the network again.")
    return described
