"""Small changes of a picture that leave a face as it is, and distortions that harm it, for judging distances.

None of these kinds of distortion is in a preset of `refbfr_core.degradation`: what a network says about them it has not
been taught.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Distortion = Callable[[Tensor, float, np.random.Generator], Tensor]


def shake(
    images: Tensor, draws: np.random.Generator, shift: float = 0.02, scale: float = 0.02, turn: float = 2.0
) -> Tensor:
    """Shift (share of the side, up to 2.5 px of 128), scale and turn (degrees) each picture a little; no mirroring.

    (B, 3, H, W) to the same; what moves in from outside repeats the border.
    """
    count = len(images)
    angle = np.deg2rad(draws.uniform(-turn, turn, count))
    size = np.exp(draws.uniform(-scale, scale, count))
    offset = draws.uniform(-2 * shift, 2 * shift, (count, 2))
    rows = np.stack(
        [
            np.stack([size * np.cos(angle), -size * np.sin(angle), offset[:, 0]], 1),
            np.stack([size * np.sin(angle), size * np.cos(angle), offset[:, 1]], 1),
        ],
        1,
    )
    return _sample(images, F.affine_grid(torch.from_numpy(rows).float(), list(images.shape), align_corners=False))


def motion_blur(images: Tensor, length: float, draws: np.random.Generator) -> Tensor:
    """Average along a row over `length` pixels of 128."""
    width = max(3, round(length * images.shape[-1] / 128) | 1)
    padded = F.pad(images, (width // 2, width // 2, 0, 0), mode="replicate")
    return F.avg_pool2d(padded, (1, width), stride=1)


def mosaic(images: Tensor, block: float, draws: np.random.Generator) -> Tensor:
    """One colour for each square of `block` pixels of 128."""
    cells = [max(1, round(128 / block))] * 2
    return F.interpolate(F.adaptive_avg_pool2d(images, cells), images.shape[-2:], mode="nearest")


def salt_and_pepper(images: Tensor, share: float, draws: np.random.Generator) -> Tensor:
    """Black or white pixels in place of a `share` of them."""
    chance = torch.from_numpy(draws.random((len(images), 1, *images.shape[-2:]))).float()
    return torch.where(chance < share / 2, 0.0, torch.where(chance > 1 - share / 2, 1.0, images))


def posterise(images: Tensor, steps: float, draws: np.random.Generator) -> Tensor:
    """Only `steps` + 1 values in each channel."""
    return (images * steps).round() / steps


def warp(images: Tensor, amplitude: float, draws: np.random.Generator, waves: float = 4) -> Tensor:
    """`waves` waves of `amplitude` pixels of 128 across the picture both ways, each picture with phases of its own."""
    count, height, width = len(images), *images.shape[-2:]
    y = torch.linspace(0, 2 * math.pi * waves, height).view(1, -1, 1)
    x = torch.linspace(0, 2 * math.pi * waves, width).view(1, 1, -1)
    phases = torch.from_numpy(draws.uniform(0, 2 * math.pi, (4, count, 1, 1))).float()
    moved = torch.stack([(y + phases[0]).sin() + (x + phases[1]).sin(), (x + phases[2]).sin() + (y + phases[3]).sin()])
    straight = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(images.shape), align_corners=False)
    return _sample(images, straight + moved.permute(1, 2, 3, 0) * amplitude / 128)


def cover(images: Tensor, side: float, draws: np.random.Generator) -> Tensor:
    """A grey square with a `side` of that many pixels of 128, somewhere in the middle half of the picture."""
    out = images.clone()
    height, width = images.shape[-2:]
    tall, wide = max(1, round(side * height / 128)), max(1, round(side * width / 128))
    for picture in out:
        top = int(draws.integers(height // 4, 3 * height // 4 - tall + 1))
        left = int(draws.integers(width // 4, 3 * width // 4 - wide + 1))
        picture[:, top : top + tall, left : left + wide] = 0.5
    return out


def bend(images: Tensor, amplitude: float, draws: np.random.Generator) -> Tensor:
    """One long wave of `amplitude` pixels of 128: the face is moved and drawn out, its details stay as they are."""
    return warp(images, amplitude, draws, waves=1)


def gamma(images: Tensor, amount: float, draws: np.random.Generator) -> Tensor:
    """x to the power exp(+-`amount`): a little darker or brighter."""
    signs = torch.from_numpy(draws.choice([-1.0, 1.0], len(images))).float()
    return images ** torch.exp(amount * signs).view(-1, 1, 1, 1)


def shear(images: Tensor, amount: float, draws: np.random.Generator) -> Tensor:
    """Move the top edge sideways by `amount` pixels of 128 and the bottom edge the other way."""
    slopes = torch.from_numpy(draws.choice([-1.0, 1.0], len(images))).float() * 2 * amount / 128
    rows = torch.eye(2, 3).repeat(len(images), 1, 1)
    rows[:, 0, 1] = slopes
    return _sample(images, F.affine_grid(rows, list(images.shape), align_corners=False))


def vignette(images: Tensor, amount: float, draws: np.random.Generator) -> Tensor:
    """Darken towards the corners, by a share of `amount` there."""
    y = torch.linspace(-1, 1, images.shape[-2]).view(-1, 1)
    x = torch.linspace(-1, 1, images.shape[-1]).view(1, -1)
    return images * (1 - amount * (x * x + y * y) / 2)


HARMFUL: Mapping[str, tuple[Distortion, float, float]] = MappingProxyType(
    {
        "motion blur": (motion_blur, 5, 9),
        "mosaic": (mosaic, 3, 5),
        "salt and pepper": (salt_and_pepper, 0.01, 0.03),
        "posterise": (posterise, 6, 4),
        "warp": (warp, 1, 2),
        "cover": (cover, 8, 16),
    }
)
"""Name to (distortion, a weak dose, a strong dose); even the weak one is plain to see."""

HARMLESS: Mapping[str, tuple[Distortion, float]] = MappingProxyType(
    {"bend": (bend, 1.5), "shear": (shear, 2), "gamma": (gamma, 0.15), "vignette": (vignette, 0.2)}
)
"""Name to (change, dose)."""


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
