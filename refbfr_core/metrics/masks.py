"""Masks that say which pixels of a picture count in a score."""

from __future__ import annotations

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError

_INSIDE = 0.5


def checked_mask(mask: Tensor, images: Tensor) -> Tensor:
    """The mask as float64 weights on the pictures' device.

    Args:
        mask: (B, 1, H, W) in [0, 1]. images: (B, 3, H, W).

    Raises:
        ConfigError: another shape, values outside [0, 1], or a mask without any pixel.
    """
    expected = (len(images), 1, *images.shape[-2:])
    if tuple(mask.shape) != expected:
        raise ConfigError(f"mask is {tuple(mask.shape)}, expected {expected}, one weight a pixel.")
    weights = mask.to(images.device, torch.float64)
    if not (weights.min() >= 0 and weights.max() <= 1):
        raise ConfigError("mask holds values outside [0, 1]; pass weights such as Rendering.face_mask.")
    _refuse_empty(weights.sum(dim=(1, 2, 3)) == 0)
    return weights


def binary_mask(mask: Tensor | None, images: Tensor, metric: str) -> Tensor:
    """The mask as zeros and ones of the pictures' type: 1 where it is at least 0.5.

    Raises:
        ConfigError: no mask, or one that `checked_mask` refuses, or one that is below 0.5 everywhere.
    """
    if mask is None:
        raise ConfigError(
            f"{metric} looks at the face only, but no mask came; pass mask=(B, 1, H, W), for drawn faces "
            "Rendering.face_mask, for photographs the face of a parsing of the true picture."
        )
    inside = checked_mask(mask, images) >= _INSIDE
    _refuse_empty(~inside.flatten(1).any(dim=1))
    return inside.to(images.dtype)


def _refuse_empty(empty: Tensor) -> None:
    pictures = empty.nonzero().flatten().tolist()
    if pictures:
        raise ConfigError(f"the masks of the pictures {pictures} are empty; no pixel of them would count.")
