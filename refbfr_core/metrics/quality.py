"""Quality scores that PSNR and LPIPS miss: does a picture look undistorted, and does it have the right amount of
detail?

`niqe_toy` needs no true picture. It says how far a picture's local statistics are from those of clean drawn faces, in
either direction: too soft and too busy both cost. `detail` compares with the true picture and keeps the sign: it says
which of the two it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from refbfr_core.errors import ImageContractError, missing_extra
from refbfr_core.metrics.masks import checked_mask
from refbfr_core.metrics.pristine import Pristine, describe_patches, load_pristine

# Luma of the YIQ space.
_LUMA = (0.299, 0.587, 0.114)
# What the high-pass takes away is measured on the scale of the face, so that a picture twice as large gets twice it.
_SIGMA_SHARE = 1 / 128
# Variance of rounding to 8 bits: detail below it is not there for anybody, and no picture has an energy of zero.
_ROUNDING = 1 / (12 * 255**2)


def niqe_toy(restored: Tensor, target: Tensor | None = None, pristine: Pristine | None = None) -> Tensor:
    """NIQE with clean drawn faces in the place of natural photographs (Mittal et al., 2013, equation 10).

    D = sqrt((m - n)^T ((M + N) / 2)^-1 (m - n)), with mean and covariance m, M of the pristine patches and n, N of the
    picture's own. Patches without any structure are left out of n and N, as they carry no statistics.

    Args:
        restored: (B, 3, 128, 128) in [0, 1] (or of the side of `pristine`).
        target: not looked at.
        pristine: other statistics, see `refbfr_core.metrics.pristine.fit_pristine`; the shipped ones if not given.

    Returns:
        (B,) float64, at least 0; the lower, the closer to clean drawn faces.

    Raises:
        ImageContractError: pictures of another size, or without any structure.
        WeightsError: the shipped statistics are missing. MissingExtraError: pyiqa is not installed.
    """
    pristine = load_pristine() if pristine is None else pristine
    if restored.shape[-2:] != (pristine.side, pristine.side):
        raise ImageContractError(
            f"niqe-toy has statistics of {pristine.side} x {pristine.side} pictures, got {tuple(restored.shape[-2:])}; "
            "they change with the size: resize the pictures, or pass pristine=fit_pristine(clean pictures)."
        )
    patches = describe_patches(restored, pristine.patch)
    described = patches.described
    empty = (~described.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ImageContractError(f"the pictures {empty} have no structure, so niqe-toy says nothing about them.")
    mean, covariance = pristine.mean.to(patches.features), pristine.covariance.to(patches.features)
    scores = [_distance(mean, covariance, rows[kept]) for rows, kept in zip(patches.features, described, strict=True)]
    return torch.stack(scores)


def detail(restored: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much detail a restored face has, compared with the true picture: 10 log10(E(restored) / E(target)) in dB.

    E is the mean square, over the face, of what a Gaussian blur with sigma 1/128 of the side takes away from the luma,
    plus the variance of 8-bit rounding. 0 dB: as much detail as the truth; -6 dB: half its amplitude, too soft; above
    0: too busy (noise, artefacts, oversharpening). It does not say whether the detail sits in the right places: the
    mean over many faces is about amount only, and errors of both signs cancel in it.

    Args:
        restored, target: (B, 3, H, W) in [0, 1], aligned faces, sides at least 32 pixels.
        mask: (B, 1, H, W) weights in [0, 1] of the pixels that count, such as the renderer's `face_mask`. Default: a
            box inside most aligned faces, rows 1/3 to 7/8 and columns 1/3 to 2/3.

    Returns:
        (B,) float64; exactly 0 for identical pictures.

    Raises:
        ImageContractError: pictures below 32 pixels. ConfigError: a mask of another shape, outside [0, 1] or empty.
        MissingExtraError: torchvision is not installed.
    """
    height, width = target.shape[-2:]
    if min(height, width) < 32:
        raise ImageContractError(f"detail needs pictures of at least 32 x 32 pixels, got {height} x {width}.")
    weights = _face_box(target) if mask is None else checked_mask(mask, target)
    energies = [
        ((_high_frequencies(images) ** 2 * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))) + _ROUNDING
        for images in (restored, target)
    ]
    return 10.0 * torch.log10(energies[0] / energies[1])


def _high_frequencies(images: Tensor) -> Tensor:
    """(B, 1, H, W) float64: the luma less its Gaussian blur."""
    try:
        from torchvision.transforms.functional import gaussian_blur
    except ImportError as error:
        raise missing_extra("torchvision", "metrics", "the metric detail") from error
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device).view(1, 3, 1, 1)
    luma = (images.double() * weights).sum(dim=1, keepdim=True)
    sigma = max(images.shape[-2:]) * _SIGMA_SHARE
    return luma - gaussian_blur(luma, kernel_size=2 * round(3 * sigma + 0.5) + 1, sigma=sigma)


def _face_box(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    box = torch.zeros(len(images), 1, height, width, dtype=torch.float64, device=images.device)
    box[..., height // 3 : height * 7 // 8, width // 3 : width * 2 // 3] = 1
    return box


def _distance(mean: Tensor, covariance: Tensor, rows: Tensor) -> Tensor:
    """Equation 10; a single patch has no covariance and counts with zero."""
    own = rows.T.cov() if len(rows) > 1 else torch.zeros_like(covariance)
    difference = mean - rows.mean(dim=0)
    return (difference @ torch.linalg.pinv((covariance + own) / 2, hermitian=True) @ difference).clamp_min(0).sqrt()
