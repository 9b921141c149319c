"""Networks in the layout of diffusers: a subfolder each, with a configuration and weights; read whole or not at all.

Libraries load such folders generously: a tensor that is missing is drawn at random, one too many is passed over. Here
that is an error, and so are values that are not finite and a configuration of another network. Nothing is fetched, and
nothing in a file is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from refbfr_core.errors import WeightsError
from refbfr_core.weights.convert_strict import first_few
from refbfr_core.weights.published_files import read_checkpoint

if TYPE_CHECKING:
    from refbfr_core.weights.published_ldm import Converted
    from refbfr_core.weights.sources import PublishedFile

SAFETENSORS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
# What the libraries raise for a damaged file, a configuration that makes no network, or tensors of another size.
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class FolderKind:
    """A kind of published folder.

    parts: its subfolder of each network. known_by: subfolders of which one tells this kind from others. file: where the
    weights of a subfolder are (folder, subfolder). read: makes the networks (folder, layout, SHA-256 by subfolder).
    published: whose it is.
    """

    parts: Mapping[str, str]
    known_by: tuple[str, ...]
    file: Callable[[Path, str], Path]
    read: Callable[[Path, Any, Mapping[str, str]], dict[str, Converted]]
    published: PublishedFile


def weights_file(folder: str | Path, part: str, names: Sequence[str], advice: str) -> Path:
    """The file with the weights of a subfolder, the first of `names` that is there.

    Raises `WeightsError`, which ends with `advice`, if there is none.
    """
    place = Path(folder) / part
    for name in names:
        if (place / name).is_file():
            return place / name
    there = sorted(path.name for path in place.glob("*model*")) if place.is_dir() else []
    found = f" but {first_few(there)}" if there else ""
    missing = f"neither {' nor '.join(names)}" if len(names) > 1 else f"no {names[0]}"
    raise WeightsError(f"{place} has {missing}{found}; {advice}")


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of settings. Raises `WeightsError` when it is missing, damaged or something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Download the folder again.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}, not settings. Download the folder again.")
    return config


def load_part(file: Path, kind: type, advice: str, dtype_keyword: str = "torch_dtype") -> nn.Module:
    """The network whose weights are `file`, beside its `config.json`, in float32 and eval mode.

    Parameters
    ----------
    file : as `weights_file` finds it. kind : the class it must be. advice : ends the message about another class.
    dtype_keyword : what the library of `kind` calls the argument.

    Raises
    ------
    WeightsError : settings or weights are missing, damaged, or of another network; a name is missing or unknown; values
        are not finite.
    """
    place = file.parent
    config = read_settings(place / "config.json")
    came = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if came != kind.__name__:
        raise WeightsError(f"{place} holds a {came}, not a {kind.__name__}; {advice}")
    if file.suffix == ".bin":
        read_checkpoint(file)  # says what is wrong with a damaged file, and refuses one that wants code to be run
    try:
        network, info = kind.from_pretrained(
            place.parent,
            subfolder=place.name,
            local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
            output_loading_info=True,
            **{dtype_keyword: torch.float32},
        )
    except UNREADABLE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{file} cannot be loaded: {' '.join(line.strip() for line in lines[:3])[:400]} Download the folder again."
        ) from error
    problems = [f"{len(keys)} {what.replace('_', ' ')} ({first_few(sorted(map(str, keys)))})"
                for what, keys in info.items() if keys]  # fmt: skip
    if problems:
        raise WeightsError(
            f"{file} does not fit the network of its config.json: {'; '.join(problems)}. Nothing was loaded; take the "
            "owners' folder unchanged."
        )
    require_finite(network.state_dict(), f"{place.name}: ")
    return network.eval()


def require_finite(tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Raises `WeightsError` that names the first tensors, after `prefix`, with NaN or infinity."""
    broken = [prefix + name for name, x in tensors.items() if not x.is_meta and not bool(torch.isfinite(x).all())]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors hold NaN or infinity ({first_few(broken)}): the file is damaged. Download it again."
        )


def check_settings(own: Mapping[str, Any], expected: Mapping[str, Any], place: Path, problem: str, cure: str) -> None:
    """Requires each of the expected settings; lists count as tuples, so that a file compares with code.

    Raises `WeightsError`: "<place> <problem>: <the wrong ones>, expected <the right ones>. <cure>".
    """
    came = {key: tuple(value) if isinstance(value := own.get(key), list) else value for key in expected}
    if wrong := {key: came[key] for key, value in expected.items() if came[key] != value}:
        raise WeightsError(f"{place} {problem}: {wrong}, expected { {key: expected[key] for key in wrong} }. {cure}")
