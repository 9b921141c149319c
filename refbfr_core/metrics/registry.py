"""The table of metrics and the one function that computes any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.images import check_images
from refbfr_core.metrics.catalogue import METRICS
from refbfr_core.metrics.metric import Metric

REGISTRY: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in METRICS})
"""Every metric by name; read-only."""


@dataclass(frozen=True)
class MeanScore:
    """Mean of a score over a test set, the values that count in it, and those its protocol leaves out."""

    value: float
    counted: int
    left_out: int


def compute(name: str, restored: Tensor, target: Tensor | None = None, **keywords: Any) -> Tensor:
    """Score each image of a batch; one image's score does not depend on the others.

    Args:
        name: a key of :data:`REGISTRY`.
        restored: (B, 3, H, W) float32 RGB in [0, 1].
        target: the true pictures, same shape and device, for metrics that compare.
        **keywords: see :attr:`Metric.keywords`, for example ``embedder=`` for "ids".

    Returns:
        (B,) float32, without gradient.

    Raises:
        UnknownNameError: no such metric or keyword; the message gives the nearest.
        ImageContractError: images that break the contract, or a target that is missing or of another shape.
        RefbfrError: something the metric needs is not there (says what to fetch), or a score is not a number.
    """
    metric = find_metric(name)
    for keyword in keywords:
        if keyword not in metric.keywords:
            raise unknown_name(f"keyword of the metric {name!r}", keyword, metric.keywords)
    check_images(restored, "restored")
    _check_target(metric, restored, target)
    with torch.no_grad():
        scores = metric.function(restored, target, **keywords)
    if scores.shape != (len(restored),):
        raise ConfigError(f"{name} gave scores of shape {tuple(scores.shape)} for {len(restored)} images.")
    wrong = torch.isnan(scores).nonzero().flatten().tolist()
    if wrong:
        raise ConfigError(
            f"{name} is not a number for the images {wrong}: "
            "the embedder, network or landmarks that were passed give NaN."
        )
    return scores.float()


def describe(name: str | None = None) -> str:
    """One metric, or all of them, in plain words."""
    if name is None:
        return "\n".join(describe(each) for each in REGISTRY)
    metric = find_metric(name)
    low, high = metric.range
    unit = f" {metric.unit}" if metric.unit else ""
    better = "nearer to 0" if metric.direction == "zero" else metric.direction
    return (
        f"{metric.name}: {better} is better, {low:g} … {high:g}{unit}\n"
        f"  protocol: {metric.protocol}\n"
        f"  needs: {metric.needs}"
    )


def mean_score(name: str, values: Sequence[float]) -> MeanScore:
    """Mean of a metric's values over a test set by the metric's own protocol (`Metric.counts_from`).

    Args:
        name: a key of :data:`REGISTRY`.
        values: one a picture, no missing ones.

    Returns:
        The mean; not a number when no value counts.

    Raises:
        UnknownNameError: no such metric. ConfigError: a value that is not a number.
    """
    metric = find_metric(name)
    if any(math.isnan(value) for value in values):
        raise ConfigError(f"some values of {name} are not numbers; leave failed pictures out and count them.")
    counted = [value for value in values if value >= metric.counts_from]
    mean = math.fsum(counted) / len(counted) if counted else math.nan
    return MeanScore(mean, len(counted), len(values) - len(counted))


def unavailable(name: str) -> str | None:
    """What this machine lacks for a metric and how to get it, or None when it can be computed."""
    return find_metric(name).missing()


def find_metric(name: str) -> Metric:
    """The entry of a metric; raises UnknownNameError that names the nearest known one."""
    if name not in REGISTRY:
        raise unknown_name("metric", name, REGISTRY)
    return REGISTRY[name]


def _check_target(metric: Metric, restored: Tensor, target: Tensor | None) -> None:
    if target is None:
        if metric.target_required:
            raise ImageContractError(
                f"{metric.name} compares with the true picture, but no target came; "
                f"call compute({metric.name!r}, restored, target)."
            )
        return
    check_images(target, "target")
    if target.shape != restored.shape:
        raise ImageContractError(
            f"{metric.name} compares pictures of one size, got restored {tuple(restored.shape)} and target "
            f"{tuple(target.shape)}; resize one of them first."
        )
    if target.device != restored.device:
        raise ImageContractError(
            f"restored is on {restored.device} but target on {target.device}; call target.to(restored.device)."
        )
