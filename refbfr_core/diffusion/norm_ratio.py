"""Guidance as strong as the step itself: PGDiff's rule for colourisation, inpainting and old photographs.

There the size of the loss means little. The sample is drawn first, and only then moved along the gradient by a share
s of the distance it has just travelled:

    x_{t-1} <- x_{t-1} - s ||x_t - x_{t-1}|| / ||g|| g

PGDiff takes both norms over the whole batch (inpainting) or over each colour channel of the batch (colourisation, old
photographs). With more than one picture each then depends on its neighbours, so the default here is a norm a picture.
For one picture the two are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from refbfr_core.diffusion.forward import widen
from refbfr_core.diffusion.guidance import Correction
from refbfr_core.errors import ConfigError, unknown_name

__all__ = ["NORM_SCOPES", "norm_ratio_correction", "norm_ratio_factor", "norm_ratio_shift"]

NORM_SCOPES: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {
        "image": (False, False),
        "image-channel": (False, True),
        "batch": (True, False),
        "batch-channel": (True, True),
    }
)
"""What a norm is taken over: name -> (over all pictures together, for each channel on its own).

"image" is the default; "batch" and "batch-channel" are PGDiff's."""


def norm_ratio_factor(x_t: Tensor, x_prev: Tensor, gradient: Tensor, scale: float, scope: str = "image") -> Tensor:
    """The factor s ||x_t - x_{t-1}|| / ||g|| of the gradient; 0 where the gradient is zero.

    Args:
        x_t: (B, C, ...) sample before the step.
        x_prev: the sample drawn in this step, before any guidance.
        gradient: g, the gradient of the loss, same shape.
        scale: s, the share of the step's length (PGDiff: 0.01 for colourisation and inpainting).
        scope: a name in ``NORM_SCOPES``.

    Returns:
        (B or 1, C or 1, 1, ...), to be multiplied by the gradient.

    Raises:
        ConfigError: shapes that differ. UnknownNameError: another scope.
    """
    if scope not in NORM_SCOPES:
        raise unknown_name("norm scope", scope, NORM_SCOPES)
    if not x_t.shape == x_prev.shape == gradient.shape or x_t.ndim < 3:
        raise ConfigError(
            f"x_t, x_prev and gradient have shapes {tuple(x_t.shape)}, {tuple(x_prev.shape)} and "
            f"{tuple(gradient.shape)}; expected three times (B, C, ...)."
        )
    together, by_channel = NORM_SCOPES[scope]
    axes = [axis for axis in range(x_t.ndim) if not (axis == 0 and not together) and not (axis == 1 and by_channel)]
    travelled = torch.linalg.vector_norm(widen(x_t) - widen(x_prev), dim=axes, keepdim=True)
    length = torch.linalg.vector_norm(widen(gradient), dim=axes, keepdim=True)
    return torch.where(length > 0.0, scale * travelled / length.where(length > 0.0, 1.0), 0.0)


def norm_ratio_shift(x_t: Tensor, x_prev: Tensor, gradient: Tensor, scale: float, scope: str = "image") -> Tensor:
    """What is added to the drawn sample: minus ``norm_ratio_factor`` (same arguments and errors) times the gradient."""
    return (-norm_ratio_factor(x_t, x_prev, gradient, scale, scope) * widen(gradient)).to(x_prev.dtype)


def norm_ratio_correction(
    gradient: Tensor, scale: float, scope: str = "image", stats: Mapping[str, Tensor] | None = None
) -> Correction:
    """What a guidance hook returns to have this rule applied once the step's sample has been drawn.

    Args:
        gradient, scale, scope: as for ``norm_ratio_factor``.
        stats: numbers for the trace.

    Raises:
        UnknownNameError: another scope.
    """
    if scope not in NORM_SCOPES:
        raise unknown_name("norm scope", scope, NORM_SCOPES)

    def shift(x_t: Tensor, x_prev: Tensor) -> Tensor:
        return norm_ratio_shift(x_t, x_prev, gradient, scale, scope)

    return Correction(draw_shift=shift, stats=dict(stats or {}))
