"""Restoration methods, one file each, behind one common call.

    pipe = load_pipeline("refldm")
    result = pipe(lq, references, num_inference_steps=50, seed=0)
    result.images        # (B, 3, H, W) float32 RGB in [0, 1]

Every pipeline is a `diffusers.DiffusionPipeline`: `save_pretrained`, `from_pretrained` and `to(device)` work as there.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "CoarseRestorer": "coarse",
    "DCVQRRestorer": "dcvqr",
    "DifFacePipeline": "difface",
    "DiffMACOutput": "diffmac_output",
    "DiffMACPipeline": "diffmac",
    "DiffMACSettings": "diffmac_output",
    "LDBFROutput": "ldbfr",
    "LDBFRPipeline": "ldbfr",
    "LDBFRSettings": "ldbfr",
    "LossWeights": "pivot_losses",
    "NetworkRestorer": "coarse",
    "PDGradPipeline": "pdgrad",
    "PGDiffPipeline": "pgdiff",
    "PIPELINES": "registry",
    "PipelineEntry": "registry",
    "PipelineRestorer": "coarse",
    "PivotGuidance": "pivot_guidance",
    "PivotSettings": "pivot_guidance",
    "RefLDMPipeline": "refldm",
    "RestorationOutput": "base",
    "RestorationSettings": "base",
    "SAMPLING": "presets",
    "SAMPLING_SEED": "presets",
    "blurry_restorer": "coarse",
    "coarse_picture": "coarse",
    "codeformer_restorer": "coarse_files",
    "encode_references": "references",
    "load_pipeline": "registry",
    "load_second": "diffmac_networks",
    "named_coarse": "coarse",
    "sampling": "presets",
    "spandrel_restorer": "coarse_files",
}

_MODULES = frozenset(_EXPORTS.values()) | {"pgdiff_guidance", "prior", "rows"}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
