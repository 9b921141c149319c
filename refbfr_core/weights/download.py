"""One file over HTTP, in a way that survives: it goes on where it stopped, and never glues two files together.

What has come so far stands in a `.part` file, with a small record beside it of the address, the server's mark of the
content (ETag or date) and the whole length. Only a server that confirms the mark is asked for the rest.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from refbfr_core.errors import DiskFullError, WeightsError
from refbfr_core.files import output_error, write_text

CHUNK = 2**16
"""Bytes that are read at once: what a connection that breaks off may lose of what it had sent."""
PAUSE = 1.0
"""Seconds before the second attempt; twice as long before every further one."""
# Room for the record and the file system's own needs.
_SPARE_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BUSY = (408, 425, 429, 500, 502, 503, 504)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class _Begun:
    """What the server said about a file when its download began. total : bytes, None where it did not say."""

    url: str
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @property
    def mark(self) -> str:
        """What `If-Range` may hold: the ETag unless it is a weak one, else the date; "" for neither."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Broken(Exception):
    """A connection that failed in a way that another attempt may mend."""


def download(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    digest_is_known: bool = False,
    timeout: float = 60.0,
    attempts: int = 4,
    progress: Progress | None = None,
) -> None:
    """Fetch `url` into `part`, going on with what is there from an earlier call.

    Parameters
    ----------
    part : the file to write; its record is `part` with `.json` behind.
    size : bytes that are expected, None for any number.
    digest_is_known : whether the caller compares the whole with a SHA-256; then a server that gives no mark of the
        content is asked for the rest as well, since a wrong whole is noticed.
    timeout : seconds without a byte, and for a connection. attempts : without a single new byte, before giving up.
    progress : called with bytes so far and in all (None where the server does not say).

    Raises
    ------
    WeightsError : unreachable, refused, another size than expected, a web page instead of a file; says how much is
        kept. DiskFullError, OutputError : `part` cannot be written; what has come is kept.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    idle, failure = 0, ""
    with requests.Session() as session:
        # The bytes themselves are wanted: a range of a compressed answer would be a range of something else.
        session.headers["Accept-Encoding"] = "identity"
        while idle < attempts:
            if idle:
                time.sleep(PAUSE * 2 ** (idle - 1))
            before = _length(part)
            try:
                _attempt(session, url, part, size, digest_is_known, timeout, progress)
                return
            except _Broken as error:
                failure = str(error)
                idle = 0 if _length(part) > before else idle + 1
    kept = f"; {_length(part)} bytes are kept in {part} and the next call goes on there" if _length(part) else ""
    raise WeightsError(f"{url} cannot be fetched: {failure} ({attempts} attempts){kept}.")


def discard(part: Path) -> None:
    """Remove a partial download and its record."""
    part.unlink(missing_ok=True)
    _record_of(part).unlink(missing_ok=True)


def _attempt(
    session: requests.Session,
    url: str,
    part: Path,
    size: int | None,
    digest_is_known: bool,
    timeout: float,
    progress: Progress | None,
) -> None:
    """One request and its answer; `_Broken` if another attempt may help."""
    begun, have = _begun(part, url), _length(part)
    if begun is None or not (begun.mark or digest_is_known):
        begun, have = None, 0
    if have and begun is not None and have == begun.total:
        return
    headers = {}
    if have and begun is not None:
        headers["Range"] = f"bytes={have}-"
        if begun.mark:
            headers["If-Range"] = begun.mark
    try:
        response = session.get(url, headers=headers, stream=True, timeout=timeout)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Broken(_reason(error, timeout)) from error
    except requests.RequestException as error:
        raise WeightsError(f"{url} cannot be fetched: {_reason(error, timeout)}.") from error
    with response:
        if response.status_code == 206 and begun is not None:
            total = _continued(response, begun, have, part)
        elif response.status_code == 200:
            have, total = 0, _begin(response, url, part, size)
        else:
            _refuse(response, url, part)
            return
        _check_room(part, total, have)
        have = _receive(response, part, have, total, timeout, progress)
    if total is not None and have < total:
        raise _Broken(f"the connection ended after {have} of {total} bytes")
    if total is not None and have > total:
        discard(part)
        raise _Broken(f"{have} bytes came, the server announced {total}")


def _begin(response: requests.Response, url: str, part: Path, size: int | None) -> int | None:
    """The whole file comes, from its beginning: write down what it is. Returns its length, None where not said.

    An answer that cannot be the file leaves what has come before as it is.
    """
    if "text/html" in response.headers.get("Content-Type", ""):
        raise WeightsError(f"{url} gave a web page instead of a file; its owners may want a person to click.")
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    if size is not None and total is not None and total != size:
        raise WeightsError(f"{url} has {total} bytes, {size} are expected; nothing was fetched.")
    discard(part)
    begun = _Begun(url, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), total)
    write_text(_record_of(part), json.dumps(asdict(begun)) + "\n")
    return total


def _continued(response: requests.Response, begun: _Begun, have: int, part: Path) -> int | None:
    """The rest of the file comes: make sure that it is the rest of this file. Returns the length of the whole."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    etag = response.headers.get("ETag", "")
    total = int(found[3]) if found and found[3] != "*" else None
    same = total is None or begun.total is None or total == begun.total
    if not found or int(found[1]) != have or not same or (etag and begun.etag and etag != begun.etag):
        discard(part)
        raise _Broken("the file has changed on its server since the download began")
    return total if total is not None else begun.total


