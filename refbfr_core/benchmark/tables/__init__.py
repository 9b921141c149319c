"""Tables of methods on datasets: runs that survive, rows with provenance, reports beside the published numbers."""

from __future__ import annotations

import importlib

_EXPORTS = {
    "Arm": "systems",
    "SYSTEMS": "systems",
    "SystemEntry": "systems",
    "TABLES": "specs",
    "TABLE_DATASETS": "datasets",
    "TableCase": "cases",
    "TableDataset": "cases",
    "TableItem": "cases",
    "TableReport": "report",
    "TableRun": "results",
    "TableSpec": "specs",
    "build_restorer": "restorers",
    "drawn_dataset": "datasets",
    "folder_restorer": "restorers",
    "run_table": "engine",
    "table_dataset": "datasets",
    "table_spec": "specs",
    "toy_arms": "systems",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
