"""Pictures that somebody else's code restored, read from a folder: how every system comes into a table."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from refbfr_core.benchmark.tables.restorer import Restorer
from refbfr_core.benchmark.tables.systems import TAKES
from refbfr_core.errors import ConfigError, ImageContractError, ImageFileError, unknown_name
from refbfr_core.images import read_image, to_uint8
from refbfr_core.weights.published_files import file_digest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNCHANGED = ("fail", "warn", "accept")


class UnchangedPictureWarning(UserWarning):
    """A restored picture is its own input."""


def folder_restorer(name: str, folder: str | Path, *, pattern: str = "{}", unchanged: str = "fail") -> Restorer:
    """The pictures of a folder under a name, ``--results NAME=FOLDER``.

    The picture of an item is FOLDER/ITEM.png (or .jpg, .jpeg, .webp, in either case); where the item is named
    "DATASET/ITEM", FOLDER/DATASET/ITEM.png is looked for first. It is read when it is asked for, so that a missing
    or damaged one fails alone.

    Args:
        name: in the table; a system's name as in `SYSTEMS` puts it beside that system's published numbers.
        folder: of the pictures.
        pattern: how a file is called before its suffix, "{}" standing for the item: "{}_00" suits scripts that number
            the faces of a picture.
        unchanged: what becomes of a picture that equals its input in every 8-bit value. Some scripts, such as
            CodeFormer's, save the input where the network failed: "fail" counts that as a failure, "warn" takes it with
            an `UnchangedPictureWarning`, "accept" takes it silently.

    Returns:
        a restorer that takes references without looking at them. It raises ImageFileError for a picture that is
        missing, damaged or there twice, ImageContractError for one of another size or one that equals its input. Its
        digest covers names, sizes and SHA-256 of all pictures in the folder.

    Raises:
        ImageFileError: no such folder, or no picture in it. UnknownNameError: another word for `unchanged`.
        ConfigError: a pattern without "{}".
    """
    if unchanged not in UNCHANGED:
        raise unknown_name("treatment of unchanged pictures", unchanged, UNCHANGED)
    if pattern.count("{}") != 1:
        raise ConfigError(f"pattern {pattern!r} has no single {{}}; write the item's name as {{}}, such as '{{}}_00'.")
    folder = Path(folder).expanduser()
    files = _pictures(folder)
    by_place: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_place[path.relative_to(folder).with_suffix("").as_posix()].append(path)

    def run(lq: Tensor, references: Tensor | None, seeds: list[int], names: list[str]) -> Tensor:
        rows = [
            _read(name, _find(folder, by_place, item, pattern), row, unchanged)
            for item, row in zip(names, lq.split(1), strict=True)
        ]
        return torch.cat(rows).to(lq.device)

    settings = {"folder": folder.name, "pattern": pattern, "unchanged": unchanged}
    return Restorer(name, run, settings, lambda: _digest(folder, files), references=TAKES)


def _pictures(folder: Path) -> list[Path]:
    """Every picture in the folder and in the folders directly in it, sorted."""
    if not folder.is_dir():
        raise ImageFileError(f"there is no folder {folder}: check the spelling; the current folder is {Path.cwd()}.")
    found = [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.suffix.lower() in SUFFIXES]
    found = sorted(path for path in found if path.is_file())
    if not found:
        raise ImageFileError(f"{folder} holds no picture ({', '.join(SUFFIXES)}); name the folder of the results.")
    return found


def _find(folder: Path, by_place: dict[str, list[Path]], item: str, pattern: str) -> Path:
    """The file of an item. Raises ImageFileError."""
    place, _, stem = item.rpartition("/")
    stem = pattern.format(stem)
    for key in filter(None, (f"{place}/{stem}" if place else "", stem)):
        files = by_place.get(key, [])
        if len(files) > 1:
            raise ImageFileError(f"{', '.join(map(str, files))} are all pictures of {item!r}; leave one of them.")
        if files:
            return files[0]
    raise ImageFileError(f"{folder} holds no picture {stem} ({', '.join(SUFFIXES)}): the item has no result.")


def _read(name: str, path: Path, lq: Tensor, unchanged: str) -> Tensor:
    picture = read_image(path)
    if picture.shape != lq.shape:
        came, wanted = (f"{each.shape[-2]}×{each.shape[-1]}" for each in (picture, lq))
        raise ImageContractError(
            f"{path} is {came}, its input {wanted}: save results at the size of the aligned input, never resized."
        )
    if unchanged != "accept" and torch.equal(to_uint8(picture), to_uint8(lq.cpu())):
        said = f"{path} equals its input in every value: {name} did not restore it (some scripts save the input then)"
        if unchanged == "fail":
            raise ImageContractError(f"{said}. It counts as a failure; unchanged='accept' takes it.")
        warnings.warn(f"{said}.", UnchangedPictureWarning, stacklevel=2)
    return picture


def _digest(folder: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        try:
            line = f"{path.relative_to(folder).as_posix()} {path.stat().st_size} {file_digest(path)}\n"
        except OSError as error:
            raise ImageFileError(f"cannot read {path}: {error.strerror or error}. Check the file.") from error
        whole.update(line.encode())
    return whole.hexdigest()[:16]
