"""Drawn faces, datasets of them on disk, datasets of photographs with references, and alignment of photographs."""

from __future__ import annotations

import importlib
from typing import Any

from .identity import IDENTITY_NAMES, SPLITS, Identities
from .landmarks import GROUPS as LANDMARK_GROUPS
from .toy import Rendering, ToyFaces
from .view import VIEW_NAMES, Views

# Loaded when first named: they bring image libraries with them that drawing does not need.
_EXPORTS = {
    "BLIND_LAYOUTS": ("blind_layouts", "BLIND_LAYOUTS"),
    "REFERENCE_LAYOUTS": ("reference_layouts", "REFERENCE_LAYOUTS"),
    "ReferenceDataset": ("reference_dataset", "ReferenceDataset"),
    "celebref_pairs": ("celebref", "celebref_pairs"),
    "open_blind_dataset": ("blind_dataset", "open_blind_dataset"),
    "open_celebref": ("celebref", "open_celebref"),
    "open_reference_dataset": ("reference_dataset", "open_reference_dataset"),
    "validate_blind_dataset": ("blind_check", "validate_blind"),
    "validate_reference_dataset": ("reference_check", "validate"),
}

__all__ = [
    "IDENTITY_NAMES",
    "LANDMARK_GROUPS",
    "SPLITS",
    "VIEW_NAMES",
    "Identities",
    "Rendering",
    "ToyFaces",
    "Views",
    *_EXPORTS,
]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562)."""
    if name in _EXPORTS:
        module, attribute = _EXPORTS[name]
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
