"""Bootstrap intervals for means, and for differences of two methods on the same pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from refbfr_core.errors import ConfigError

Values = np.ndarray | torch.Tensor | list[float] | tuple[float, ...]

_ROWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that resampling gives for it.

    Attributes:
        mean: mean of the values (or of the differences).
        low, high: ends of the interval.
        n: number of values or pairs.
        level: its coverage, 0.95 for 95 %.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def above(self, threshold: float = 0.0) -> bool:
        """Whether the whole interval lies above ``threshold``."""
        return self.low > threshold

    def below(self, threshold: float = 0.0) -> bool:
        """Whether the whole interval lies below ``threshold``."""
        return self.high < threshold

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] ({self.level:.0%}, n={self.n})"


def paired_interval(a: Values, b: Values, level: float = 0.95, resamples: int = 10000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of mean(a - b), resampling the pairs.

    Pairing removes what both methods share (how hard a picture is), which is most of the spread. Entries must be
    independent: one number for each person. Average over seeds or views of a person first.

    Args:
        a, b: (n,) scores of two methods on the same pictures in the same order, n >= 2.
        level: coverage, strictly between 0 and 1.
        resamples: number of bootstrap resamples, at least 100.
        seed: of the resampling; same values and seed, same interval.

    Raises:
        ConfigError: different lengths, fewer than two values, values that are not finite, or settings out of range.
    """
    first, second = _values(a, "a"), _values(b, "b")
    if len(first) != len(second):
        raise ConfigError(
            f"paired values must have equal length, got {len(first)} and {len(second)}; drop failed rows in both."
        )
    return mean_interval(first - second, level, resamples, seed)


def mean_interval(values: Values, level: float = 0.95, resamples: int = 10000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of independent values; arguments as in :func:`paired_interval`."""
    sample = _values(values, "values")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level must lie strictly between 0 and 1, got {level}; 95 % is 0.95.")
    if resamples < 100:
        raise ConfigError(f"resamples must be at least 100 for an interval to mean anything, got {resamples}.")
    generator = np.random.default_rng(seed)
    rows = max(1, _ROWS_AT_ONCE // len(sample))
    means = np.concatenate(
        [
            sample[generator.integers(0, len(sample), size=(min(rows, resamples - start), len(sample)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample), level)


def _values(values: Values, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    array = array.astype(np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ConfigError(f"{name} must be a list of at least two numbers, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite; drop those rows first."
        )
    return array
