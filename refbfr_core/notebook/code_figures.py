"""Codes as a vocabulary, for notebook 08: which codes a face is written in, where each is used, how it looks there.

Index maps are (h, w) whole numbers, one code of the condition VQGAN's codebook L_HQ (K codes) for each place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.images import from_network, to_network
from refbfr_core.models.vq_restorer import decode_feature, encode_feature, look_up
from refbfr_core.notebook.attention import tiled
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.pipelines.rows import in_groups

if TYPE_CHECKING:
    from diffusers import VQModel
    from matplotlib.figure import Figure

_ORANGE = (1.0, 0.72, 0.0)


@torch.no_grad()
def written(vq: VQModel, pictures: Tensor) -> Tensor:
    """The codes of pictures by the encoder of clean faces, E'_HQ: (B, 3, H, W) in [0, 1] to (B, h, w) on the CPU."""

    def codes(rows: Tensor) -> Tensor:
        features = encode_feature(vq, to_network(rows).to(vq.device))
        return look_up(features, vq.quantize.embedding.weight)[0]

    return in_groups(codes, pictures).cpu()


@torch.no_grad()
def spoken(vq: VQModel, codes: Tensor) -> Tensor:
    """The pictures that index maps say, D'_HQ of their codes: (B, h, w) to (B, 3, H, W) in [0, 1] on the CPU."""

    def pictures(rows: Tensor) -> Tensor:
        features = vq.quantize.embedding.weight[rows.to(vq.device)].permute(0, 3, 1, 2)
        return from_network(decode_feature(vq, features))

    return in_groups(pictures, codes).cpu()


def use_counts(codes: Tensor, size: int) -> Tensor:
    """How often each code stands at each place: maps (B, h, w) to (K, h, w) with K = `size`; sums to B over codes."""
    return F.one_hot(codes, size).sum(0).permute(2, 0, 1)


def effective_codes(counts: Tensor) -> float:
    """Perplexity of the codes' use, 2^entropy: K if all are used equally often, 1 if there is only one.

    Args:
        counts: (K, ...) uses of every code, at least one in all.
    """
    share = counts.flatten(1).sum(1).double()
    share = share[share > 0] / share.sum()
    return float(2 ** -(share * share.log2()).sum())


