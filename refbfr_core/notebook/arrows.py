"""Pictures of two gradients as arrows: what each way of combining them keeps, cuts off and shortens."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from refbfr_core.diffusion import combine_gradients
from refbfr_core.errors import ConfigError
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, LINE_STYLES
from refbfr_core.notebook.two_losses import COMBINATIONS, Descent, Landscape, combined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIVOT, _OTHER, _RESULT, _GREY = COLOURS[0], COLOURS[5], COLOURS[6], "#888888"


def turned(length: float, degrees: float) -> Tensor:
    """An arrow (1, 2) of this length at so many degrees from the x axis; exact at multiples of 90 degrees."""
    angle = np.deg2rad(degrees)
    return torch.tensor([[length * round(np.cos(angle), 12), length * round(np.sin(angle), 12)]], dtype=torch.float64)


def draw_arrows(
    ax: Axes, pivot: Tensor, other: Tensor, name: str = "full", *, limit: float = 2.6, legend: bool = False
) -> None:
    """Draw two arrows in the plane and what one way of combining them makes of them.

    Shaded is the half of the plane in which an other gradient conflicts with the pivot; the dotted circle has the
    pivot's length, which is as far as the cap lets a conflicting gradient reach. For "project" and "full" the thin
    arrow is what was added to the pivot.

    Parameters
    ----------
    ax : where to draw.
    pivot, other : (1, 2) arrows; the pivot points along the x axis.
    name : one of `COMBINATIONS`.
    limit : half the side of the square that is shown.
    legend : name the arrows in the picture.

    Raises
    ------
    ConfigError : other shapes, or a pivot that does not point along the x axis. UnknownNameError : another name.
    """
    if tuple(pivot.shape) != (1, 2) or tuple(other.shape) != (1, 2) or not pivot[0, 0] > 0 or pivot[0, 1] != 0:
        raise ConfigError(
            f"arrows {tuple(pivot.shape)} and {tuple(other.shape)}, pivot {pivot.flatten().tolist()}; expected (1, 2) "
            "each, and a pivot along the x axis. Turn both arrows together."
        )
    result = combined(pivot, other, name)
    ax.fill_between([-limit, 0], -limit, limit, color=_OTHER, alpha=0.08, linewidth=0)
    angle = np.linspace(0, 2 * np.pi, 100)
    radius = float(pivot.norm())
    ax.plot(radius * np.cos(angle), radius * np.sin(angle), color=_GREY, linestyle=":", linewidth=0.9)
    _arrow(ax, pivot, _PIVOT, 2.4, "pivot")
    _arrow(ax, other, _OTHER, 2.4, "other")
    if name in ("project", "full"):
        _arrow(ax, result - pivot, _OTHER, 1.0, "added to the pivot")
    _arrow(ax, result, _RESULT, 1.6, "result")
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    ax.tick_params(labelsize=7)
    if legend:
        ax.legend(loc="lower left", fontsize=7)


def side_by_side(pivot: Tensor, other: Tensor, *, limit: float = 2.6, names: Sequence[str] = COMBINATIONS) -> Figure:
    """The same two arrows under several ways of combining them; arguments and errors as for `draw_arrows`."""
    figure, axes = blank_figure(1, len(names), cell_width=1.9, cell_height=2.1)
    for ax, name in zip(axes[0], names, strict=True):
        draw_arrows(ax, pivot, other, name, limit=limit, legend=ax is axes[0][0])
        result = combined(pivot, other, name)
        kept = float((result * pivot).sum() / (pivot * pivot).sum())
        ax.set_title(f"{name}\nalong the pivot: {kept:.2f}", fontsize=9)
    return figure


def arrow_figure(degrees: float, length: float, *, limit: float = 3.1, pixels: int = 200) -> Figure:
    """One frame: a pivot of length 1 and another gradient at an angle, under the full combination; no axes, so that
    the picture stays small.

    Parameters
    ----------
    degrees, length : of the other gradient.
    limit : half the side of the square that is shown.
    pixels : side of the picture at 100 dots per inch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(pixels / 100, pixels / 100))
    ax = figure.add_axes((0, 0, 1, 1))
    draw_arrows(ax, turned(1.0, 0.0), turned(length, degrees), limit=limit)
    ax.set_axis_off()
    return figure


def caption(degrees: float, length: float) -> str:
    """What happens to another gradient of this length at this angle to a pivot of length 1, in a few words."""
    _, stats = combine_gradients(turned(1.0, 0.0), turned(length, degrees), return_stats=True)
    place = f"{degrees:.0f}°, length {length:.1f}"
    if not bool(stats.conflict):
        return f"{place}: no conflict, plain sum"
    return f"{place}: projected, k = {float(stats.k):.2f}"


def turning(turns: Sequence[tuple[float, float]]) -> tuple[list[Tensor], list[str]]:
    """Frames and labels for `frame_strip`: `arrow_figure` for each (degrees, length).

    Returns
    -------
    A list of (3, 200, 200) pictures in [0, 1], and a list of captions.
    """
    frames = [as_picture(arrow_figure(degrees, length)) for degrees, length in turns]
    return frames, [caption(degrees, length) for degrees, length in turns]


