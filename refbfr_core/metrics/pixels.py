"""Scores that compare pixels: PSNR and SSIM.

Both come in many variants whose numbers differ in the first decimal, so the variant is fixed here and named in the
registry: colour handling, window, borders and data range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refbfr_core.errors import ImageContractError, missing_extra

_WINDOW = 11
# Luma of the YIQ space.
_LUMA = (0.299, 0.587, 0.114)


def psnr(restored: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), the mean over all RGB values of an image in [0, 1].

    Args:
        restored, target: (B, 3, H, W).

    Returns:
        (B,) float64; identical images give infinity.
    """
    error = (restored.double() - target.double()).square().mean(dim=(1, 2, 3))
    return -10.0 * torch.log10(error)


def psnr_y(restored: Tensor, target: Tensor) -> Tensor:
    """:func:`psnr` of the luma Y = 0.299 R + 0.587 G + 0.114 B in [0, 1], which is not rounded.

    This is pyiqa's "psnry", save that it adds 1e-8 to the mean square error. The luma of MATLAB's YCbCr, which other
    toolboxes take, spans 16 to 235 of 255 and gives 1.3 dB more.

    Returns:
        (B,) float64; identical images give infinity.
    """
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=restored.device).view(1, 3, 1, 1)
    error = ((restored.double() - target.double()) * weights).sum(dim=1).square().mean(dim=(1, 2))
    return -10.0 * torch.log10(error)


def ssim(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of the three RGB channels, averaged.

    Gaussian window 11 x 11 with sigma 1.5, K1 0.01, K2 0.03, data range 1, no down-sampling beforehand, and only
    windows that lie wholly inside the image, as in the original definition.

    Args:
        restored, target: (B, 3, H, W), both sides at least 11 pixels.

    Returns:
        (B,) in [-1, 1]; 1 for identical images.

    Raises:
        ImageContractError: an image smaller than the window.
        MissingExtraError: torchmetrics is not installed.
    """
    return _structural_similarity(restored, target)


def ssim_y(restored: Tensor, target: Tensor) -> Tensor:
    """:func:`ssim` of the luma Y = 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits.

    This is what pyiqa, the toolbox of the ReF-LDM evaluation, calls "ssim", save that it sets negative contrast terms
    to zero; on ruined faces that is worth a few units of the fourth decimal.
    """
    weights = torch.tensor(_LUMA, device=restored.device).view(1, 3, 1, 1)
    lumas = [((images * weights).sum(1, keepdim=True) * 255).round() / 255 for images in (restored, target)]
    return _structural_similarity(*lumas)


def _structural_similarity(restored: Tensor, target: Tensor) -> Tensor:
    if min(restored.shape[-2:]) < _WINDOW:
        raise ImageContractError(
            f"ssim needs images of at least {_WINDOW} x {_WINDOW} pixels (its window), "
            f"got {tuple(restored.shape[-2:])}; compare larger images or use psnr."
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise missing_extra("torchmetrics", "metrics", "the metric ssim") from error
    # float32 on purpose: the error is below 1e-5, and convolutions in float64 are some fifty times slower.
    _, everywhere = structural_similarity_index_measure(
        restored, target, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    # The library mirrors the border to get a value at every pixel. Those values are not part of the definition.
    border = _WINDOW // 2
    return everywhere[..., border:-border, border:-border].mean(dim=(1, 2, 3))
