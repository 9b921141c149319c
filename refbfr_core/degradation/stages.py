"""The stages of blind face degradation as pure functions on one picture.

Every paper of this workbook ruins a face by the same chain, written y = {[(x * k) down_r + n]_JPEG} up_r
(PDGrad eq. 27, LD-BFR eq. 7, DiffMAC eq. 14; ReF-LDM uses the same chain). Each function here is one sign of that
formula. None of them draws a parameter: what is random is drawn in :mod:`refbfr_core.degradation.draws` and handed
over, so that a picture can be ruined in exactly the same way again.

A picture is a float array of shape (H, W, 3), RGB, in [0, 1]. The arithmetic is that of the released ReF-LDM code:
float64 up to the JPEG coder, float32 after it. That code works in BGR; only the JPEG coder can tell the difference,
so :func:`jpeg` swaps the channels for the coder and nobody else needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import cv2
import numpy as np

from refbfr_core.errors import ConfigError, unknown_name

INTERPOLATIONS: Mapping[str, int] = MappingProxyType(
    {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
    }
)

# Below this width a Gaussian on an integer grid is a single 1 to the last bit of float64; the floor keeps 0/0 out of
# the formula.
_SMALLEST_SIGMA = 1e-6
# More photons than this at white leave less than 1e-6 of noise: invisible in float32, and beyond what the sampler
# accepts soon after.
_MOST_PHOTONS = 1e12


def gaussian_kernel(sigma_x: float, sigma_y: float, rotation: float = 0.0, size: int = 41) -> np.ndarray:
    """Rotated Gaussian blur kernel k, normalised to sum 1.

    density(p) = exp(-p^T S^-1 p / 2), S = R diag(sigma_x^2, sigma_y^2) R^T, on the grid -size//2 … size//2.

    Args:
        sigma_x, sigma_y: widths in pixels along the two axes, at least 0; 0 means no blur along that axis.
        rotation: angle of the first axis in radians.
        size: side of the kernel in pixels, odd (an even one would shift the picture by half a pixel).

    Returns:
        float64 array (size, size).

    Raises:
        ConfigError: negative or non-finite widths, or an even size.
    """
    if not (np.isfinite([sigma_x, sigma_y, rotation]).all() and min(sigma_x, sigma_y) >= 0):
        raise ConfigError(
            f"blur widths must be finite and >= 0, got sigma_x={sigma_x}, sigma_y={sigma_y}, rotation={rotation}"
        )
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"the kernel size must be an odd number of pixels, got {size}; use {max(size, 0) + 1}")
    half = np.arange(size, dtype=np.float64) - size // 2
    y, x = np.meshgrid(half, half, indexing="ij")
    along = (np.cos(rotation) * x + np.sin(rotation) * y) / max(sigma_x, _SMALLEST_SIGMA)
    across = (-np.sin(rotation) * x + np.cos(rotation) * y) / max(sigma_y, _SMALLEST_SIGMA)
    density = np.exp(-0.5 * (along**2 + across**2))
    return density / density.sum()


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """x * k: correlation in float64, the border mirrored without repeating the edge pixel; nothing is clipped.

    Args:
        image: (H, W, 3).
        kernel: (size, size) from :func:`gaussian_kernel`; may be larger than the picture.
    """
    return cv2.filter2D(np.ascontiguousarray(image, dtype=np.float64), -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def low_resolution_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width after division by ``scale``, rounded down as in the ReF-LDM release, but at least one pixel."""
    return max(1, int(height / scale)), max(1, int(width / scale))


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """Resize without antialiasing (down_r and up_r); keeps the dtype; "bicubic" may overshoot [0, 1].

    The missing antialiasing belongs to the recipe: with r > 2 a bilinear filter skips pixels, and the aliasing that
    the blur before it did not prevent is part of the damage.
    """
    if interpolation not in INTERPOLATIONS:
        raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=INTERPOLATIONS[interpolation])


def gaussian_noise(height: int, width: int, sigma: float, seed: int) -> np.ndarray:
    """n_delta ~ N(0, (sigma/255)^2), independent for each pixel and channel.

    The legacy generator is used on purpose: its stream is frozen, so a stored record gives the same noise with any
    later NumPy.

    Returns:
        float32 (height, width, 3) in units of the picture (already divided by 255); the unit draw is float32 as in
        the release.
    """
    unit = np.random.RandomState(seed % 2**32).standard_normal((height, width, 3)).astype(np.float32)
    return unit * np.float32(sigma) / np.float32(255.0)


def poisson_noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Shot noise: n = Poisson(x P)/P - x with P = (255/sigma)^2 photons at white.

    LD-BFR names Poisson noise beside Gaussian noise and gives one range for both (eq. 7). This parameterisation, which
    is a choice made here, puts both on that axis: the standard deviation at intensity x is sqrt(x) sigma/255, hence
    sigma grey levels at white and none at black.

    Returns:
        float32 (H, W, 3), to be added by :func:`add_noise`. The expected photon count is taken from the picture
        clipped to [0, 1].
    """
    if sigma <= 0 or (255.0 / sigma) ** 2 > _MOST_PHOTONS:
        return np.zeros(image.shape, dtype=np.float32)
    photons = (255.0 / sigma) ** 2
    expected = np.clip(image, 0.0, 1.0)
    counts = np.random.RandomState(seed % 2**32).poisson(expected * photons)
    return (counts / photons - expected).astype(np.float32)


def add_noise(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """x + n, clipped to [0, 1], not rounded."""
    return np.clip(image + noise, 0.0, 1.0)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """[.]_JPEG_q: round to 8 bits (half to even), encode with 4:2:0 chroma, decode.

    Args:
        image: (H, W, 3) RGB; clipped to [0, 1] first.
        quality: integer 0 … 100. The release draws a float and keeps its integer part (so the upper end 100 is never
            reached); that is done where it is drawn, and the record holds both numbers.

    Returns:
        float32 (H, W, 3) on the grid of 255ths.
    """
    if not 0 <= quality <= 100:
        raise ConfigError(f"JPEG quality must be between 0 and 100, got {quality}")
    grey_levels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    written, stream = cv2.imencode(
        ".jpg", np.ascontiguousarray(grey_levels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    )
    if not written:
        raise ConfigError(f"the JPEG coder refused a picture of shape {image.shape} at quality {quality}")
    decoded = cv2.imdecode(stream, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1]).astype(np.float32) / np.float32(255.0)


def round_to_grey_levels(image: np.ndarray) -> np.ndarray:
    """The last step: round to 255ths (half to even) and clip, but stay float32.

    The released dataset never casts to uint8; it hands on floats that happen to be whole grey levels. Kept, because
    it makes a picture straight from here equal to the same picture saved as PNG and read again. (The authors' published
    test pictures were cut down to uint8 instead of rounded, and so are up to one level darker.)
    """
    return (np.clip(np.rint(image.astype(np.float32) * np.float32(255.0)), 0, 255) / np.float32(255.0)).astype(
        np.float32
    )
