"""A web server of one file on this machine, which can be told to behave badly; for the tests of downloads."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """Serves `content` at `url`. Change the attributes to change how it behaves; `asked` holds what was asked for.

    etag, modified : marks of the content, "" for none. ranges : whether a part can be asked for. cut : lengths after
    which the next answers break off, one an answer. piece : at most so many bytes of a rest come at once. claims : the
    length that is announced, if not the true one. status : of every answer, if not 200 or 206. kind : the Content-Type.
    stall : an event that answers wait for. per_chunk, pause : bytes that are sent before every pause of so many
    seconds.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.etag, self.modified, self.ranges = content, '"first"', "", True
        self.cut: list[int] = []
        self.piece: int | None = None
        self.claims: int | None = None
        self.status, self.kind = 200, "application/octet-stream"
        self.stall: threading.Event | None = None
        self.per_chunk, self.pause = 2**16, 0.0
        self.asked: list[dict[str, str]] = []
        self.sent = threading.Event()

    def __enter__(self) -> FileServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/model.pth"
        return self

    def __exit__(self, *error: object) -> None:
        if self.stall is not None:
            self.stall.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers))
        if self.stall is not None:
            self.stall.wait(30)
        start, status = 0, self.status
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range", "")
        if wanted and self.ranges and self.status == 200 and condition in ("", self.etag, self.modified):
            start, status = int(wanted[1]), 206
        if status == 206 and start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return
        body = self.content[start:][: self.piece if status == 206 else None]
        request.send_response(status)
        for name, value in (("ETag", self.etag), ("Last-Modified", self.modified), ("Content-Type", self.kind)):
            if value:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(body) if self.claims is None else self.claims))
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(self.content)}")
        request.end_headers()
        body = body[: self.cut.pop(0)] if self.cut else body
        for begin in range(0, len(body), self.per_chunk):
            request.wfile.write(body[begin : begin + self.per_chunk])
            request.wfile.flush()
            self.sent.set()
            if self.pause:
                threading.Event().wait(self.pause)

    @property
    def ranges_asked(self) -> list[str]:
        """The `Range` of every request so far, "" for the whole file."""
        return [headers.get("Range", "") for headers in self.asked]


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises `error`, whatever it is called with."""

    def replacement(*arguments: object, **keywords: object) -> None:
        raise error

    return replacement


def fetch_in_another_process(url: str, sha256: str, root: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Fetch `url` as the file "net" in a process of its own that may write files of `limit` bytes, if that is not 0.

    It ends with exit code 3 and the error on its standard output when the download fails.
    """
    script = f"""
import resource, sys
from refbfr_core.errors import RefbfrError
from refbfr_core.weights import assets, fetch_asset
from refbfr_core.weights.asset import Asset
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
assets.ASSETS = {{"net": Asset("net", "net.pth", "a test", "page", "MIT", "free", url={url!r}, sha256={sha256!r})}}
try:
    fetch_asset("net", root={str(root)!r})
except RefbfrError as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
