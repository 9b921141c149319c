"""Restorers of a table that are pipelines of this package, with the settings of each profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.benchmark.tables.restorer import Restorer, digest_of
from refbfr_core.benchmark.tables.systems import NO_REFERENCES, SystemEntry
from refbfr_core.errors import ConfigError

MOST_REFERENCES: Mapping[str, int] = MappingProxyType({"refldm": 5, "pdgrad": 1, "pgdiff": 1, "diffmac": 1})
"""How many references a method is given at most, the first ones: ReF-LDM's paper trains with five, PDGrad's and
PGDiff's take one; DiffMAC's paper takes none, one is enough for an embedding."""

TOY_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"pgdiff": {"num_inference_steps": 25}, "refldm": {"rows_per_call": 1}}
)
"""What differs from the pipelines' own toy settings. PGDiff starts from pure noise and would take the most time of all
at its 50 steps. ReF-LDM fills a call of its network to four pictures, of which three are waste where a table restores
one at a time."""

PAPER_COARSE: Mapping[str, str] = MappingProxyType(
    {"pdgrad": "codeformer", "pgdiff": "codeformer", "difface": "difface-swinir"}
)
"""The coarse restorer of each method's experiments, by its name in `refbfr_core.weights.ASSETS`. For PGDiff, as PDGrad
describes it: its own restorer of every step is not in this package."""


def pipeline_restorer(
    system: str,
    entry: SystemEntry,
    profile: str,
    device: torch.device,
    root: str | Path | None,
    options: Mapping[str, Any],
) -> Restorer:
    """The restorer of the system or variant `system` on the pipeline of `entry`.

    Raises WeightsError for missing weights, ConfigError for options that the pipeline does not have.
    """
    from refbfr_core.pipelines import SAMPLING, SAMPLING_SEED, load_pipeline, load_second

    options = {**(TOY_SETTINGS.get(entry.pipeline, {}) if profile == "toy" else {}), **options}
    coarse = _coarse(entry.pipeline, profile, device, options)
    second, stage = options.pop("second", None), options.pop("stage", None)
    if (second or stage) and entry.pipeline != "diffmac":
        raise ConfigError(f"{system} has no second stages; leave out second= and stage=.")
    pipe = load_pipeline(entry.pipeline, profile, device, root=root)
    if second is not None:
        pipe = pipe.with_second(*load_second(second, profile, device, root=root))
    pipe.set_progress_bar_config(disable=True)
    fixed: int | None = None
    if entry.pipeline == "refldm" and profile == "paper":
        options = {**SAMPLING["paper-evaluation"], **options}
        fixed = SAMPLING_SEED
    call = _call_options(options)
    if coarse is not None:
        call["coarse"] = coarse
    most = MOST_REFERENCES.get(entry.pipeline, 0)
    restore = pipe.stage_one if stage == 1 else pipe
    given = entry.references if stage is None and getattr(pipe, "takes_references", True) else NO_REFERENCES

    def run(lq: Tensor, references: Tensor | None, seeds: list[int], names: list[str]) -> Tensor:
        seeds = seeds if fixed is None else [fixed] * len(seeds)
        if stage == 1:
            return restore(lq, seed=seeds, **call)
        chosen = None if references is None else references[:, :most].contiguous()
        return restore(lq, chosen, seed=seeds, **call).images

    plain = {key: value for key, value in pipe.config.items() if _is_plain(key, value)}
    settings = {"profile": profile, "pipeline": entry.pipeline, **plain, **options}
    if given != NO_REFERENCES:
        settings["most references"] = most
    for key, value in (("second", second), ("stage", stage), ("seed", fixed)):
        if value is not None:
            settings[key] = value
    parts: dict[str, object] = {
        name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)
    }
    if coarse is not None:
        settings["coarse"] = _title(coarse)
        parts["the call's coarse"] = _identity(coarse)
    return Restorer(system, run, settings, lambda: digest_of(parts), references=given)


def _coarse(pipeline: str, profile: str, device: torch.device, options: dict[str, Any]) -> Any:
    """The restorer behind y_c where it is not the pipeline's own; taken out of `options`."""
    choice = options.pop("coarse", None)
    if choice is None and profile == "paper" and pipeline in PAPER_COARSE:
        from refbfr_core.weights import asset_path

        choice = asset_path(PAPER_COARSE[pipeline])
    if choice is None:
        return None
    from refbfr_core.pipelines import named_coarse

    return named_coarse(choice, profile=profile, device=device)


def _call_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a call; "terms" are PDGrad's low-level distances."""
    call = dict(options)
    if "terms" in call:
        from refbfr_core.pipelines import LossWeights

        call["weights"] = LossWeights(terms=tuple(call.pop("terms")))
    return call


def _is_plain(key: str, value: object) -> bool:
    return not key.startswith("_") and isinstance(value, (bool, int, float, str, type(None)))


def _title(coarse: Any) -> str:
    from refbfr_core.pipelines.coarse import coarse_title

    return coarse_title(coarse)


def _identity(coarse: Any) -> object:
    """What decides a coarse restorer's pictures: its file's digest, its network, or at least its name."""
    for attribute in ("sha256", "network"):
        if (part := getattr(coarse, attribute, None)) is not None:
            return part
    return _title(coarse)
