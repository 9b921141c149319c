"""Measurements on unseen people: studies that survive a kill, count failures, and end in tables with intervals."""

from __future__ import annotations

import importlib

_EXPORTS = {
    "EmbedderScore": "embedders",
    "FirstStageReport": "first_stage",
    "IdentityStudy": "identity_tables",
    "ManifoldStudy": "identity_manifold",
    "MechanismStudy": "mechanisms",
    "PAPERS": "papers",
    "Recording": "recording",
    "ReferenceStudy": "references",
    "RowStore": "rows",
    "StudySettings": "references",
    "ablation_table": "pdgrad",
    "ablation_tables": "identity_tables",
    "claim_table": "pdgrad",
    "cost_ratios": "mechanisms_table",
    "count_table": "reference_counts",
    "measure_costs": "mechanisms_cost",
    "mechanisms_beside_paper": "mechanisms_table",
    "peak_memory": "mechanisms_cost",
    "published": "papers",
    "published_value": "papers",
    "record": "recording",
    "recorded": "recording",
    "recordings": "recording",
    "run_arms": "arms",
    "run_diffmac_study": "diffmac",
    "run_embedder_study": "embedders",
    "run_first_stage_study": "first_stage",
    "run_quality_study": "quality",
    "run_identity_study": "identity",
    "run_ldbfr_study": "ldbfr",
    "run_mechanism_study": "mechanisms",
    "run_pdgrad_study": "pdgrad",
    "run_reference_study": "references",
    "verification_auc": "embedders",
    "x0_manifold_study": "identity_manifold",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
