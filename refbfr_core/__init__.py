"""refbfr_core: restoring ruined faces with the help of other photos of the same person.

Importing this package loads nothing heavy: rooms such as `refbfr_core.faces` are imported the first time they are
named, so `import refbfr_core` stays quick and a missing optional library only matters to whoever uses it.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from refbfr_core import torchvision_ops as _torchvision_ops

if TYPE_CHECKING:
    from refbfr_core.pipelines import load_pipeline

__version__ = "0.1.0"

_SUBMODULES = (
    "benchmark",
    "cli",
    "degradation",
    "devices",
    "diffusion",
    "errors",
    "faces",
    "files",
    "images",
    "metrics",
    "models",
    "notebook",
    "pipelines",
    "processes",
    "torchvision_ops",
    "training",
    "weights",
)
_LAZY_NAMES = {"load_pipeline": "pipelines"}

__all__ = ["__version__", "load_pipeline", *_SUBMODULES]


# Costs nothing until somebody imports torchvision, and must be in place before diffusers does.
_torchvision_ops.install()

# diffusers imports bitsandbytes wherever that is installed, which then warns about a kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import a room, or the function that lives in one, when it is first asked for (PEP 562)."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