def as_picture(figure: Figure, resolution: int = 100) -> Tensor:
    """A matplotlib figure as a picture (3, H, W), float32 in [0, 1], at so many dots per inch."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=resolution, facecolor="white")
    pixels = np.array(Image.open(buffer).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def length_profile(lengths: Sequence[float], *, step: float = 0.5) -> Figure:
    """How long the result is as the other gradient turns from 0 to 180 degrees, for several of its lengths and with a
    pivot of length 1; left the plain sum, right PDGrad.

    Parameters
    ----------
    lengths : of the other gradient.
    step : between two angles, in degrees.
    """
    degrees = np.arange(step / 2, 180, step)
    figure, axes = blank_figure(1, 2, cell_width=3.2, cell_height=2.3, sharey=True)
    for ax, name in zip(axes[0], ("sum", "full"), strict=True):
        for length, colour, dashes in zip(lengths, COLOURS, LINE_STYLES, strict=False):
            other = torch.cat([turned(length, float(each)) for each in degrees])
            result = combined(turned(1.0, 0.0).expand_as(other), other, name).norm(dim=1)
            result = torch.where(_beside_right_angle(degrees, step), torch.nan, result)
            ax.plot(degrees, result, color=colour, linestyle=dashes, label=f"other of length {length:g}")
        ax.axvline(90, color=_GREY, linestyle=":", linewidth=0.9)
        ax.set(xlabel="angle between the gradients (degrees)", title=name, xticks=range(0, 181, 45))
    axes[0][0].set_ylabel("length of the result")
    axes[0][0].legend()
    return figure


def descent_figure(
    landscape: Landscape, walks: Mapping[str, Descent], *, names: Sequence[str] = COMBINATIONS
) -> Figure:
    """The walks of several combinations over one landscape, and the pivot's loss along each.

    Solid contours belong to the pivot's loss, dashed ones to the other's. A ring is the start, a dot the end.

    Parameters
    ----------
    landscape, walks : from `descend`.
    names : which of the walks, at most four.

    Raises
    ------
    ConfigError : names that were not walked.
    """
    if not set(names) <= set(walks) or not 1 <= len(names) <= len(COMBINATIONS):
        raise ConfigError(f"walks of {list(names)}; expected one to four of {list(walks)}.")
    figure, (axes,) = blank_figure(1, 2, cell_width=3.5, cell_height=3.0)
    every = torch.cat([walks[name].points for name in names])
    _contours(axes[0], landscape, every)
    for name, colour, dashes in zip(names, COLOURS, LINE_STYLES, strict=False):
        walk = walks[name]
        x, y = walk.points.unbind(dim=1)
        axes[0].plot(x, y, color=colour, linestyle=dashes, linewidth=1.2)
        axes[0].plot(x[0], y[0], marker="o", color="black", markersize=6, fillstyle="none")
        axes[0].plot(x[-1], y[-1], marker="o", color=colour, markersize=6)
        axes[1].semilogy(walk.pivot_loss, color=colour, linestyle=dashes, label=name)
    axes[0].set_title(landscape.name)
    axes[1].set(xlabel="step", title="loss of the pivot")
    axes[1].legend()
    return figure


def _beside_right_angle(degrees: np.ndarray, step: float) -> Tensor:
    """The one angle just before 90 degrees, left out so that no line is drawn across a jump."""
    return torch.from_numpy((degrees < 90) & (degrees + step >= 90))


def _arrow(ax: Axes, arrow: Tensor, colour: str, width: float, label: str) -> None:
    x, y = (float(part) for part in arrow[0])
    if np.hypot(x, y) > 1e-6:
        ax.annotate(
            "",
            xy=(x, y),
            xytext=(0, 0),
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0},
        )
    ax.plot([], [], color=colour, linewidth=width, linestyle="-", label=label)


def _contours(ax: Axes, landscape: Landscape, points: Tensor) -> None:
    """Level lines of both losses around the points, with a margin; levels are shared quantiles, so that they spread."""
    low, high = points.amin(dim=0) - 0.4, points.amax(dim=0) + 0.4
    x, y = (torch.linspace(float(a), float(b), 80, dtype=torch.float64) for a, b in zip(low, high, strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    shares = torch.tensor([0.01, 0.05, 0.15, 0.3, 0.5, 0.75], dtype=torch.float64)
    for loss, colour, dashes in ((landscape.pivot, _PIVOT, "solid"), (landscape.other, _OTHER, "dashed")):
        values = loss(grid.flatten(0, 1))
        ax.contour(
            x, y, values.view(80, 80), levels=torch.quantile(values, shares), colors=colour, linestyles=dashes,
            linewidths=0.6, alpha=0.6,
        )  # fmt: skip
    ax.set_aspect("equal", adjustable="datalim")
    ax.tick_params(labelsize=7)
