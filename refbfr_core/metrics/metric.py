"""What a score of single pictures means, in one record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """What a score means.

    Attributes:
        name: key in `refbfr_core.metrics.REGISTRY` and column name in tables.
        direction: "higher" or "lower", whichever is better, or "zero": the nearer to 0 the better.
        range: lowest and highest possible value.
        unit: "dB", "degrees", "pixels", "grey levels" or "" for pure numbers.
        protocol: everything two people must agree on to get the same number.
        needs: what has to be installed or at hand.
        function: (restored, target, **keywords) -> (B,).
        missing: returns what is missing on this machine, or None.
        target_required: whether the score compares with a true picture.
        mask_required: whether it needs ``mask=``, the face in the true picture.
        counts_from: a mean leaves out values below it; minus infinity where every value counts.
        pictures: what it can be measured on: "any", "drawn" (its network or statistics know drawn faces only) or
            "photographs" (they know photographs only).
    """

    name: str
    direction: str
    range: tuple[float, float]
    unit: str
    protocol: str
    needs: str
    function: Callable[..., Tensor]
    missing: Callable[[], str | None]
    target_required: bool = True
    mask_required: bool = False
    counts_from: float = float("-inf")
    pictures: str = "any"

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names of the extra arguments `refbfr_core.metrics.compute` takes for this metric."""
        return tuple(name for name in inspect.signature(self.function).parameters if name not in ("restored", "target"))
