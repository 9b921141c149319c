"""Processes side by side: is another one still there, and which one may write into a folder?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refbfr_core.errors import OutputError
from refbfr_core.files import output_error


def alive(process: int) -> bool:
    """Whether there is a process with this number, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def alone_in(folder: Path, lock: str = ".lock", what: str = "process is writing to") -> Iterator[None]:
    """Run a block as the only one that writes into `folder`, which is made if need be.

    `lock` is the name of the file that is locked, `what` says in the message what another one is doing there. The
    system lets go of a lock when its process ends, however it ends.

    Raises
    ------
    OutputError : another process is at it, or the folder cannot be written to.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / lock).open("w")
    except OSError as error:
        raise output_error(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"another {what} {folder}; wait until it has ended.") from error
        yield
