"""Attention, colour and injection in pictures, for notebook 08."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refbfr_core.images import from_network
from refbfr_core.metrics import colour
from refbfr_core.models.dual_cross_attention import DualCrossAttention
from refbfr_core.models.first_stage import decode_latents
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS

if TYPE_CHECKING:
    from diffusers import VQModel
    from matplotlib.figure import Figure

    from refbfr_core.metrics import Interval

_CHANNEL_COLOURS = ("#D55E00", "#009E73", "#0072B2")


def channel_matrix(degraded: Tensor, scaled: bool) -> Tensor:
    """M_C of features f_LQ (B, C, h, w): (B, C, C), rows sum to one; `scaled` divides the softmax by sqrt(N)."""
    dcam = DualCrossAttention(degraded.shape[1], heads=1, channel_scale=scaled)
    return dcam.channel_attention(degraded, degraded)[1]


def matrix_statistics(matrix: Tensor) -> dict[str, float]:
    """What a row-stochastic matrix (B, C, C) mixes, as means over rows.

    "diagonal": the weight that a row keeps for itself, 1 for the identity; "largest": its largest weight, whoever has
    it; "itself": share of rows whose largest weight is their own; "effective": 2^entropy, how many channels a row takes
    in effect, from 1 to C.
    """
    own = torch.arange(matrix.shape[-1], device=matrix.device)
    largest, winner = matrix.max(-1)
    entropy = -(matrix * matrix.clamp(min=1e-30).log2()).sum(-1)
    return {
        "diagonal": float(matrix.diagonal(dim1=1, dim2=2).mean()),
        "largest": float(largest.mean()),
        "itself": float((winner == own).float().mean()),
        "effective": float((2**entropy).mean()),
    }


def matrix_figure(matrices: Mapping[str, Tensor]) -> Figure:
    """Row-stochastic matrices (C, C) beside each other on one fixed scale, 0 to 1."""
    figure, axes = blank_figure(1, len(matrices), cell_width=2.1, cell_height=2.1)
    for ax, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        shown = ax.imshow(matrix.detach().cpu().numpy(), vmin=0, vmax=1, interpolation="nearest")
        ax.set(title=name, xlabel="channel of $F'_{HQ}$")
        ax.grid(False)
    axes[0][0].set_ylabel("channel of $f_{CCA}$")
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    return figure


def bias_figure(biases: Mapping[str, Mapping[str, Sequence[Interval]]]) -> Figure:
    """Bias of every colour channel with its interval, a panel a severity and a line an arm.

    Args:
        biases: severity -> arm -> intervals of red, green and blue in grey levels.
    """
    arms = list(next(iter(biases.values())))
    height = 0.7 + 0.36 * len(arms)
    figure, axes = blank_figure(1, len(biases), cell_width=2.1, cell_height=height, sharey=True, sharex=True)
    for ax, (severity, own) in zip(axes[0], biases.items(), strict=True):
        for place, arm in enumerate(arms):
            for index, interval in enumerate(own[arm]):
                shade, name = _CHANNEL_COLOURS[index], colour.CHANNELS[index]
                ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
                label = name if place == 0 and ax is axes[0][0] else None
                ax.errorbar([interval.mean], [place + 0.22 * (index - 1)], xerr=ends, fmt="os^"[index], color=shade,
                            capsize=2, markersize=4, label=label)  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=severity, xlabel="bias, grey levels", yticks=range(len(arms)), yticklabels=arms)
    axes[0][0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def shuffle_figure(maps: Mapping[str, Tensor]) -> Figure:
    """Small features (c, h, w) of whole numbers drawn channel by channel, so that it can be seen where numbers go.

    A number has the same shade wherever it is.
    """
    most = max(int(feature.max()) for feature in maps.values())
    figure, axes = blank_figure(1, sum(len(feature) for feature in maps.values()), cell_width=0.95, cell_height=1.35)
    places = iter(axes[0])
    for name, feature in maps.items():
        for channel, values in enumerate(feature.tolist()):
            ax = next(places)
            ax.imshow(values, vmin=0, vmax=most * 1.3)
            ax.set(xticks=[], yticks=[], title=f"{name}\nchannel {channel}")
            ax.title.set_fontsize(7)
            ax.grid(False)
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    ax.text(column, row, f"{value:g}", color="white", fontsize=8, ha="center", va="center")
    return figure


@torch.no_grad()
def latent_pictures(vq: VQModel, latents: Tensor, quantize: bool = True) -> Tensor:
    """Pictures of latents (B, 3, h, w) at any noise level by the output decoder: (B, 3, H, W) in [0, 1], on the CPU."""
    return from_network(decode_latents(vq, latents.to(vq.device), quantize=quantize)).cpu()


def spread(pictures: Tensor, full: float) -> Tensor:
    """Where pictures of several seeds differ: (S, 3, H, W) to a grey picture (3, H, W) in [0, 1].

    The standard deviation over seeds, root mean square over colours, divided by `full`: what is drawn white.
    """
    deviation = pictures.std(dim=0).square().mean(0).sqrt()
    return (deviation / full).clamp(0, 1).expand(3, -1, -1)


def difference(one: Tensor, other: Tensor, full: float) -> Tensor:
    """Where two pictures (3, H, W) differ, as a grey picture; `full` is the mean absolute difference drawn white."""
    return ((one - other).abs().mean(0) / full).clamp(0, 1).expand(3, -1, -1)


def arm_interval_figure(
    intervals: Mapping[str, Mapping[str, Mapping[str, Interval | None]]], xlabels: Mapping[str, str]
) -> Figure:
    """Scores or differences with their intervals: a panel a score, a line an arm, a mark a severity.

    Args:
        intervals: score -> arm -> severity -> interval; None leaves a place empty.
        xlabels: score -> what its axis says.
    """
    arms = list(next(iter(intervals.values())))
    severities = list(next(iter(next(iter(intervals.values())).values())))
    columns = min(len(intervals), 2)
    rows = math.ceil(len(intervals) / columns)
    figure, axes = blank_figure(rows, columns, cell_width=2.6, cell_height=0.5 + 0.25 * len(arms), sharey=True)
    panels = [ax for line in axes for ax in line]
    marks = {}
    for ax, (score, own) in zip(panels, intervals.items(), strict=False):
        for place, arm in enumerate(arms):
            for index, severity in enumerate(severities):
                interval = own[arm][severity]
                if interval is None:
                    continue
                ends = [[interval.mean - interval.low], [interval.high - interval.mean]]
                height = place + 0.22 * (index - (len(severities) - 1) / 2)
                marks[severity] = ax.errorbar([interval.mean], [height], xerr=ends, fmt="os^D"[index % 4],
                                              color=COLOURS[index], capsize=2, markersize=4)  # fmt: skip
        ax.axvline(0, color="black", linewidth=0.8, linestyle=":")
        ax.set(xlabel=xlabels[score], yticks=range(len(arms)), yticklabels=arms)
    for ax in panels[len(intervals) :]:
        ax.set_axis_off()
    axes[0][0].invert_yaxis()
    drawn = [severity for severity in severities if severity in marks]
    figure.legend([marks[severity] for severity in drawn], drawn, loc="outside lower center", ncols=len(severities))
    return figure


def half_width(interval: Interval | None, digits: int = 2) -> str:
    """An interval as "mean ± half its width", or a dash."""
    if interval is None:
        return "–"
    # Adding zero turns a minus zero into a plus zero.
    return f"{round(interval.mean, digits) + 0.0:.{digits}f} ± {(interval.high - interval.low) / 2:.{digits}f}"
