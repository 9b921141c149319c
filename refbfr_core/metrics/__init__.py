"""Scores for restored faces, each with its protocol, direction, range and needs written down.

>>> from refbfr_core import metrics
>>> metrics.compute("psnr", restored, target)  # (B,)
>>> print(metrics.describe("ids"))

Those score pictures one by one; :func:`kernel_distance` compares a set of them with a set of clean ones.
"""

from refbfr_core.metrics.colour import channel_bias
from refbfr_core.metrics.distances import SetDistance, kernel_distance
from refbfr_core.metrics.intervals import Interval, mean_interval, paired_interval
from refbfr_core.metrics.registry import REGISTRY, Metric, compute, describe, unavailable
from refbfr_core.metrics.vqfr import DEG_PROTOCOLS, DegMean, GreyEmbedder, load_awing, mean_deg

__all__ = [
    "DEG_PROTOCOLS",
    "REGISTRY",
    "DegMean",
    "GreyEmbedder",
    "Interval",
    "Metric",
    "SetDistance",
    "channel_bias",
    "compute",
    "describe",
    "kernel_distance",
    "load_awing",
    "mean_deg",
    "mean_interval",
    "paired_interval",
    "unavailable",
]
