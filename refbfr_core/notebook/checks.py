"""Checks that notebooks end with. Each prints one line with what was measured, and stops the notebook if it does not
hold.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from refbfr_core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from refbfr_core.metrics import Interval

    Values = float | np.ndarray | torch.Tensor | list[float]


def check(condition: object, message: str, **measured: float) -> None:
    """Require `condition`; print one line, or raise.

    Parameters
    ----------
    condition : a single truth value (a bool, or an array or tensor with one element).
    message : what holds, as a sentence in the present tense ("the restoration is closer to the truth than the input").
    measured : named numbers to print with it.

    Raises
    ------
    AssertionError : the condition is false; the message carries the measured numbers.
    ConfigError : the condition is not one truth value, for example an array with many.
    """
    numbers = ", ".join(f"{name.replace('_', ' ')} = {_number(value)}" for name, value in measured.items())
    _report(_one_truth(condition), message, numbers)


def check_close(measured: Values, expected: Values, tolerance: float, message: str) -> None:
    """Require that `measured` and `expected`, of the same shape, differ by at most `tolerance` everywhere.
    Not-a-number never passes.
    """
    left, right = _as_array(measured), _as_array(expected)
    if left.shape != right.shape:
        raise AssertionError(f"{message}: the shapes are {left.shape} and {right.shape}")
    gap = float(np.max(np.abs(left - right))) if left.size else float("nan")
    _report(gap <= tolerance, message, f"largest difference {gap:.3g}, allowed {tolerance:.3g}")


def check_above(measured: float, threshold: float, message: str) -> None:
    """Require that one measured number is greater than `threshold`."""
    value = float(measured)
    _report(value > threshold, message, f"measured {_number(value)}, must be above {_number(threshold)}")


def check_below(measured: float, threshold: float, message: str) -> None:
    """Require that one measured number is smaller than `threshold`."""
    value = float(measured)
    _report(value < threshold, message, f"measured {_number(value)}, must be below {_number(threshold)}")


def check_between(measured: float, low: float, high: float, message: str) -> None:
    """Require that one measured number lies in [low, high]."""
    value = float(measured)
    _report(low <= value <= high, message, f"measured {_number(value)}, must be in [{_number(low)}, {_number(high)}]")


def check_interval_above(
    values: Values, threshold: float, message: str, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Require that the whole bootstrap interval of the mean of `values` lies above `threshold`; return the interval.

    `values` are usually paired differences, one for each person: the same input, the same noise, two arms. For what is
    refused as too few or not finite see `refbfr_core.metrics.mean_interval`.
    """
    from refbfr_core.metrics import mean_interval

    interval = mean_interval(_as_array(values).ravel(), level=level, seed=seed)
    _report(interval.above(threshold), message, f"{interval}, must lie above {threshold:+.3f}")
    return interval


def _report(passed: bool, message: str, numbers: str) -> None:
    line = f"{message}: {numbers}" if numbers else message
    if not passed:
        raise AssertionError(line)
    sys.stdout.write(f"✓ {line}\n")


def _one_truth(condition: object) -> bool:
    if isinstance(condition, (bool, np.bool_)):
        return bool(condition)
    size = getattr(condition, "size", None)
    count = size if isinstance(size, int) else condition.numel() if hasattr(condition, "numel") else None
    if count != 1:
        raise ConfigError(
            f"a check needs one truth value; this is a {type(condition).__name__}"
            + (
                f" with {count} elements. Reduce it with .all() or .any()."
                if count is not None
                else ". Compare it with something."
            )
        )
    return bool(condition)


def _as_array(values: object) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{float(value):.4g}"
