"""Restoration methods, one file each, behind one common call.

    pipe = load_pipeline("refldm")
    result = pipe(lq, references, num_inference_steps=50, seed=0)
    result.images        # (B, 3, H, W) float32 RGB in [0, 1]

Every pipeline is a `diffusers.DiffusionPipeline`: `save_pretrained`, `from_pretrained` and `to(device)` work as there.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "PIPELINES": "registry",
    "PipelineEntry": "registry",
    "RefLDMPipeline": "refldm",
    "RestorationOutput": "base",
    "RestorationSettings": "base",
    "SAMPLING": "presets",
    "SAMPLING_SEED": "presets",
    "encode_references": "references",
    "load_pipeline": "registry",
    "sampling": "presets",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in {"base", "presets", "refldm", "references", "registry", "rows"}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
