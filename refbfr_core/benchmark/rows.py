"""Result rows that survive a killed run: written after every batch, continued only under the same settings."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from refbfr_core.errors import CacheError, ConfigError
from refbfr_core.files import atomic_path, write_text

OK, FAILED = "ok", "failed"


class RowStore:
    """Rows of one study, in memory and, given a folder, in `rows.csv` beside the `settings.json` they belong to.

    Args:
        settings: everything that decides a row, as plain JSON values.
        folder: where to keep rows; None keeps them in memory only.

    Raises:
        ConfigError: the folder holds rows of other settings (mixing them would be a lie). CacheError: its files are
            damaged. OutputError: it cannot be written.
    """

    def __init__(self, settings: Mapping[str, Any], folder: str | Path | None = None) -> None:
        self.settings = json.loads(json.dumps(dict(settings), allow_nan=False))
        self.folder = None if folder is None else Path(folder)
        self._rows: list[dict[str, Any]] = []
        if self.folder is None:
            return
        if (self.folder / "settings.json").exists():
            self._check_settings()
            self._rows = self._read()
        else:
            write_text(self.folder / "settings.json", json.dumps(self.settings, indent=2) + "\n")

    def __len__(self) -> int:
        return len(self._rows)

    def done(self, key: str) -> set[Any]:
        """The values of column `key` that already have rows."""
        return {row[key] for row in self._rows}

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows and writes all of them; a run killed during this keeps the rows it had before."""
        self._rows += [dict(row) for row in rows]
        if self.folder is not None:
            with atomic_path(self.folder / "rows.csv") as path:
                self.frame().to_csv(path, index=False, na_rep="nan")

    def frame(self) -> pd.DataFrame:
        """All rows as a table, one measurement target and arm a row."""
        return pd.DataFrame(self._rows)

    def _check_settings(self) -> None:
        stored = self._read_json(self.folder / "settings.json")
        changed = sorted(key for key in {*stored, *self.settings} if stored.get(key) != self.settings.get(key))
        if changed:
            described = "; ".join(
                f"{key}: {stored.get(key)!r} there, {self.settings.get(key)!r} now" for key in changed
            )
            raise ConfigError(
                f"{self.folder} holds rows of a run with other settings ({described}). "
                "Use another folder, or the old settings to continue that run."
            )

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CacheError(f"{path} is damaged ({error}). Delete the folder and run again.") from error

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / "rows.csv"
        if not path.exists():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise CacheError(f"{path} is damaged ({error}). Delete the folder and run again.") from error
        if any(None in row or None in row.values() for row in rows):
            raise CacheError(
                f"{path} is damaged (a row has not as many cells as the header). Delete the folder and run again."
            )
        return [{key: _value(text) for key, text in row.items()} for row in rows]


def _value(text: str) -> int | float | str:
    """A cell of the file as it was before it was written; floats come back exactly."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def fingerprint(*networks: nn.Module) -> str:
    """Twelve hexadecimal digits that change with any weight, so that rows of different networks are never mixed."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
