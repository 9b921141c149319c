"""Folders of weights: writing one whole or not at all, and reading one only when every byte and every key is right.

A folder `<root>/<name>/` holds `config.json`, one or more safetensors files in the diffusers layout, `card.json` (sizes
and SHA-256 of the files, and what the trainer says) and `CARD.md`. Networks that ship are in half precision, each file
small enough for any git host; the authors' networks, which never do, are kept as they are in the user's own folder.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, OutputError, WeightsError
from refbfr_core.files import file_sha256, output_error
from refbfr_core.weights.card import FORMAT, check_card, render_card
from refbfr_core.weights.places import how_to_get, network_folder, published_root, shipped_root
from refbfr_core.weights.registry import network_entry

MAX_FILE_BYTES = 6 * 2**20
_SHARD_SIZE = "5MB"
_CARD = "card.json"
_CONFIG = "config.json"
_RECORD_KEYS = frozenset({"name", "network_class", "parameters", "dtype", "files", "card"})


def load_network(
    name: str,
    profile: str = "toy",
    device: str | torch.device | None = None,
    *,
    root: str | Path | None = None,
) -> nn.Module:
    """The network called `name`, checked and ready: float32, `eval()`, parameters frozen (`requires_grad=False`).

    `root` is a folder that `save_network` wrote to (default: the networks shipped with the package, or those made of
    the authors' files with `refbfr weights import`). Every file is compared with the size and SHA-256 in `card.json`,
    and the keys must match the network exactly. The global random state is left as it was. Raises `UnknownNameError`
    for a name or profile, `WeightsError` for missing, truncated, altered or mismatching files, and for a profile whose
    files have to be fetched from their owners.
    """
    entry, folder = network_entry(name), network_folder(name, profile, root)
    if root is None and profile != "toy" and folder.parent == published_root(profile) and not folder.exists():
        raise WeightsError(how_to_get(entry, profile))
    try:
        record = verify_network(folder)
    except WeightsError as error:
        if root is not None or profile not in entry.published:
            raise
        file = entry.published[profile].filename
        raise WeightsError(f"{error} Or import the authors' file again: refbfr weights import {file}.") from error
    network_class = entry.network_class()
    if record["network_class"] != network_class.__name__:
        raise WeightsError(
            f"{folder} holds a {record['network_class']}, but the network {name!r} is a {network_class.__name__}. "
            f"Point `root` at a folder written by save_network(..., name={name!r})."
        )
    network = _build(network_class, folder)
    _load_state(network, folder, record)
    return network.to(device=pick_device(device)).eval().requires_grad_(False)


def save_network(
    module: nn.Module,
    name: str,
    folder: str | Path,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    *,
    shippable: bool = True,
) -> Path:
    """Writes `module` as `<folder>/<name>/` and returns that path; what was there before is replaced only at the end.

    `card` says what the network is (see `check_card`). `module` itself is left untouched. With `shippable` every file
    stays below the 6 MiB that any git host takes; without, they are as large as it comes. Raises `UnknownNameError` for
    an unregistered name, `ConfigError` for a wrong class or an incomplete card, `WeightsError` when a value does not
    survive `dtype` or a single tensor needs a file above 6 MiB, `OutputError` when the place cannot be written.
    """
    entry = network_entry(name)
    if not isinstance(module, entry.network_class()):
        raise ConfigError(
            f"the network {name!r} is a {entry.network_class().__name__}, but a {type(module).__name__} came. "
            "Save it under the name of its own kind."
        )
    about = check_card(card)
    root = Path(folder)
    try:
        _write_folder(module, name, root, about, dtype, shippable)
    except OSError as error:
        raise error if isinstance(error, OutputError) else output_error(root / name, error) from error
    return root / name


def weights_digest(name: str, root: str | Path | None = None) -> str:
    """SHA-256 of the weights of a network, from its card; of the first file where there are several.

    `root` is a folder of exported networks; None or "" stands for the shipped ones. `load_network` checks that the
    files are those of the card. Raises `WeightsError` when the card is missing or not readable.
    """
    files = read_card((Path(root) if root else shipped_root("toy")) / name)["files"]
    return next(file["sha256"] for file in files if file["name"].endswith(".safetensors"))


def read_card(folder: str | Path) -> dict[str, Any]:
    """The record `card.json` of one network's folder; raises `WeightsError` when it is missing or not readable."""
    path = Path(folder) / _CARD
    if not path.is_file():
        raise WeightsError(
            f"no weights at {Path(folder)} ({_CARD} is missing). Reinstall the package, or train the network "
            "(`refbfr train --help` lists the recipes) and pass the folder it exported to as `root`."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} is not readable JSON ({error}). Restore the file or export the network again."
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= _RECORD_KEYS:
        raise WeightsError(
            f"{path} is not a card of format {FORMAT}. Export the network again with this version of the package."
        )
    return record


def verify_network(folder: str | Path) -> dict[str, Any]:
    """Checks every file of one network's folder against its card and returns the card.

    Raises `WeightsError` that names the file and whether it is missing, truncated or altered.
    """
    folder = Path(folder)
    record = read_card(folder)
    for item in record["files"]:
        path = folder / item["name"]
        if not path.is_file():
            raise WeightsError(f"{path} is missing. Reinstall the package or export the network again.")
        size = path.stat().st_size
        if size != item["bytes"]:
            what = "truncated" if size < item["bytes"] else "too long"
            raise WeightsError(
                f"{path} is {what}: {size} bytes came, {item['bytes']} are expected. Reinstall or copy the file again."
            )
        if (digest := file_sha256(path)) != item["sha256"]:
            raise WeightsError(
                f"{path} has been altered: SHA-256 {digest[:12]}… came, {item['sha256'][:12]}… is expected. "
                "Reinstall or copy the file again."
            )
    return record


def _write_folder(
    module: nn.Module, name: str, root: Path, about: dict[str, Any], dtype: torch.dtype, shippable: bool
) -> None:
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=root))
    try:
        shard_size = _SHARD_SIZE if shippable else "2GB"
        try:
            _converted(module, dtype).save_pretrained(partial, safe_serialization=True, max_shard_size=shard_size)
        except SafetensorError as error:
            raise output_error(root / name, _system_error(error)) from error
        _forget_origin(partial / _CONFIG)
        files = [_describe(path) for path in sorted(partial.iterdir())]
        if shippable:
            _refuse_large(name, files)
        record = {
            "format": FORMAT,
            "name": name,
            "network_class": type(module).__name__,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "dtype": str(dtype).removeprefix("torch."),
            "versions": {library: importlib.metadata.version(library) for library in ("torch", "diffusers")},
            "files": files,
            "card": about,
        }
        (partial / _CARD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (partial / "CARD.md").write_text(render_card(record), encoding="utf-8")
        partial.chmod(0o755)
        _put_in_place(partial, root / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build(network_class: type, folder: Path) -> nn.Module:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{folder / _CONFIG} cannot be read ({error}). Export the network again.") from error
    # On the meta device nothing is drawn that the file replaces anyway. Should a network draw elsewhere, the caller's
    # random stream must not notice.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return network_class.from_config(config)


def _load_state(network: nn.Module, folder: Path, record: Mapping[str, Any]) -> None:
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for item in record["files"]:
        if not item["name"].endswith(".safetensors"):
            continue
        try:
            shard = load_file(folder / item["name"])
        except SafetensorError as error:
            raise WeightsError(f"{folder / item['name']} is not a readable safetensors file ({error}).") from error
        # Copies: the tensors of the file are views of it, and must outlive it.
        state |= {
            key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for key, value in shard.items()
        }
    broken = sorted(key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise WeightsError(
            f"{folder} holds values that are not finite, first in {broken[0]!r}. Export the network again."
        )
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"the weights in {folder} do not fit the network in its {_CONFIG}: {error} Export the network again."
        ) from error
    if empty := [name for name, buffer in network.named_buffers() if buffer.is_meta]:
        raise WeightsError(f"{folder} does not hold {empty[0]!r}, which the network needs. Export the network again.")


def _system_error(error: SafetensorError) -> OSError:
    """The system's own error behind what safetensors reports when a file cannot be written."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def _forget_origin(path: Path) -> None:
    """Takes the folder a network was once loaded from out of its configuration: it says nothing to anybody else."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A CPU copy of `module` in `dtype`; raises `WeightsError` if a value becomes infinite or was never finite."""
    clone = copy.deepcopy(module).to(device="cpu")
    if any(value.is_floating_point() and value.dtype != dtype for value in clone.state_dict().values()):
        clone = clone.to(dtype=dtype)
    for key, value in clone.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(
                f"{key!r} is not finite in {dtype}: it overflows, or the training diverged. "
                "Look at the values, or save with dtype=torch.float32."
            )
    return clone


def _describe(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _refuse_large(name: str, files: list[dict[str, Any]]) -> None:
    for item in files:
        if item["bytes"] > MAX_FILE_BYTES:
            raise WeightsError(
                f"{item['name']} of {name!r} would need {item['bytes']} bytes; a file may have {MAX_FILE_BYTES}. "
                "A single tensor is too large: make the widest layer narrower or save in half precision."
            )


def _put_in_place(partial: Path, target: Path) -> None:
    """Renames `partial` to `target`; an older folder there is moved aside first and comes back if the rename fails."""
    if not target.exists():
        partial.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(aside / target.name)
        try:
            partial.rename(target)
        except OSError:
            (aside / target.name).rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
