"""Scores for restored faces, each with its protocol, direction, range and needs written down.

>>> from refbfr_core import metrics
>>> metrics.compute("psnr", restored, target)  # (B,)
>>> print(metrics.describe("ids"))
"""

from refbfr_core.metrics.intervals import Interval, mean_interval, paired_interval
from refbfr_core.metrics.registry import REGISTRY, Metric, compute, describe, unavailable

__all__ = [
    "REGISTRY",
    "Interval",
    "Metric",
    "compute",
    "describe",
    "mean_interval",
    "paired_interval",
    "unavailable",
]
