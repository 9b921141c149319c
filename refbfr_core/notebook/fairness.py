"""What can go wrong between scores and a claim, for notebook 10: pairing, sample size, many tries, dropped pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval, paired_interval
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NORMAL = NormalDist()


def unpaired_interval(
    a: Tensor, b: Tensor, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of mean(a) - mean(b) that forgets who is who: both are resampled on their own.

    Args:
        a, b: (n,) and (m,) scores of two methods, two or more each.
        level, resamples, seed: as in `refbfr_core.metrics.paired_interval`.

    Raises:
        ConfigError: fewer than two values, or values that are not finite.
    """
    one, other = _values(a), _values(b)
    generator = np.random.default_rng(seed)
    means = [
        own[generator.integers(0, len(own), size=(resamples, len(own)))].mean(axis=1) for own in (one, other)
    ]
    low, high = np.quantile(means[0] - means[1], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(one.mean() - other.mean()), float(low), float(high), min(len(one), len(other)), level)


def people_needed(spread: float, effect: float, power: float = 0.8, level: float = 0.95) -> int:
    """How many independent people show a difference: n = ((z_level + z_power) spread / effect)^2, at least 2.

    Args:
        spread: standard deviation over people of what is averaged, such as of paired differences.
        effect: the true mean to be told from zero.
        power: probability of telling it. level: of the two-sided interval.

    Raises:
        ConfigError: no effect, or probabilities outside (0, 1).
    """
    if effect == 0 or not (0 < power < 1 and 0 < level < 1):
        raise ConfigError(f"effect={effect}, power={power}, level={level}; nobody can show an effect of 0.")
    z = _NORMAL.inv_cdf((1 + level) / 2) + _NORMAL.inv_cdf(power)
    return max(2, math.ceil((z * spread / abs(effect)) ** 2))


def power_of(spread: float, effect: float, people: float, level: float = 0.95) -> float:
    """Probability that `people` show the effect, the inverse question of `people_needed`."""
    z = _NORMAL.inv_cdf((1 + level) / 2)
    return 1 - _NORMAL.cdf(z - abs(effect) * math.sqrt(people) / spread)


def detected(differences: Tensor, people: int, rounds: int = 400, level: float = 0.95, seed: int = 0) -> float:
    """Share of `rounds` studies of `people` drawn from those measured in which the interval excludes 0.

    Args:
        differences: (n,) paired differences; people are drawn from them with replacement.
        people: of one study, at least 2.
    """
    values = _values(differences)
    if people < 2:
        raise ConfigError(f"a study of {people} people has no interval; take at least 2.")
    drawn = values[np.random.default_rng(seed).integers(0, len(values), size=(rounds, people))]
    z = _NORMAL.inv_cdf((1 + level) / 2)
    return float((np.abs(drawn.mean(1)) > z * drawn.std(1, ddof=1) / math.sqrt(people)).mean())


