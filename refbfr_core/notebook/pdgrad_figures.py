"""Figures of notebook 07: what PDGrad's guidance does at every step, and its ablations beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refbfr_core.diffusion import Trace
    from refbfr_core.metrics import Interval

LEVELS = ("low", "high")
"""Low level: pivot is the coarse picture. High level: pivot is the reference."""


def step_statistics(traces: Sequence[Trace]) -> pd.DataFrame:
    """The statistics of every step of guided runs as a table, one line a picture and step.

    Args:
        traces: of `PDGradPipeline` calls.

    Returns:
        columns "t", "picture" and every statistic ("low_angle", "high_k", "loss_low_c", ...).
    """
    lines, offset = [], 0
    for trace in traces:
        count = 0
        for step in trace.steps:
            count = len(next(iter(step.stats.values())))
            columns = {name: values.numpy() for name, values in step.stats.items()}
            lines.append(pd.DataFrame({"t": step.t, "picture": np.arange(count) + offset, **columns}))
        offset += count
    return pd.concat(lines, ignore_index=True)


def conflict_figure(table: pd.DataFrame) -> Figure:
    """For both levels over the timesteps: share of pictures in conflict, mean angle, and mean k among conflicts."""
    figure, axes = blank_figure(1, 3, cell_width=2.9, cell_height=2.5)
    for level, colour, dashes in zip(LEVELS, COLOURS, LINE_STYLES, strict=False):
        groups = table.groupby("t")
        share = 100 * groups[f"{level}_conflict"].mean()
        axes[0][0].plot(share.index, share, color=colour, linestyle=dashes, label=f"{level} level")
        angle = groups[f"{level}_angle"].mean()
        axes[0][1].plot(angle.index, angle, color=colour, linestyle=dashes)
        capped = table[table[f"{level}_conflict"] > 0].groupby("t")[f"{level}_k"].mean()
        axes[0][2].plot(capped.index, capped, color=colour, linestyle=dashes)
    axes[0][0].set(ylabel="pictures in conflict, %", ylim=(-3, 103))
    axes[0][1].axhline(90, color="black", linewidth=0.8, linestyle=":")
    axes[0][1].set(ylabel="angle, degrees")
    axes[0][2].set(ylabel="k where in conflict", ylim=(-0.03, 1.05))
    axes[0][0].legend()
    for ax in axes[0]:
        ax.set_xlabel("timestep t")
        ax.invert_xaxis()
    return figure


def length_figure(table: pd.DataFrame) -> Figure:
    """Lengths of the two gradients of each level over the timesteps: medians over the pictures, on a log axis."""
    figure, axes = blank_figure(1, 2, cell_width=3.6, cell_height=2.5, sharey=True)
    names = {"low": ("coarse picture (pivot)", "reference"), "high": ("reference (pivot)", "coarse picture")}
    for ax, level in zip(axes[0], LEVELS, strict=True):
        for part, label, colour, dashes in zip(("pivot", "other"), names[level], COLOURS, LINE_STYLES, strict=False):
            lengths = table.groupby("t")[f"{level}_{part}_norm"].median()
            ax.plot(lengths.index, lengths, color=colour, linestyle=dashes, label=label)
        ax.set(xlabel="timestep t", title=f"{level} level", yscale="log")
        ax.invert_xaxis()
        ax.legend()
    axes[0][0].set_ylabel("length of the gradient")
    return figure


def gradient_maps(gradients: Mapping[str, Tensor]) -> list[Tensor]:
    """How strongly each gradient pulls at each place: name -> (3, H, W) to grey pictures (3, H, W) in [0, 1].

    Black is no pull, white the strongest one of the *same* gradient: the maps show where, not how much. Lengths are
    averaged over 5 x 5 pixels; single ones follow the strides of the network behind the gradient.
    """
    maps = []
    for gradient in gradients.values():
        size = torch.linalg.vector_norm(gradient.detach().cpu(), dim=0)
        size = F.avg_pool2d(size[None], 5, stride=1, padding=2)[0]
        peak = torch.quantile(size, 0.995).clamp(min=1e-30)
        maps.append((size / peak).clamp(0, 1).expand(3, -1, -1))
    return maps


def interval_figure(intervals: Mapping[str, Mapping[str, Interval | None]], xlabels: Mapping[str, str]) -> Figure:
    """Paired differences with their intervals, an arm a line and a score a panel.

    Args:
        intervals: score -> arm -> interval, None to leave the line empty.
        xlabels: score -> what its axis says.
    """
    arms = list(next(iter(intervals.values())))
    figure, axes = blank_figure(1, len(intervals), cell_width=3.3, cell_height=0.5 + 0.27 * len(arms), sharey=True)
    for ax, (score, own) in zip(axes[0], intervals.items(), strict=True):
        for place, arm in enumerate(arms):
            if own[arm] is not None:
                ends = [[own[arm].mean - own[arm].low], [own[arm].high - own[arm].mean]]
                ax.errorbar([own[arm].mean], [place], xerr=ends, fmt="o", color=COLOURS[0], capsize=3, markersize=4)
        ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
        ax.set(xlabel=xlabels[score], yticks=range(len(arms)), yticklabels=arms)
        ax.invert_yaxis() if ax is axes[0][0] else None
    return figure


def ends(interval: Interval | None, digits: int = 3) -> str:
    """An interval as "mean [low, high]", or a dash."""
    if interval is None:
        return "–"
    # Adding zero turns a minus zero into a plus zero.
    values = (f"{round(value, digits) + 0.0:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    mean, low, high = values
    return f"{mean} [{low}, {high}]"
