"""Fetching a public file from its owners: asked for, licence accepted, resumed, compared, and in place in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refbfr_core.errors import OutputError, WeightsError
from refbfr_core.files import output_error
from refbfr_core.processes import alone_in
from refbfr_core.weights.asset import Asset
from refbfr_core.weights.asset_store import (
    asset_folder,
    check_file,
    compare,
    own_file,
    read_record,
    write_record,
)
from refbfr_core.weights.assets import asset_entry
from refbfr_core.weights.download import Progress, discard, download


def fetch_asset(
    name: str,
    *,
    accept: bool | Callable[[Asset], bool] = False,
    offline: bool | None = None,
    progress: Progress | None = None,
    root: str | Path | None = None,
    replace: bool = False,
    timeout: float = 60.0,
    attempts: int = 4,
) -> Path:
    """The file called `name`, fetched from its owners unless it is here already; a broken download goes on next time.

    Parameters
    ----------
    accept : whether the terms are accepted, or a function that is asked with the file's record. Only needed where the
        licence restricts the use or is not stated; what was answered is written down beside the file.
    offline : make no connection; None asks the environment variable REFBFR_OFFLINE.
    progress : called with bytes so far and in all. root : stands for `$REFBFR_WEIGHTS/files`.
    replace : fetch again what is here, and take another file than the first one if its owners changed it.
    timeout, attempts : seconds without a byte, and attempts without a new byte, before giving up.

    Raises
    ------
    WeightsError : offline, terms not accepted, only for a person to fetch, unreachable, or not the expected file; says
        what to do. DiskFullError, OutputError : the folder cannot be written. Under the final name stands the whole
        file or nothing, whatever happens.
    """
    entry = asset_entry(name)
    if entry.repository:
        return _fetch_repository(entry, accept, offline)
    own = own_file(entry, root)
    if own is not None and not replace:
        check_file(entry, own, read_record(entry, root))
        return own
    if entry.by_hand:
        raise WeightsError(f"no program can fetch {entry.title}: its owners hand it out to people. "
                           f"{entry.how_by_hand()} (licence: {entry.licence}; {entry.page})")  # fmt: skip
    _require_online(entry, offline)
    accepted = require_accepted(entry, accept)
    with alone_in(asset_folder(name, root)):
        return _fetch(entry, entry.address(), accepted, progress, root, replace, timeout, attempts)


def is_offline(offline: bool | None = None) -> bool:
    """Whether connections are forbidden, by the argument or else by the environment variable REFBFR_OFFLINE."""
    if offline is not None:
        return offline
    return os.environ.get("REFBFR_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def require_accepted(entry: Asset, accept: bool | Callable[[Asset], bool]) -> bool | None:
    """True if the terms of a file are accepted, None if there is nothing to accept; else raises `WeightsError`."""
    if not entry.needs_acceptance:
        return None
    if not (accept(entry) if callable(accept) else accept):
        raise WeightsError(
            f"the licence of {entry.title} ({entry.licence}; {entry.page}) was not accepted, so nothing was fetched. "
            f"If you accept it: refbfr weights get {entry.name} --accept-licence"
        )
    return True


def _fetch(
    entry: Asset,
    url: str,
    accepted: bool | None,
    progress: Progress | None,
    root: str | Path | None,
    replace: bool,
    timeout: float,
    attempts: int,
) -> Path:
    final = asset_folder(entry.name, root) / entry.filename
    part = final.with_name(f".{final.name}.part")
    record = None if replace else read_record(entry, root)
    try:
        download(
            url,
            part,
            size=entry.size,
            digest_is_known=entry.sha256 is not None,
            timeout=timeout,
            attempts=attempts,
            progress=progress,
        )
    except OutputError:
        raise
    except OSError as error:
        raise output_error(part, error) from error
    except WeightsError as error:
        raise WeightsError(f"{error} Run the command again later. Or by hand: {entry.how_by_hand()}") from error
    sha256 = _checked(entry, part, record)
    try:
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        # The record first: a file under its final name always has one, even if this process is killed in between.
        write_record(entry, part, sha256, "fetched", accepted, root)
        part.replace(final)
        discard(part)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(final, error) from error
    return final


def _checked(entry: Asset, part: Path, record: dict[str, Any] | None) -> str:
    """The digest of what came, if it is the expected file; else nothing of it is kept."""
    sha256, difference = compare(entry, part, record)
    if not difference:
        return sha256
    discard(part)
    if entry.sha256 or entry.sha256_prefix:
        cure = (
            "Run the command again; if that does not help, its owners have changed the file, and this package does not "
            "know the new one"
        )
    else:
        cure = f"If its owners changed the file and you want the new one: refbfr weights get {entry.name} --replace"
    raise WeightsError(
        f"what came from {entry.link} {difference}. Nothing of it was kept. {cure}. By hand: {entry.how_by_hand()}"
    )


def _fetch_repository(entry: Asset, accept: bool | Callable[[Asset], bool], offline: bool | None) -> Path:
    from refbfr_core.weights.hub import cached_repository, fetch_repository

    if is_offline(offline):
        return cached_repository(entry)
    require_accepted(entry, accept)
    return fetch_repository(entry)


def _require_online(entry: Asset, offline: bool | None) -> None:
    if is_offline(offline):
        raise WeightsError(
            f"{entry.title} is not on this machine and REFBFR_OFFLINE forbids connections. Fetch it elsewhere from "
            f"{entry.link}, then run: refbfr weights import {entry.filename}"
        )
