"""PDGrad's losses (eq. 10 to 18): how far a face is, in features, from the coarse picture and from the references.

Low level: the embedder's first three taps and the five of the perceptual network. High level: the embedder's output.
What a face is compared with does not change during a restoration, so its features are computed once, into a `Target`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.errors import ConfigError, unknown_name

TERMS = ("arc", "vgg")
"""The distances of the low level: d_arc (eq. 13) and d_vgg (eq. 14)."""


class GuidanceNetwork(Protocol):
    """An embedder or a perceptual network as guidance sees it."""

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """Differentiable features of (B, 3, H, W) in [-1, 1], (B, ...) each."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms: all 1 in the paper. `terms` leaves one distance of the low level out: A3 ("arc",) and A4
    ("vgg",) of table 5.

    Raises
    ------
    UnknownNameError : an unknown term. ConfigError : no term, or a negative weight.
    """

    arc_low: float = 1.0
    vgg: float = 1.0
    arc_high: float = 1.0
    terms: tuple[str, ...] = TERMS

    def __post_init__(self) -> None:
        for term in self.terms:
            if term not in TERMS:
                raise unknown_name("low-level distance", term, TERMS)
        if not self.terms or min(self.arc_low, self.vgg, self.arc_high) < 0:
            raise ConfigError(
                f"terms {self.terms} must name at least one of {TERMS}, and weights arc_low={self.arc_low}, "
                f"vgg={self.vgg}, arc_high={self.arc_high} must be 0 or more."
            )


@dataclass(frozen=True, eq=False)
class FaceFeatures:
    """Features of a batch: the embedder's `low` u_1 ... u_3 and `high` u_4 as unit vectors (B, D), and the perceptual
    network's `vgg` v_1 ... v_5 as (B, C, h, w), normalised and weighted."""

    low: tuple[Tensor, ...]
    high: Tensor
    vgg: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Target:
    """What faces are compared with, for each image the mean over its pictures.

    The mean of K distances needs the K pictures no more: the mean cosine to K directions is the product with their mean
    direction, and the mean squared distance to K points is that to their mean plus `spread` (B,), how far they lie
    apart. So a step costs the same with any number of references. `present` (B,) is 0 for images without a picture;
    their losses are 0.
    """

    features: FaceFeatures
    spread: Tensor
    present: Tensor

    def rows(self, rows: slice) -> Target:
        """The part of the batch that `rows` selects."""
        return Target(_map(self.features, lambda x: x[rows]), self.spread[rows], self.present[rows])


def face_features(images: Tensor, embedder: GuidanceNetwork, perceptual: GuidanceNetwork | None) -> FaceFeatures:
    """Features of (B, 3, H, W) in [-1, 1]; differentiable. Without a perceptual network `vgg` is empty (A3).

    Raises
    ------
    ConfigError : the embedder does not give four features.
    """
    taps = embedder.guidance_features(images)
    if len(taps) != 4:
        raise ConfigError(
            f"the embedder {type(embedder).__name__} gives {len(taps)} guidance features, expected u_1 ... u_4."
        )
    # Eq. 13 compares vectors; a feature map is flattened whole.
    units = [F.normalize(tap.float().flatten(1), dim=1) for tap in taps]
    vgg = () if perceptual is None else tuple(perceptual.guidance_features(images))
    return FaceFeatures(tuple(units[:3]), units[3], vgg)


@torch.no_grad()
def mean_target(
    pictures: Iterable[tuple[Tensor, Tensor]],
    embedder: GuidanceNetwork,
    perceptual: GuidanceNetwork | None,
    rows: int = 1,
) -> Target:
    """The target made of several pictures of every image.

    Args:
        pictures: pairs of (B, 3, H, W) in [-1, 1] and (B,) bool, whether the picture counts for that image.
        embedder, perceptual: the networks of `face_features`.
        rows: how many pictures go through them together.
    """
    total: FaceFeatures | None = None
    squares, counts = torch.zeros(()), torch.zeros(())
    for images, present in pictures:
        share = present.to(images.device, torch.float32)
        features = _cat([face_features(part, embedder, perceptual) for part in images.split(rows)])
        weighted = _map(features, lambda x, share=share: _rows(share, x) * x)
        total = weighted if total is None else _add(total, weighted)
        squares = squares.to(images.device) + _squared_sizes(weighted.vgg, len(images))
        counts = counts.to(images.device) + share
    if total is None:
        raise ConfigError("a target needs at least one picture of every image, or an empty one marked as absent.")
    inverse = 1 / counts.clamp(min=1)
    mean = _map(total, lambda x: _rows(inverse, x) * x)
    return Target(mean, squares * inverse - _squared_sizes(mean.vgg, len(counts)), (counts > 0).float())


def low_loss(features: FaceFeatures, target: Target, weights: LossWeights) -> Tensor:
    """L_low of eq. 12 or 15, (B,): the sum of d_arc over three taps and of d_vgg over five."""
    loss = torch.zeros_like(target.present)
    if "arc" in weights.terms:
        for mine, theirs in zip(features.low, target.features.low, strict=True):
            loss = loss + weights.arc_low * arc_distance(mine, theirs)
    if "vgg" in weights.terms:
        for mine, theirs in zip(features.vgg, target.features.vgg, strict=True):
            # Eq. 14: mean over places of the squared length of the difference over channels.
            loss = loss + weights.vgg * (mine - theirs).square().sum(1).mean((1, 2))
        loss = loss + weights.vgg * target.spread
    return loss * target.present


def high_loss(features: FaceFeatures, target: Target, weights: LossWeights) -> Tensor:
    """L_high of eq. 17 or 18, (B,): d_arc of the embedder's output."""
    return weights.arc_high * arc_distance(features.high, target.features.high) * target.present


def arc_distance(units: Tensor, directions: Tensor) -> Tensor:
    """d_arc (eq. 13) of unit vectors to (mean) directions, two of (B, D) to (B,) in [0, 2]: 1 - cosine."""
    return 1 - (units * directions).sum(1)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.ndim - 1)))


def _map(features: FaceFeatures, function: Callable[[Tensor], Tensor]) -> FaceFeatures:
    return FaceFeatures(
        tuple(map(function, features.low)), function(features.high), tuple(map(function, features.vgg))
    )


def _cat(parts: Sequence[FaceFeatures]) -> FaceFeatures:
    low = tuple(map(torch.cat, zip(*(part.low for part in parts), strict=True)))
    vgg = tuple(map(torch.cat, zip(*(part.vgg for part in parts), strict=True)))
    return FaceFeatures(low, torch.cat([part.high for part in parts]), vgg)


def _add(a: FaceFeatures, b: FaceFeatures) -> FaceFeatures:
    low = tuple(x + y for x, y in zip(a.low, b.low, strict=True))
    return FaceFeatures(low, a.high + b.high, tuple(x + y for x, y in zip(a.vgg, b.vgg, strict=True)))


def _squared_sizes(maps: tuple[Tensor, ...], count: int) -> Tensor:
    """(B,) sum over layers of the mean squared length of the features; zeros without layers."""
    if not maps:
        return torch.zeros(count)
    return torch.stack([each.square().sum(1).mean((1, 2)) for each in maps]).sum(0)
