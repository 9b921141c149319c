"""Results of runs that take too long for a notebook, kept beside the command that made them.

A recording is `<name>.csv`, one row a measurement, with `<name>.json`: the command, settings, seeds, digests of the
weights, machine, versions and date. Notebooks show recorded rows together with that provenance.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from refbfr_core.errors import CacheError, ConfigError, unknown_name
from refbfr_core.files import atomic_path, write_text

REQUIRED = ("command", "settings")
_FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recording:
    """A recorded result: its rows, and what made them."""

    name: str
    rows: pd.DataFrame
    about: dict[str, Any]

    def __str__(self) -> str:
        machine = self.about["machine"]
        return (
            f"recorded {self.about['date']} by `{self.about['command']}` on {machine['cores']} cores "
            f"({machine['processor']}{', ' + machine['gpu'] if machine.get('gpu') else ''}); {len(self.rows)} rows"
        )


def recordings(folder: str | Path | None = None) -> list[str]:
    """Names of the recordings in `folder`, by default those that come with the package."""
    return sorted(path.stem for path in Path(folder or _FOLDER).glob("*.csv"))


def recorded(name: str, folder: str | Path | None = None) -> Recording:
    """Read a recording.

    Raises:
        UnknownNameError: there is none of that name. CacheError: its files are damaged or incomplete.
    """
    place = Path(folder or _FOLDER)
    if name not in recordings(place):
        raise unknown_name("recording", name, recordings(place))
    try:
        rows = pd.read_csv(place / f"{name}.csv", keep_default_na=True)
        about = json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CacheError(f"the recording {name!r} in {place} cannot be read ({error}); record it again.") from error
    missing = {*REQUIRED, "date", "machine", "rows"} - set(about)
    if missing or about["rows"] != len(rows):
        raise CacheError(
            f"the recording {name!r} in {place} is incomplete: {len(rows)} rows, provenance lacks "
            f"{sorted(missing) or 'nothing'} and counts {about.get('rows')} rows; record it again."
        )
    return Recording(name, rows, about)


def record(name: str, rows: pd.DataFrame, about: Mapping[str, Any], folder: str | Path | None = None) -> Path:
    """Write a recording and return the path of its rows; an older one of that name is replaced.

    Args:
        name: file name without ending, words joined by "-".
        rows: one row a measurement, plain columns.
        about: at least "command" (what to type to get it again) and "settings"; plain JSON values. Date, machine and
            versions are added.
        folder: default: the package's own.

    Raises:
        ConfigError: no rows, or an incomplete `about`. OutputError, DiskFullError: it cannot be written.
    """
    if rows.empty:
        raise ConfigError(f"the recording {name!r} has no rows; there is nothing to keep.")
    if absent := [key for key in REQUIRED if key not in about]:
        raise ConfigError(f"the recording {name!r} does not say {', '.join(absent)}; pass it in about.")
    place = Path(folder or _FOLDER)
    complete = {
        **about,
        "rows": len(rows),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {each: importlib.metadata.version(each) for each in ("torch", "diffusers")},
    }
    text = json.dumps(complete, indent=2, allow_nan=False) + "\n"
    with atomic_path(place / f"{name}.csv") as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    write_text(place / f"{name}.json", text)
    return place / f"{name}.csv"


def machine() -> dict[str, Any]:
    """What this computer is, as far as a measured number depends on it."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
