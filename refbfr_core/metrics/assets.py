"""Finding and reading the files that metrics are measured with: networks and statistics of others, none of which ships.

Each file (`refbfr_core.weights.ASSETS`) is first looked for where the library that uses it would keep it, torch's hub
folder or facexlib's own, so that whoever has it already need not fetch it again; then among the files that
`refbfr weights get` fetched. Nothing here opens a connection, and no library is left to fetch by itself.
"""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from refbfr_core.errors import WeightsError
from refbfr_core.weights.asset_store import asset_path, library_place
from refbfr_core.weights.assets import asset_entry


def library_path(asset: str) -> Path | None:
    """Where the library that uses a file would keep it; None for a file that no library looks for.

    Raises:
        UnknownNameError: no file of that name.
    """
    # Asked each time: TORCH_HOME may change while Python runs.
    return library_place(asset_entry(asset))


def need_file(asset: str) -> Path:
    """The path of a file that is on this machine.

    A library's copy is taken as it is, under its name, whatever it holds; the score says so (`warn_about_foreign`).

    Raises:
        UnknownNameError: no file of that name.
        WeightsError: it is not here, or what `refbfr weights get` fetched has been altered; says what to do.
    """
    kept = library_path(asset)
    if kept is not None and kept.is_file():
        return kept
    try:
        return asset_path(asset)
    except WeightsError as error:
        name = f"{kept.name} is not in {kept.parent}; " if kept is not None else ""
        raise WeightsError(f"{name}{error} Fetch it once while online: `refbfr weights get {asset}`.") from error


def missing_file(asset: str) -> str | None:
    """What to do for a file that is not here, or None."""
    try:
        need_file(asset)
    except WeightsError as error:
        return str(error)
    return None


def is_official(asset: str, digest: str) -> bool:
    """Whether a SHA-256 is that of the owners' file, as far as its beginning is known."""
    return digest.startswith(asset_entry(asset).sha256_prefix or "")


def warn_about_foreign(asset: str, path: Path, digest: str, score: str) -> None:
    """Warn when a file is not the one its name promises, because scores then differ from the official ones."""
    if not is_official(asset, digest):
        warnings.warn(
            f"{path.name} is not the file its name promises (SHA-256 {digest[:8]}…): {score} will be close to, "
            "not equal to, the official value.",
            stacklevel=4,
        )


def read_checkpoint(path: Path, cure: str) -> Any:
    """What a checkpoint holds, tensors and plain containers only; nothing in it is ever run.

    Raises:
        WeightsError: it cannot be read so.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # torch's own words would recommend to unpickle it all the same.
        why = f"it is damaged, or holds pickled objects, which are refused: {type(error).__name__}"
        raise WeightsError(f"{path} cannot be read ({why}). {cure}") from error


def fill_network(
    network: torch.nn.Module, state: Any, path: Path, cure: str, *, assign: bool = False
) -> torch.nn.Module:
    """Put a checkpoint into a network, every tensor of the one into the other; evaluation mode, frozen.

    Args:
        network: where to. state: what `read_checkpoint` gave. path, cure: for messages.
        assign: take the checkpoint's tensors themselves, for a network that was made without any.

    Raises:
        WeightsError: it is another network's.
    """
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no plain set of tensors; it is another network's. {cure}")
    try:
        network.load_state_dict(state, strict=True, assign=assign)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the network: {error} {cure}") from error
    return network.eval().requires_grad_(False)


def get_it_again(asset: str) -> str:
    """The sentence for a file that is here but damaged."""
    return f"Delete it and fetch it again with `refbfr weights get {asset}`."


def package_missing(package: str) -> Callable[[], str | None]:
    """A check whether a package is installed: what to install, or None."""

    def missing() -> str | None:
        if importlib.util.find_spec(package):
            return None
        return f"the package {package!r} is not installed: pip install 'refbfr_core[metrics]'"

    return missing
