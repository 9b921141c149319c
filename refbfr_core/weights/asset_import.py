"""Taking in public files that somebody downloaded in a browser: recognised, compared, copied, and written down."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from refbfr_core.errors import DiskFullError, WeightsError
from refbfr_core.files import atomic_path, file_sha256
from refbfr_core.processes import alone_in
from refbfr_core.weights.asset import Asset
from refbfr_core.weights.asset_store import (
    asset_folder,
    compare,
    own_file,
    read_record,
    write_record,
)
from refbfr_core.weights.assets import ASSETS, asset_entry
from refbfr_core.weights.fetch import require_accepted


def recognise_asset(path: str | Path) -> str | None:
    """The name of the public file that `path` is, by its own name or by a known SHA-256; None for any other.

    Files that `refbfr weights import` makes networks of are told apart by what is in them, so they are none here.
    """
    path = Path(path)
    if not path.is_file():
        return None
    kept = [entry for entry in ASSETS.values() if not (entry.converted or entry.repository)]
    named = [entry.name for entry in kept if entry.filename.casefold() == path.name.casefold()]
    if named:
        return named[0]
    size = path.stat().st_size
    pinned = [entry for entry in kept if entry.sha256 and entry.size in (None, size)]
    sha256 = file_sha256(path) if pinned else ""
    return next((entry.name for entry in pinned if entry.sha256 == sha256), None)


def import_asset(
    path: str | Path,
    name: str,
    *,
    accept: bool | Callable[[Asset], bool] = False,
    root: str | Path | None = None,
    replace: bool = False,
) -> Path:
    """Copy a downloaded file to where `asset_path(name)` finds it, in one step; returns that place.

    `accept` and `root` are those of `fetch_asset`. A file that is there already stays unless it is the same one or
    `replace` is given.

    Raises
    ------
    WeightsError : no such file, not the expected one, or terms not accepted; nothing is copied then. DiskFullError,
    OutputError : the folder cannot be written.
    """
    entry, path = asset_entry(name), Path(path)
    if entry.repository or not path.is_file():
        what = "a folder of the hub, not a file" if entry.repository else "not there, or not a file"
        raise WeightsError(f"{path} cannot be taken in as {name}: it is {what}. {entry.how_to_get()}")
    sha256, difference = compare(entry, path, None)
    if difference:
        raise WeightsError(f"{path} {difference}. Nothing was copied. Download it again from {entry.link}")
    before, record = own_file(entry, root), read_record(entry, root)
    if not replace and before is not None and file_sha256(before) != sha256:
        raise WeightsError(
            f"{path} (SHA-256 {sha256[:16]}…) is not the file that is there as {name}, {before}. If it is the right "
            "one, import it with --replace."
        )
    if not replace and record is not None and record["sha256"] != sha256:
        raise WeightsError(
            f"{path} (SHA-256 {sha256[:16]}…) is not the file that was first taken in as {name} (SHA-256 "
            f"{record['sha256'][:16]}…, {record.get('recorded')}). If it is the right one, import it with --replace."
        )
    accepted = require_accepted(entry, accept)
    folder = asset_folder(name, root)
    with alone_in(folder):
        target = folder / (entry.filename or path.name)
        if not (target.exists() and target.samefile(path)):
            size, free = path.stat().st_size, shutil.disk_usage(folder).free
            if free < size:
                raise DiskFullError(
                    f"cannot copy {path} to {folder}: it has {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free."
                )
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)
        write_record(entry, target, sha256, "imported from a download", accepted, root)
    return target
