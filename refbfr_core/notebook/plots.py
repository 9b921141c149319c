"""Plots that several notebooks draw: points in the plane, paths through it, two histograms on one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from refbfr_core.errors import ConfigError
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


def scatter(
    ax: Axes, points: Tensor, labels: Tensor | None = None, *, title: str | None = None, limit: float = 2.3
) -> None:
    """Draw points (N, 2) in a square from -limit to limit; classes differ in colour and in marker.

    Args:
        ax: where to draw.
        points: (N, 2) coordinates.
        labels: (N,) class of each point, whole numbers from 0; None for one class.
        title: a line above.
        limit: half the side of the square.

    Raises:
        ConfigError: points that are not (N, 2), or labels of another number.
    """
    xy = points.detach().cpu().numpy()
    if xy.ndim != 2 or xy.shape[1] != 2 or (labels is not None and len(labels) != len(xy)):
        came = None if labels is None else tuple(labels.shape)
        raise ConfigError(f"points {xy.shape} and labels {came}; expected (N, 2) and (N,).")
    classes = np.zeros(len(xy), dtype=int) if labels is None else labels.detach().cpu().numpy()
    for value in np.unique(classes):
        chosen = xy[classes == value]
        ax.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=5,
            alpha=0.6,
            linewidths=0,
            color=COLOURS[int(value) % len(COLOURS)],
            marker=_MARKERS[int(value) % len(_MARKERS)],
        )
    _square(ax, limit, title)


def paths(ax: Axes, steps: Tensor, *, title: str | None = None, limit: float = 2.3) -> None:
    """Draw the way of each point through the plane; a ring marks where it starts and a dot where it ends.

    Args:
        ax: where to draw.
        steps: (S, N, 2) positions of N points after each of S steps.
        title, limit: as for `scatter`.

    Raises:
        ConfigError: another shape, or a single step.
    """
    xy = steps.detach().cpu().numpy()
    if xy.ndim != 3 or xy.shape[2] != 2 or len(xy) < 2:
        raise ConfigError(f"steps have shape {xy.shape}; expected (S, N, 2) with at least two steps.")
    for n in range(xy.shape[1]):
        colour = COLOURS[n % len(COLOURS)]
        ax.plot(xy[:, n, 0], xy[:, n, 1], color=colour, linestyle="-", linewidth=0.9, alpha=0.8)
        ax.plot(*xy[0, n], marker="o", color=colour, markersize=5, fillstyle="none")
        ax.plot(*xy[-1, n], marker="o", color=colour, markersize=4)
    _square(ax, limit, title)


def histograms(ax: Axes, groups: Mapping[str, Sequence[float] | Tensor], *, bins: int = 40, xlabel: str = "") -> None:
    """Draw several groups of numbers as histograms of equal area on common bins, outlined in different dashes.

    Args:
        ax: where to draw.
        groups: name -> numbers.
        bins: number of bins over the range of all groups.
        xlabel: what the numbers are, with their unit.

    Raises:
        ConfigError: no group, or an empty one.
    """
    arrays = {name: np.asarray(values, dtype=float).ravel() for name, values in groups.items()}
    if not 1 <= len(arrays) <= len(COLOURS) or any(values.size == 0 for values in arrays.values()):
        raise ConfigError(
            f"histograms of {list(arrays) or 'nothing'}: expected 1 to {len(COLOURS)} groups, none empty."
        )
    everything = np.concatenate(list(arrays.values()))
    edges = np.linspace(everything.min(), everything.max() + 1e-9, bins + 1)
    for (name, values), colour, dashes in zip(arrays.items(), COLOURS, LINE_STYLES, strict=False):
        ax.hist(values, bins=edges, density=True, color=colour, alpha=0.25)
        ax.hist(values, bins=edges, density=True, color=colour, histtype="step", linestyle=dashes, label=name)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("density")
    ax.legend()


def _square(ax: Axes, limit: float, title: str | None) -> None:
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    ax.tick_params(labelsize=7)
    if title:
        ax.set_title(title, fontsize=9)
