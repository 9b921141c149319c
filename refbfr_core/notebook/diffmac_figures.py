"""Figures of notebook 09 on faces: what the bottleneck passes, channel by channel and network by network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval, paired_interval
from refbfr_core.notebook.bottleneck_figures import normal_curve
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("means", "log-variances")
"""The two halves of moments, in their order."""


def channel_names(channels: int) -> list[str]:
    """A short name for every channel of moments: "mean 0", ..., "log-var 0", ...; raises ConfigError if odd."""
    if channels % 2 or channels < 2:
        raise ConfigError(f"{channels} channels; moments have as many log-variances as means.")
    half = channels // 2
    return [f"mean {k}" for k in range(half)] + [f"log-var {k}" for k in range(half)]


def map_figure(maps: Tensor, low: float, high: float, label: str) -> Figure:
    """Maps (2C, h, w) of one face on one fixed colour range, means above log-variances; titles hold their averages."""
    names = channel_names(len(maps))
    half = len(maps) // 2
    figure, axes = blank_figure(2, half, cell_width=1.35, cell_height=1.45)
    for index, (name, own) in enumerate(zip(names, maps.detach().cpu(), strict=True)):
        ax = axes[index // half][index % half]
        shown = ax.imshow(own.numpy(), vmin=low, vmax=high, interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=f"{name}: {float(own.mean()):.2f}")
        ax.title.set_fontsize(8)
        ax.grid(False)
    figure.colorbar(shown, ax=[ax for line in axes for ax in line], shrink=0.8, label=label)
    return figure


def normalised_figure(normalised: Tensor, reach: float = 5.0) -> Figure:
    """Histograms of F_R (B, 2C, h, w), a line a channel and a panel a half, beside the density of N(0, 1)."""
    half = normalised.shape[1] // 2
    names = channel_names(normalised.shape[1])
    figure, axes = blank_figure(1, 2, cell_width=3.1, cell_height=2.4, sharey=True)
    z = torch.linspace(-reach, reach, 300)
    for ax, start, kind in zip(axes[0], (0, half), KINDS, strict=True):
        ax.fill_between(z, normal_curve(z), color="#888888", alpha=0.3, linewidth=0, label="N(0, 1)")
        for k in range(half):
            values = normalised[:, start + k].flatten().clamp(-reach, reach).cpu()
            ax.hist(values.numpy(), bins=80, range=(-reach, reach), density=True, histtype="step", color=COLOURS[k],
                    linestyle=LINE_STYLES[k], label=names[start + k])  # fmt: skip
        ax.set(title=kind, xlabel="$F_R$", xlim=(-reach, reach))
        ax.legend(loc="upper right", fontsize=7)
    axes[0][0].set_ylabel("density")
    return figure


def shape_statistics(normalised: Tensor) -> list[dict[str, float | str]]:
    """Of every channel of F_R (B, 2C, h, w): mean, deviation, skewness and excess kurtosis over pictures and places.

    N(0, 1) has 0, 1, 0 and 0.
    """
    values = normalised.transpose(0, 1).flatten(1).double()
    mean, std = values.mean(1), values.std(1, unbiased=False)
    z = (values - mean[:, None]) / std[:, None]
    columns = {"mean": mean, "deviation": std, "skewness": (z**3).mean(1), "excess kurtosis": (z**4).mean(1) - 3}
    return [
        {"channel": name, **{what: float(own[k]) for what, own in columns.items()}}
        for k, name in enumerate(channel_names(len(values)))
    ]


def share_figure(shares: Mapping[str, Mapping[float, Mapping[str, Interval]]]) -> Figure:
    """Mean lambda over lambda_info with its interval: a panel for means and log-variances, a line a compensation.

    Args:
        shares: compensation -> lambda_info -> kind of channel, of `KINDS` -> interval over people.
    """
    figure, axes = blank_figure(1, 2, cell_width=2.9, cell_height=2.3, sharey=True)
    for ax, kind in zip(axes[0], KINDS, strict=True):
        for (name, own), colour, dashes, mark in zip(shares.items(), COLOURS, LINE_STYLES, "os^D", strict=False):
            weights = sorted(own)
            points = [own[weight][kind] for weight in weights]
            ends = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
            ax.errorbar(weights, [p.mean for p in points], yerr=ends, color=colour, linestyle=dashes, marker=mark,
                        capsize=3, label=name)  # fmt: skip
        ax.set(xscale="log", xlabel="$\\lambda_{info}$", title=kind, ylim=(-0.03, 1.03))
        ax.set_xticks(weights, [f"{weight:g}" for weight in weights])
        ax.minorticks_off()
    axes[0][0].set_ylabel("mean λ")
    axes[0][0].legend()
    return figure


def kind_means(maps: Tensor) -> dict[str, Tensor]:
    """A map (B, 2C, h, w) averaged for every face over "all" channels and over each of `KINDS`: name -> (B,)."""
    means, log_variances = maps.flatten(2).mean(2).chunk(2, dim=1)
    return {"all": maps.flatten(1).mean(1), KINDS[0]: means.mean(1), KINDS[1]: log_variances.mean(1)}


def steps_down(columns: Sequence[Tensor]) -> list[Interval]:
    """Paired differences of each column (B,) to the one before: all below 0 if numbers of the same faces fall."""
    return [paired_interval(later, earlier) for earlier, later in zip(columns[:-1], columns[1:], strict=True)]


def decided(interval: Interval, above: str, below: str, otherwise: str) -> str:
    """One of three texts: the interval lies above 0, below 0, or contains it."""
    return above if interval.above() else below if interval.below() else otherwise


def spread_text(values: Tensor, digits: int = 2) -> str:
    """Mean and 95 % interval over people (B,) as text."""
    interval = mean_interval(values)
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
