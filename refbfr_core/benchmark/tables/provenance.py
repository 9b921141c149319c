"""What a row was made with: a digest of the code and of the small files that decide its numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import refbfr_core
from refbfr_core.benchmark.recording import machine

_ROOMS = ("degradation", "diffusion", "faces", "images", "metrics", "models", "pipelines", "weights")
_BENCHMARK = ("cases.py", "scoring.py", "severities.py")
_REPORTS = {"discrepancies", "formats", "inconsistencies", "make", "published_cells", "report", "results", "set_scores"}
_REPORTS |= {"sheets", "significance", "specs", "spec_data", "store", "workers", "__init__"}


def code_version() -> str:
    """Version of the package and twelve hexadecimal digits of everything in it that decides a row.

    That is the source of the rooms below the benchmarks, what the tables themselves take part in, the cards of the
    shipped networks (which hold the SHA-256 of the weights), the statistics of the metrics, and torch's version. A
    change of a comment changes it too: rows made before are then made again, which costs time and never a wrong table.
    """
    package = Path(refbfr_core.__file__).parent
    files = [path for room in _ROOMS for path in (package / room).rglob("*") if path.suffix in (".py", ".json")]
    files += [package / "benchmark" / name for name in _BENCHMARK]
    files += [path for path in (package / "benchmark" / "tables").glob("*.py") if path.stem not in _REPORTS]
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for path in sorted(files):
        digest.update(str(path.relative_to(package).as_posix()).encode())
        digest.update(path.read_bytes())
    return f"{refbfr_core.__version__}+{digest.hexdigest()[:12]}"


def made_on() -> dict[str, object]:
    """The machine and the libraries, for a run's settings; no part of a row's key."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
    return {"machine": machine(), "versions": versions}
