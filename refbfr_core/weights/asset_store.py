"""Public files on this machine: where they lie, what is written down about each, and whether it is still that file.

A file lies in `$REFBFR_WEIGHTS/files/<name>/`, or in the user's cache folder, with `record.json` beside it: size and
SHA-256, where it came from, its licence and whether that was accepted. A file that a library has fetched into its own
cache is found there too; nothing is written down about those.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refbfr_core.errors import WeightsError
from refbfr_core.files import file_sha256, write_text
from refbfr_core.weights.asset import Asset
from refbfr_core.weights.assets import asset_entry
from refbfr_core.weights.places import weights_root

RECORD = "record.json"
_FORMAT = 1
_KEYS = frozenset({"file", "bytes", "sha256"})


@dataclass(frozen=True)
class AssetState:
    """What is known about a file here. state : "not there", "there", "recorded" (compared with the first use only),
    "altered". detail : one line for people. path : of the file, None when it is not there.
    """

    state: str
    detail: str
    path: Path | None = None


def asset_folder(name: str, root: str | Path | None = None) -> Path:
    """The folder of a file and its record; it need not exist. `root` stands for `$REFBFR_WEIGHTS/files`."""
    entry = asset_entry(name)
    return (Path(root) if root is not None else weights_root() / "files") / entry.name


def asset_path(name: str, root: str | Path | None = None) -> Path:
    """The file (or the folder, for a repository) called `name`, compared with what is pinned or was written down.

    It is looked for in the folder of this package, then where a library keeps its own copy. Without a pinned SHA-256,
    the first look at a file in this package's folder writes its digest down. The hub's cache names large files by
    their SHA-256; `refbfr weights verify` compares those, this function does not.

    Raises
    ------
    UnknownNameError : no such name. WeightsError : the file is not there, truncated or altered; the message names the
        command that gets it, the owners' page and the licence. Nothing is deleted.
    """
    entry = asset_entry(name)
    if entry.repository:
        from refbfr_core.weights.hub import cached_repository

        return cached_repository(entry)
    path, record = own_file(entry, root), read_record(entry, root)
    if path is None:
        path = library_file(entry)
        if path is None:
            raise WeightsError(f"{entry.name} is not on this machine. {entry.how_to_get()}")
        check_file(entry, path, None)
        return path
    sha256 = check_file(entry, path, record)
    if record is None:
        write_record(entry, path, sha256, "found in its folder", None, root)
    return path


def asset_state(name: str, root: str | Path | None = None, *, thorough: bool = False) -> AssetState:
    """The state of a file; its digest is computed only if `thorough`, its size is always compared."""
    entry = asset_entry(name)
    if entry.repository:
        return _repository_state(entry, thorough)
    path, record = own_file(entry, root), None
    try:
        record = read_record(entry, root) if path else None
        path = path or library_file(entry)
        if path is None:
            return AssetState("not there", entry.how_to_get())
        difference = compare(entry, path, record)[1] if thorough else _size_differs(entry, path, record)
        if difference:
            return AssetState("altered", f"{path} {difference}. {_get_again(entry)}", path)
    except WeightsError as error:
        return AssetState("altered", str(error), path)
    return AssetState(*_standing(entry, path, record, thorough), path)


def own_file(entry: Asset, root: str | Path | None = None) -> Path | None:
    """The file in this package's folder, None when it is not there; its name is the owners', or that on its record."""
    filename = entry.filename or (read_record(entry, root) or {}).get("file", "")
    path = asset_folder(entry.name, root) / filename
    return path if filename and path.is_file() else None


def library_file(entry: Asset) -> Path | None:
    """The copy that a library keeps in its own cache, None without one."""
    path = library_place(entry)
    return path if path is not None and path.is_file() else None


def library_place(entry: Asset) -> Path | None:
    """Where a library would keep its own copy; it need not be there. None where no library keeps one."""
    where, _, rest = entry.library.partition("/")
    if where == "torch-hub":
        import torch

        return Path(torch.hub.get_dir()) / rest
    if where == "facexlib":
        spec = importlib.util.find_spec("facexlib")
        return Path(spec.origin).parent / "weights" / rest if spec is not None and spec.origin is not None else None
    return None


def check_file(entry: Asset, path: Path, record: dict[str, Any] | None) -> str:
    """The SHA-256 of `path` if size and digest are those that are pinned, and those on its record.

    Raises `WeightsError` otherwise; the message says what came, what is expected, and what to do.
    """
    sha256, difference = compare(entry, path, record)
    if difference:
        raise WeightsError(f"{path} {difference}. {_get_again(entry)}")
    return sha256


def compare(entry: Asset, path: Path, record: dict[str, Any] | None) -> tuple[str, str]:
    """SHA-256 of `path`, and in words how it differs from what is pinned or on its record, "" if it does not."""
    if wrong_size := _size_differs(entry, path, record):
        return "", wrong_size
    sha256 = file_sha256(path)
    pinned = entry.sha256 or entry.sha256_prefix
    for expected, whose in ((pinned, "its owners' file"), ((record or {}).get("sha256"), "the file that came first")):
        if expected and not sha256.startswith(expected):
            return sha256, (
                f"has been altered or is another file: SHA-256 {sha256[:16]}… came, {whose} has {expected[:16]}…"
            )
    return sha256, ""


def _size_differs(entry: Asset, path: Path, record: dict[str, Any] | None) -> str:
    size = path.stat().st_size
    for expected in (entry.size, (record or {}).get("bytes")):
        if expected is not None and size != expected:
            what = "truncated" if size < expected else "too long"
            return f"is {what}: {size} bytes came, {expected} are expected"
    return ""


def read_record(entry: Asset, root: str | Path | None = None) -> dict[str, Any] | None:
    """What was written down about a file, None if nothing was. Raises `WeightsError` for a record that is damaged."""
    path = asset_folder(entry.name, root) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Delete it if you know the file beside it.") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT or not record.keys() >= _KEYS:
        raise WeightsError(f"{path} is no record of format {_FORMAT}. Delete it if you know the file beside it.")
    return record


def write_record(
    entry: Asset, path: Path, sha256: str, how: str, accepted: bool | None, root: str | Path | None = None
) -> None:
    """Write down what a file is and how it came; `accepted` is None where nobody was asked about the licence."""
    record = {
        "format": _FORMAT,
        "name": entry.name,
        "file": entry.filename or path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "how": how,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": entry.link,
        "page": entry.page,
        "licence": entry.licence,
        "accepted": accepted,
    }
    write_text(asset_folder(entry.name, root) / RECORD, json.dumps(record, indent=2) + "\n")


def _standing(entry: Asset, path: Path, record: dict[str, Any] | None, thorough: bool) -> tuple[str, str]:
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    if entry.sha256:
        return "there", f"{size}, {'SHA-256 as pinned' if thorough else 'size as expected'}, in {path.parent}"
    if record is not None:
        return "recorded", f"{size}, as on {record.get('recorded', 'its record')}, in {path.parent}"
    return "there", f"{size}, no digest is known to compare with, in {path.parent}"


def _repository_state(entry: Asset, thorough: bool) -> AssetState:
    from refbfr_core.weights.hub import cached_repository, check_repository

    try:
        path = cached_repository(entry)
    except WeightsError as error:
        return AssetState("not there", str(error))
    try:
        if thorough:
            check_repository(entry, path)
    except WeightsError as error:
        return AssetState("altered", str(error), path)
    return AssetState("there", f"in the hub's cache, {path}", path)


def _get_again(entry: Asset) -> str:
    how = entry.how_by_hand() + " --replace" if entry.by_hand else f"run: refbfr weights get {entry.name} --replace"
    return f"Nothing was deleted. To get it again, {how[0].lower() + how[1:]} (licence: {entry.licence}; {entry.page})"
