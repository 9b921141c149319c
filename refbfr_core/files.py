"""Writing files so that a killed run, a full disk or a read-only folder never leaves half a file under its name."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refbfr_core.errors import DiskFullError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def output_error(path: str | Path, error: OSError) -> OutputError:
    """Translate the system's `error` about writing `path` into a `DiskFullError` or `OutputError` naming the cure."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return DiskFullError(
            f"cannot write {path}: {reason}. Free some space or choose another place; nothing half-written was kept."
        )
    return OutputError(
        f"cannot write {path}: {reason}. Choose a folder you may write to; nothing half-written was kept."
    )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it takes the name `path` in one step.

    Missing parent folders are made. The temporary file keeps the suffix of `path`, because some libraries choose the
    format by it. If the block raises, whatever the reason, the temporary file is deleted and an older file under `path`
    is left as it was.

    Raises
    ------
    DiskFullError : the disk or quota is full. OutputError : the place cannot be written to.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.{secrets.token_hex(6)}.tmp{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, final)
    except OutputError:
        raise
    except OSError as error:
        # An error about another file (a missing input read inside the block, say) must not be reported as a failed
        # write.
        ours = {temporary, final, *final.parents}
        if error.filename is not None and Path(os.fsdecode(error.filename)) not in ours:
            raise
        raise output_error(final, error) from error
    finally:
        # A file where a folder should be makes even this impossible; the error already under way says so better.
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` in one step; see `atomic_path` for what happens when that fails."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 in one step; see `atomic_path` for what happens when that fails."""
    write_bytes(path, text.encode("utf-8"))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; raises OSError as opening and reading do."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    """Wait until the content of `path` is on the disk: a full disk or network share may only say so now."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
