"""Figures of the one-dimensional bottleneck, for notebook 09; the numbers come from `scalar_bottleneck`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refbfr_core.models.bottleneck import kl_exact, kl_printed
from refbfr_core.notebook import scalar_bottleneck as scalar
from refbfr_core.notebook.arrows import as_picture
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READINGS = {"exact": kl_exact, "as printed": kl_printed, "log squared": scalar.kl_square}
"""Three readings of equation 11: functions of lambda and r."""
_REACH = 4.2
_PRIOR = "#888888"


def normal_curve(z: Tensor) -> Tensor:
    """Density of N(0, 1)."""
    return scalar.density(z, 0.0, 1.0)


def draw_dial(ax: Axes, share: float, values: Sequence[float], legend: bool = False) -> None:
    """Draw q(Z) in grey and p(Z | R = r) for every r of `values` at one lambda, noise compensation.

    The axis is in units of sigma around mu; a tick on it marks each r. At lambda = 1, p is a spike there.
    """
    z = torch.linspace(-_REACH, _REACH, 400, dtype=torch.float64)
    ax.fill_between(z, normal_curve(z), color=_PRIOR, alpha=0.25, linewidth=0, label="q(Z)")
    for r, colour, dashes in zip(values, COLOURS, LINE_STYLES, strict=False):
        mean, std = scalar.passed(share, r)
        name = f"p(Z | r = {r:g})"
        if std > 0.02:
            ax.plot(z, scalar.density(z, mean, std), color=colour, linestyle=dashes, label=name)
        else:
            ax.vlines(r, 0, 3, color=colour, linestyle=dashes, label=name)
        ax.plot([r, r], [0, 0.06], color=colour, linestyle="-", linewidth=3)
    ax.set(xlim=(-_REACH, _REACH), ylim=(0, 1.65), yticks=[])
    if legend:
        ax.legend(loc="upper left")


def dial_figure(shares: Sequence[float], values: Sequence[float]) -> Figure:
    """`draw_dial` for several lambdas beside each other."""
    figure, axes = blank_figure(1, len(shares), cell_width=1.9, cell_height=1.9, sharey=True)
    for ax, share in zip(axes[0], shares, strict=True):
        draw_dial(ax, share, values)
        ax.set_title(f"λ = {share:g}")
        ax.set_xlabel("(Z − μ) / σ")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def dial_frames(shares: Sequence[float], values: Sequence[float]) -> tuple[list[Tensor], list[str]]:
    """Frames (3, 190, 280) in [0, 1] and labels for `frame_strip`: the dial turned through `shares`."""
    from matplotlib.figure import Figure

    frames = []
    for share in shares:
        figure = Figure(figsize=(2.8, 1.9))
        ax = figure.add_axes((0.02, 0.12, 0.96, 0.86))
        draw_dial(ax, share, values)
        ax.tick_params(labelsize=7)
        frames.append(as_picture(figure))
    return frames, [dial_caption(share, values) for share in shares]


def dial_caption(share: float, values: Sequence[float]) -> str:
    """Lambda, and what passing each r costs, in nats."""
    if share >= 1:
        return f"lambda {share:.2f}: Z = R, infinitely many nats"
    costs = kl_exact(torch.tensor(share, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))
    told = ", ".join(f"{cost:.2f}" for cost in (costs + 0.0).abs().tolist())
    return f"lambda {share:.2f}: {told} nats at r = {', '.join(f'{r:g}' for r in values)}"


def divergence_figure(values: Sequence[float], draws: int = 20_000, seed: int = 0) -> Figure:
    """The readings of equation 11 over lambda as lines, a panel for each r, and dots for what draws of Z say."""
    figure, axes = blank_figure(1, len(values), cell_width=2.5, cell_height=2.4, sharey=True)
    share = torch.linspace(0, 0.985, 300, dtype=torch.float64)
    for ax, r in zip(axes[0], values, strict=True):
        for (name, reading), colour, dashes in zip(READINGS.items(), COLOURS, LINE_STYLES, strict=False):
            own = reading(share, torch.tensor(r, dtype=torch.float64))
            ax.plot(share, own, color=colour, linestyle=dashes, label=name)
        dots = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
        found = [scalar.kl_by_draws(s, r, draws, seed)[0] for s in dots]
        ax.plot(dots, found, color="black", marker="o", linestyle="none", markersize=3.5, label=f"{draws:,} draws")
        ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=f"r = {r:g}", xlabel="λ, share that passes", ylim=(-1.4, 5.2))
    axes[0][0].set_ylabel("nats")
    axes[0][0].legend(loc="upper left")
    return figure


def bound_figure() -> Figure:
    """Mean of the exact divergence over R, the mutual information, and the gap between them, over lambda."""
    figure, axes = blank_figure(1, 2, cell_width=3.0, cell_height=2.3)
    share = torch.linspace(0, 0.97, 300, dtype=torch.float64)
    upper, lower = scalar.bound(share), scalar.mutual_information(share)
    axes[0][0].plot(share, upper, color=COLOURS[0], linestyle="-", label="mean of KL over R")
    axes[0][0].plot(share, lower, color=COLOURS[5], linestyle="--", label="I(Z; R)")
    axes[0][0].set(ylabel="nats", xlabel="λ")
    axes[0][0].legend()
    axes[0][1].plot(share, upper - lower, color=COLOURS[2], label="gap")
    spread = scalar.total_variance(share)
    axes[0][1].plot(share[::15], 0.5 * (spread - 1 - spread.log())[::15], "o", color="black", markersize=3.5,
                    label="KL(p(Z) ‖ q)")  # fmt: skip
    axes[0][1].set(xlabel="λ")
    axes[0][1].legend(loc="lower center")
    return figure


def walk_figure(walks: Mapping[str, scalar.ShareWalk], best: Mapping[str, Sequence[float | None]]) -> Figure:
    """Lambda over the steps of its training, a panel a compensation and a line a beta.

    Args:
        walks: compensation -> its trainings, all with the same betas.
        best: compensation -> where the exact loss is smallest for each beta, dotted; None draws none.
    """
    figure, axes = blank_figure(1, len(walks), cell_width=2.4, cell_height=2.4, sharey=True)
    for ax, (name, walk) in zip(axes[0], walks.items(), strict=True):
        for column, (beta, colour) in enumerate(zip(walk.betas, COLOURS, strict=False)):
            dashes = LINE_STYLES[column]
            ax.plot(walk.shares[:, column], color=colour, linestyle=dashes, label=f"β = {beta:g}")
            if best[name][column] is not None:
                ax.axhline(best[name][column], color=colour, linewidth=0.8, linestyle=":")
        ax.set(title=name, xlabel="step", ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("λ")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