def usual_place(counts: Tensor) -> Tensor:
    """(K, 2): row and column at which each code is used most often, of counts (K, h, w)."""
    flat = counts.flatten(1).argmax(1)
    return torch.stack([flat // counts.shape[-1], flat % counts.shape[-1]], dim=1)


def with_code(codes: Tensor, place: Tensor | tuple[int, int], code: int) -> Tensor:
    """An index map (h, w) with another code at one place (row, column)."""
    out = codes.clone()
    out[int(place[0]), int(place[1])] = code
    return out


def code_patches(vq: VQModel, codes: Tensor, counts: Tensor) -> Tensor:
    """How each code looks where it is at home: K windows cut from decoded faces, white for codes that nobody uses.

    For every code, a face that has it at its usual place is decoded from its codes alone; the window is the code's own
    block of pixels and half a block around it.

    Args:
        codes: (B, h, w) index maps of faces. counts: their `use_counts`.

    Returns:
        (K, 3, 2p, 2p) in [0, 1] with p pixels a side of a block.
    """
    pictures = spoken(vq, codes)
    block = pictures.shape[-1] // codes.shape[-1]
    padded = F.pad(pictures, (block // 2,) * 4, mode="replicate")
    patches = torch.ones(len(counts), 3, 2 * (block // 2) + block, 2 * (block // 2) + block)
    for code, (row, column) in enumerate(usual_place(counts).tolist()):
        users = (codes[:, row, column] == code).nonzero().flatten()
        if len(users):
            face = padded[int(users[0])]
            patches[code] = face[:, block * row :, block * column :][:, : patches.shape[-2], : patches.shape[-1]]
    return patches


def sheet(patches: Tensor, counts: Tensor, columns: int = 16) -> Tensor:
    """The patches (K, 3, p, p) as one picture, the most used code first, row by row."""
    order = counts.flatten(1).sum(1).argsort(descending=True, stable=True)
    return tiled(list(patches[order]), columns)


def share_map_figure(maps: dict[str, Tensor]) -> Figure:
    """Shares in [0, 1] for each place (h, w), in percent and on one fixed colour range, a panel a name."""
    figure, axes = blank_figure(1, len(maps), cell_width=1.8, cell_height=2.0)
    for ax, (name, shares) in zip(axes[0], maps.items(), strict=True):
        ax.imshow(shares.numpy(), vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[], title=name)
        ax.grid(False)
        for row, line in enumerate(shares.tolist()):
            for column, share in enumerate(line):
                shade = "white" if share < 0.6 else "black"
                ax.text(column, row, f"{100 * share:.0f}", color=shade, fontsize=6.5, ha="center", va="center")
    return figure


def numbered_figure(picture: Tensor, codes: Tensor, side: float = 3.2) -> Figure:
    """A picture (3, H, W) in [0, 1] with the index of its code written into every place's block."""
    figure, axes = blank_figure(1, 1, cell_width=side, cell_height=side)
    ax, (rows, columns) = axes[0][0], codes.shape
    ax.imshow(picture.permute(1, 2, 0).numpy(), vmin=0, vmax=1, extent=(0, columns, rows, 0), interpolation="none")
    ax.set(xticks=range(columns + 1), yticks=range(rows + 1), xticklabels=[], yticklabels=[])
    ax.grid(color="white", alpha=0.6, linewidth=0.6, linestyle="-")
    ax.tick_params(length=0)
    for row in range(rows):
        for column in range(columns):
            box = {"boxstyle": "round,pad=0.1", "facecolor": "black", "alpha": 0.45, "linewidth": 0}
            ax.text(column + 0.5, row + 0.5, str(int(codes[row, column])), color="white", fontsize=6.5,
                    ha="center", va="center", bbox=box)  # fmt: skip
    return figure


def changed(one: Tensor, other: Tensor) -> Tensor:
    """Share of places at which two index maps differ: (B, h, w) twice to (B,) in [0, 1].

    Raises:
        ConfigError: maps of different shapes.
    """
    if one.shape != other.shape:
        raise ConfigError(f"index maps of shapes {tuple(one.shape)} and {tuple(other.shape)}; compare equal ones.")
    return (one != other).flatten(1).double().mean(1)


def survives(change: Tensor, change_back: Tensor) -> Tensor:
    """How much of a change of pictures comes back: <change_back, change> / <change, change>, (B, 3, H, W) to (B,).

    1 if it comes back as it was, 0 if nothing like it does. Raises ConfigError for different shapes or no change.
    """
    if change.shape != change_back.shape or not bool(change.flatten(1).any(1).all()):
        raise ConfigError(
            f"changes of shapes {tuple(change.shape)} and {tuple(change_back.shape)}; expected equal shapes and a "
            "change in every picture."
        )
    first, back = change.flatten(1).double(), change_back.flatten(1).double()
    return (first * back).sum(1) / first.square().sum(1)


def outlined(picture: Tensor, places: Tensor) -> Tensor:
    """A picture (3, H, W) with an orange frame around the blocks of the places (h, w) that are true."""
    block = picture.shape[-1] // places.shape[-1]
    inside = places.repeat_interleave(block, 0).repeat_interleave(block, 1)
    edge = torch.zeros(block, block, dtype=torch.bool)
    edge[0], edge[-1], edge[:, 0], edge[:, -1] = True, True, True, True
    frame = inside & edge.repeat(*places.shape)
    return torch.where(frame, torch.tensor(_ORANGE)[:, None, None], picture)


def places_around(points: Tensor, side: int, reach: float = 0.06) -> Tensor:
    """The places (side, side) whose blocks come within `reach` of any point.

    Args:
        points: (n, 2), x right and y down, in fractions of the picture; NaN points are left out.
        reach: in fractions of the picture's side.
    """
    low = torch.arange(side) / side
    out = torch.zeros(side, side, dtype=torch.bool)
    for x, y in points.tolist():
        if x == x and y == y:
            near_x = (low - reach <= x) & (x < low + 1 / side + reach)
            near_y = (low - reach <= y) & (y < low + 1 / side + reach)
            out |= near_y[:, None] & near_x[None, :]
    return out
