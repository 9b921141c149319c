"""Scores for restored faces, each with its protocol, direction, range and needs written down.

>>> from refbfr_core import metrics
>>> metrics.compute("psnr", restored, target)  # (B,)
>>> print(metrics.describe("ids"))

Those score pictures one by one; :func:`set_distance` (FID, KID and their stand-ins on drawn faces) compares a set of
them with a set of clean ones.
"""

from refbfr_core.metrics.colour import channel_bias
from refbfr_core.metrics.distances import SetDistance, kernel_distance, set_distance
from refbfr_core.metrics.intervals import Interval, mean_interval, paired_interval
from refbfr_core.metrics.moments import Moments, fit_moments, read_moments
from refbfr_core.metrics.registry import (
    REGISTRY,
    MeanScore,
    Metric,
    compute,
    describe,
    mean_score,
    unavailable,
)
from refbfr_core.metrics.set_registry import SET_REGISTRY, SetMetric
from refbfr_core.metrics.vqfr import DEG_PROTOCOLS, DegMean, GreyEmbedder, load_awing, mean_deg

__all__ = [
    "DEG_PROTOCOLS",
    "REGISTRY",
    "SET_REGISTRY",
    "DegMean",
    "GreyEmbedder",
    "Interval",
    "MeanScore",
    "Metric",
    "Moments",
    "SetDistance",
    "SetMetric",
    "channel_bias",
    "compute",
    "describe",
    "fit_moments",
    "kernel_distance",
    "load_awing",
    "mean_deg",
    "mean_interval",
    "mean_score",
    "paired_interval",
    "read_moments",
    "set_distance",
    "unavailable",
]
