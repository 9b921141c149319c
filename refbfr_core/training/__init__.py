"""Training every network that ships: `run(name, out=...)` from Python, `refbfr train NAME` from a shell."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "fine_tune_live": "refldm_live",
    "run": "launch",
    "run_full": "launch_full",
    "RECIPES": "recipes",
    "PAPER_RECIPES": "paper_recipes",
    "recipe": "recipes",
    "paper_recipe": "paper_recipes",
    "Recipe": "recipes",
    "read_log": "records",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import on first use: listing recipes should not load accelerate."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
