"""Repositories of the Hugging Face hub that are wanted as a whole folder, in the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from refbfr_core.errors import WeightsError
from refbfr_core.files import file_sha256
from refbfr_core.weights.asset import Asset

_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached_repository(entry: Asset) -> Path:
    """The folder of a repository in the hub's cache; no connection is made. Raises `WeightsError` without one."""
    return _snapshot(entry, local=True)


def fetch_repository(entry: Asset) -> Path:
    """Fetch what is missing; the hub's library resumes and keeps nothing half. Raises `WeightsError`."""
    return check_repository(entry, _snapshot(entry, local=False))


def check_repository(entry: Asset, folder: Path) -> Path:
    """Compare every large file of a cached repository with its SHA-256, by which the cache names it.

    Raises `WeightsError` that names the file which differs. Where the cache has no symbolic links there is nothing to
    compare with.
    """
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink() or not _SHA256.fullmatch(path.resolve().name):
            continue
        digest = file_sha256(path)
        if digest != path.resolve().name:
            raise WeightsError(
                f"{path} has been altered: SHA-256 {digest[:16]}… came, {path.resolve().name[:16]}… is expected. "
                f"Delete {path.resolve()}, then run: refbfr weights get {entry.name}"
            )
    return folder


def _snapshot(entry: Asset, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(entry.patterns) or None
    try:
        return Path(snapshot_download(entry.repository, allow_patterns=patterns, local_files_only=local))
    except LocalEntryNotFoundError as error:
        reason = "is not on this machine" if local else "cannot be fetched: the hub cannot be reached"
        raise WeightsError(f"{entry.name} {reason}. {entry.how_to_get()}") from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"the hub does not give {entry.repository} ({first[:200]}). {entry.how_to_get()}") from error