def false_alarms(
    arms: int, people: int, *, corrected: bool = False, rounds: int = 2000, level: float = 0.95, seed: int = 0
) -> float:
    """Share of simulated studies that call at least one arm different although all are exactly equally good.

    Every study compares `arms` methods with one baseline on the same people. Scores are Gaussian.

    Args:
        corrected: divide 1 - level by the number of comparisons (Bonferroni).
    """
    draws = torch.randn(rounds, arms + 1, people, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gaps = draws[:, 1:] - draws[:, :1]
    error = gaps.std(dim=2) / math.sqrt(people)
    z = _NORMAL.inv_cdf(1 - (1 - level) / 2 / (arms if corrected else 1))
    return float((gaps.mean(dim=2).abs() > z * error).any(dim=1).double().mean())


def gaussian_bias(pictures: int, features: int, rounds: int = 40, seed: int = 0) -> float:
    """Mean Fréchet distance of sets of Gaussian numbers to the Gaussian they were drawn from: all of it is bias.

    With mean m and covariance S of a set and the reference N(0, I) it is |m|^2 + sum (sqrt(lambda_i) - 1)^2 over the
    eigenvalues of S.

    Args:
        pictures: n, of each set, at least 2. features: D, their dimension. rounds: number of sets.
    """
    if pictures < 2 or features < 1 or rounds < 1:
        raise ConfigError(f"{rounds} sets of {pictures} with {features} features; a covariance needs at least two.")
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(rounds, pictures, features, generator=draws, dtype=torch.float64)
    mean = rows.mean(dim=1)
    centred = rows - mean[:, None]
    values = torch.linalg.eigvalsh(centred.mT @ centred / (pictures - 1)).clamp(min=0).sqrt()
    return float((mean.square().sum(1) + (values - 1).square().sum(1)).mean())


def easiest(ease: Tensor, share: float) -> Tensor:
    """Indices of the people who are left when the hardest `share` is dropped.

    Args:
        ease: (n,) the higher, the easier. share: in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"share={share}; a share of people in [0, 1) can be dropped.")
    return ease.argsort(descending=True)[: max(1, round(len(ease) * (1 - share)))].sort().values


def pairing_figure(scores: Mapping[str, Tensor], label: str) -> Figure:
    """The same numbers twice: a line a person between two methods, and the two intervals of their difference.

    Args:
        scores: two names -> (n,) scores of the same people.
        label: of the score, for the axes.
    """
    (one, a), (other, b) = scores.items()
    figure, axes = blank_figure(1, 2, cell_width=2.9, cell_height=2.3)
    left, right = axes[0]
    for low, high in zip(b.tolist(), a.tolist(), strict=True):
        colour = COLOURS[2] if high >= low else COLOURS[5]
        left.plot([0, 1], [low, high], color=colour, linestyle="-" if high >= low else "--", linewidth=0.9, marker="o")
    left.set_xticks([0, 1], [other, one])
    left.set(xlim=(-0.25, 1.25), ylabel=label)
    found = {"paired": paired_interval(a, b), "unpaired": unpaired_interval(a, b)}
    for place, (name, interval) in enumerate(found.items()):
        ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
        right.errorbar(interval.mean, place, xerr=ends, fmt="os"[place], color=COLOURS[place], capsize=4, label=name)
    right.axvline(0, color="black", linewidth=0.8, linestyle=":")
    right.set_yticks([0, 1], list(found))
    right.set(ylim=(1.6, -0.6), xlabel=f"{label}: {one} − {other}")
    return figure


def power_figure(spreads: Mapping[str, float], effects: Mapping[str, float], most: int = 200) -> Figure:
    """Probability of telling a difference over the number of people, a line for each way to compare, a panel an effect.

    Args:
        spreads: way -> standard deviation over people. effects: title -> true difference.
    """
    figure, axes = blank_figure(1, len(effects), cell_width=2.7, cell_height=2.2, sharey=True)
    people = np.arange(3, most + 1)
    for ax, (title, effect) in zip(axes[0], effects.items(), strict=True):
        for (name, spread), colour, dashes in zip(spreads.items(), COLOURS, LINE_STYLES, strict=False):
            chance = [power_of(spread, effect, n) for n in people]
            ax.plot(people, chance, color=colour, linestyle=dashes, label=name)
        ax.axhline(0.8, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel="people", ylim=(0, 1.03), xscale="log")
        ax.set_xticks([3, 10, 30, 100, most], ["3", "10", "30", "100", str(most)])
        ax.minorticks_off()
    axes[0][0].set_ylabel("chance to tell it")
    axes[0][-1].legend(loc="lower right")
    return figure


def dropping_figure(
    scores: Mapping[str, Mapping[str, Tensor]], ease: Tensor, shares: Sequence[float]
) -> Figure:
    """Mean score of methods that leave out the hardest share of people, over that share, with intervals.

    The last method never leaves anybody out: its line is flat.

    Args:
        scores: score with its unit -> method -> (n,) scores of the same people; a panel a score.
        ease: (n,) of their pictures, the higher, the easier. shares: in [0, 1).
    """
    figure, axes = blank_figure(1, len(scores), cell_width=2.9, cell_height=2.3)
    for ax, (label, own) in zip(axes[0], scores.items(), strict=True):
        last = list(own)[-1]
        for (name, values), colour, dashes in zip(own.items(), COLOURS, LINE_STYLES, strict=False):
            kept = [mean_interval(values[easiest(ease, 0.0 if name == last else share)]) for share in shares]
            ax.plot(shares, [each.mean for each in kept], color=colour, linestyle=dashes, marker="o", label=name)
            ends = [each.low for each in kept], [each.high for each in kept]
            ax.fill_between(shares, *ends, color=colour, alpha=0.15, linewidth=0)
        ax.set(xlabel="share left out, the hardest first", ylabel=label)
    axes[0][0].legend(loc="best")
    return figure


def size_figure(
    values: Mapping[str, Mapping[int, Sequence[float]]], expected: Mapping[int, float] | None = None
) -> Figure:
    """Distances of sets that have none, over the number of pictures: a panel a distance, dots for repeated draws.

    Args:
        values: distance -> number of pictures -> values of repeated draws.
        expected: number of pictures -> what the first distance should give without any true distance.
    """
    figure, axes = blank_figure(1, len(values), cell_width=2.9, cell_height=2.2)
    for panel, (ax, (name, own), colour) in enumerate(zip(axes[0], values.items(), COLOURS, strict=False)):
        for count, found in own.items():
            ax.plot([count] * len(found), list(found), color=colour, linestyle="none", marker="o", alpha=0.5)
        ax.plot(list(own), [float(np.mean(found)) for found in own.values()], color=colour, linestyle="-", label="mean")
        if panel == 0 and expected:
            ax.plot(list(expected), list(expected.values()), color="black", linestyle="--", label="bias alone")
        ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=name, xlabel="pictures", xscale="log")
        ax.set_xticks(list(own), [str(count) for count in own])
        ax.minorticks_off()
        ax.legend()
    return figure


def _values(values: Tensor) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all():
        raise ConfigError(f"got scores of shape {array.shape}; expected two or more finite numbers, one a person.")
    return array
