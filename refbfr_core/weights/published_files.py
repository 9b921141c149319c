"""Reading a checkpoint that somebody else wrote: tensors come out, and nothing inside the file is ever run.

A PyTorch checkpoint is a zip archive around a pickle, and unpickling in general runs whatever the file says. Here only
PyTorch's restricted reader is used (`weights_only=True`), which knows tensors and plain containers. Checkpoints of
training frameworks also name classes of those frameworks (callbacks, hyperparameters); for these the reader gets
stand-ins that take anything and do nothing, so that neither the framework nor its code is needed.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import WeightsError
from refbfr_core.files import file_sha256
from refbfr_core.weights.convert_strict import first_few

# Names that frameworks leave in checkpoints beside the tensors. A name here is never imported, only stood in for.
_FRAMEWORK_PREFIXES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.", "typing.")
_FRAMEWORK_NAMES = (
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib.Path"),
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
)
_FRAMEWORK_DICTS = (
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
# What the restricted reader raises for a pickle that is damaged or was never one: its errors are those of a small
# stack machine that is fed nonsense.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    struct.error,
)


class _StandIn:
    """An object of a training framework, without anything in it."""

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _EmptyDict:
    """A dictionary class of a framework; what it makes is a plain one, which the reader fills."""

    def __new__(cls, *args: object, **kwargs: object) -> OrderedDict[Any, Any]:
        return OrderedDict()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything a checkpoint holds, as plain containers and tensors on the CPU; tensors stay on disk until used.

    Raises
    ------
    WeightsError : no such file, not a PyTorch checkpoint, truncated or damaged (every byte is compared with the
        checksums in the file), or one that asks for code to be run, which is never done.
    """
    path = Path(path)
    _check_archive(path)
    names = _foreign_names(path)
    stand_ins = [(_EmptyDict if name in _FRAMEWORK_DICTS else _StandIn, name) for name in names if _is_framework(name)]
    refused = sorted(name for name in names if not _is_framework(name))
    if refused:
        raise WeightsError(
            f"{path} is refused: besides tensors it asks for {first_few(refused)}, which could run code on this "
            "machine. Nothing was run. Download the file from its owners' page."
        )
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path} cannot be read as tensors ({_first_line(error)}). Nothing in it was run. Download it again."
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; take another file.")
    return dict(content)


def tensors_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The state dictionary of a checkpoint, whether it is the whole content or stands under "state_dict".

    Raises
    ------
    WeightsError : an entry is no dense tensor with data, tensors stand beside "state_dict", or there are none at all.
    """
    state = content
    if "state_dict" in content:
        state = content["state_dict"]
        beside = [str(key) for key, value in content.items() if isinstance(value, Tensor)]
        if beside or not isinstance(state, Mapping):
            what = f"tensors beside 'state_dict' ({first_few(beside)})" if beside else "a 'state_dict' that is none"
            raise WeightsError(f"{path} has {what}; expected all tensors in one dictionary. Download it again.")
    wrong = [str(key) for key, value in state.items() if not isinstance(key, str) or not _has_data(value)]
    if wrong or not state:
        what = f"{len(wrong)} entries that are no dense tensors ({first_few(wrong)})" if wrong else "no tensors"
        raise WeightsError(f"{path} holds {what}; expected names and tensors only. Take the owners' file unchanged.")
    return {key: value.detach() for key, value in state.items()}


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file. Raises `WeightsError` when there is none."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name the downloaded file.")
    return file_sha256(path)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, whatever the order of the names and the file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _check_archive(path: Path) -> None:
    """Raises `WeightsError` unless `path` is a whole zip archive around a pickle, as PyTorch has written since 1.6."""
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name the downloaded file.")
    with path.open("rb") as stream:
        beginning = stream.read(512)
    if not beginning.startswith(b"PK\x03\x04"):
        came = "a web page" if beginning.lstrip()[:1] == b"<" else f"{path.stat().st_size} bytes of something else"
        raise WeightsError(
            f"{path} is not a PyTorch checkpoint: {came}. Download the file itself, not the page about it."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise WeightsError(
            f"{path} is truncated or damaged: {path.stat().st_size} bytes, {_first_line(error)}. Download it again."
        ) from error
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged!r} in it is wrong. Download it again.")
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(
            f"{path} is a zip archive ({first_few(names)}), not a PyTorch checkpoint. Take the owners' file as it is."
        )


def _foreign_names(path: Path) -> list[str]:
    """What the pickle asks for that the restricted reader does not know; found by reading it, without running it."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except _UNREADABLE as error:
        raise WeightsError(
            f"{path} holds a pickle that no checkpoint of tensors needs ({_first_line(error)}). Nothing in it was "
            "run. Download the file from its owners' page."
        ) from error


def _is_framework(name: str) -> bool:
    return name.startswith(_FRAMEWORK_PREFIXES) or name in _FRAMEWORK_NAMES or name in _FRAMEWORK_DICTS


def _has_data(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