def _refuse(response: requests.Response, url: str, part: Path) -> None:
    """Any other answer is an error, except the one that says that nothing is left to send."""
    answer = f"the server answered {response.status_code} {response.reason}"
    if response.status_code == 416:
        if response.headers.get("Content-Range", "") == f"bytes */{_length(part)}":
            return
        discard(part)
        raise _Broken("the file has changed on its server since the download began")
    if response.status_code in _BUSY:
        raise _Broken(answer)
    raise WeightsError(f"{url} cannot be fetched: {answer}.")


def _receive(
    response: requests.Response,
    part: Path,
    have: int,
    total: int | None,
    timeout: float,
    progress: Progress | None,
) -> int:
    """Append the body to `part`; every whole chunk that came is in the file when this ends, however it ends."""
    chunks = response.iter_content(CHUNK)
    try:
        with part.open("ab", buffering=0) as stream:
            while chunk := _next(chunks, timeout):
                view = memoryview(chunk)
                while view:
                    view = view[stream.write(view) :]
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
    except OSError as error:
        told = output_error(part, error)
        kept = f"{_length(part)} bytes are kept there; the next call goes on with them."
        raise type(told)(str(told).replace("nothing half-written was kept.", kept)) from error
    return have


def _next(chunks, timeout: float) -> bytes:
    try:
        return next(chunks, b"")
    except requests.RequestException as error:
        raise _Broken(_reason(error, timeout)) from error


def _check_room(part: Path, total: int | None, have: int) -> None:
    """Say that the disk is too full before an hour of downloading, not after."""
    free = shutil.disk_usage(part.parent).free
    if total is not None and free < total - have + _SPARE_BYTES:
        raise DiskFullError(
            f"cannot write {part}: {(total - have) / 2**20:.0f} MiB are still to come, {free / 2**20:.0f} MiB are "
            "free. Free some space, or name another folder in REFBFR_WEIGHTS."
        )


def _begun(part: Path, url: str) -> _Begun | None:
    """The record of a partial download from `url`; None without one that can be used."""
    try:
        begun = _Begun(**json.loads(_record_of(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return begun if begun.url == url else None


def _record_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _reason(error: requests.RequestException, timeout: float) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"no answer within {timeout:g} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    # requests wraps the system's words in several layers; the innermost say what happened.
    words = re.findall(r"\[Errno [^\]]*\] ([^'\")]+)", str(error))
    return f"no connection ({words[-1].strip() if words else type(error).__name__})"
