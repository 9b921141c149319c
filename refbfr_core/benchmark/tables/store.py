"""Rows of a table on disk: every finished row in a small Parquet file of its own, folded together at the end of a run.

A row is known by its key, the hash of everything that decides it (`row_key`). A run writes a part as soon as a row is
there, in one step; being killed loses at most the row under way. Rows under other keys stay in the store and are never
mixed in: they belong to other settings, weights or code, and are there again when those come back.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from refbfr_core.errors import CacheError, DiskFullError
from refbfr_core.files import atomic_path

_KEY_DIGITS = 20
_ALL = "all.parquet"
_PARTS = 200
_DAMAGED = "is damaged ({}). Delete this file and run again; only its rows are made anew."


def row_key(**parts: Any) -> str:
    """The key of a row: twenty hexadecimal digits of the SHA-256 of its parts, plain JSON values, in any order."""
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


class TableStore:
    """The rows in `folder`/store, or in memory without a folder.

    Attributes:
        folder: None keeps rows in memory only.
        rows: key -> row, as plain values.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder) / "store"
        self.rows: dict[str, dict[str, Any]] = {}
        self._own: list[tuple[str, Path]] = []
        for path in self._files():
            self.rows |= {row["key"]: row for row in _read(path)}

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a finished row, in one step.

        Raises:
            DiskFullError, OutputError: it cannot be written; then it is not in the store either.
        """
        if self.folder is not None:
            path = self._part(row["key"])
            _write([row], path)
            self._own.append((row["key"], path))
        self.rows[row["key"]] = dict(row)
        if len(self._own) == _PARTS:  # a long run would leave tens of thousands of tiny files
            _write([self.rows[key] for key, _ in self._own], self._part(f"{_PARTS}-{row['key']}"))
            for _, path in self._own:
                path.unlink(missing_ok=True)
            self._own = []

    def fold(self, more: Iterable[Mapping[str, Any]] = ()) -> None:
        """Fold all parts, and rows that other processes made, into one file.

        Killed in between, it leaves the parts and is done again by the next run. One process at a time may do this.
        """
        self.rows |= {row["key"]: dict(row) for row in more}
        if self.folder is None or not self.rows:
            return
        parts = [path for path in self._files() if path.name != _ALL]
        for path in parts:  # other processes' parts, which this one has not seen
            self.rows |= {row["key"]: row for row in _read(path) if row["key"] not in self.rows}
        _write(sorted(self.rows.values(), key=lambda row: row["key"]), self.folder / _ALL)
        for path in (*parts, *self.folder.glob(".*.parquet")):  # the latter: what a killed run was writing
            path.unlink(missing_ok=True)
        self._own = []

    def _part(self, name: str) -> Path:
        return self.folder / f"part-{name}-{os.getpid()}-{secrets.token_hex(2)}.parquet"

    def _files(self) -> list[Path]:
        """Finished files; one that is being written has a name with a dot in front."""
        return [] if self.folder is None else sorted(self.folder.glob("[!.]*.parquet"))


def write_rows(rows: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as Parquet, in one step; same rows, same bytes.

    Raises:
        DiskFullError, OutputError: it cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        rows.to_parquet(temporary, index=False, engine="pyarrow", compression="zstd")
    return path


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read what `write_rows` wrote.

    Raises:
        CacheError: the file is missing or damaged.
    """
    import pyarrow

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise CacheError(f"{path} {_DAMAGED.format(f'{type(error).__name__}: {error}')}") from error


def kept(store: TableStore, error: DiskFullError, total: int) -> DiskFullError:
    """The same error, saying also how much of the run is safe."""
    return DiskFullError(
        f"{error} {len(store.rows)} of {total} rows are kept; free some space and give the same command again."
    )


def _write(rows: list[Mapping[str, Any]], path: Path) -> None:
    # One column of JSON: rows of different tables have different metrics, and floats come back exactly.
    texts = [json.dumps(row, sort_keys=True) for row in rows]
    write_rows(pd.DataFrame({"key": [row["key"] for row in rows], "row": texts}), path)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():  # another process has folded it in the meantime
        return []
    frame = read_rows(path)
    if "row" not in frame:
        raise CacheError(f"{path} {_DAMAGED.format('it has no column row')}")
    try:
        return [json.loads(text) for text in frame["row"]]
    except ValueError as error:
        raise CacheError(f"{path} {_DAMAGED.format(error)}") from error
