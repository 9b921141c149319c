"""Small shared mathematics of the drawn faces: smooth masks, periodic noise and texture look-ups.

Every function works on tensors of shape ``(B, 1, H, W)`` (or any shapes that broadcast), keeps their dtype and device,
and has no state.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TEXTURE_LIMIT = 1.9  # half-width of the square azimuthal map; the visible head never reaches beyond it


def edge(distance: Tensor, width: float | Tensor) -> Tensor:
    """Coverage in [0, 1] of a shape whose signed distance (positive inside) is ``distance``; linear over ``width``."""
    return (distance / width + 0.5).clamp(0, 1)


def smooth(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Cubic step from 0 at ``low`` to 1 at ``high`` (which may be the smaller of the two)."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(a: Tensor, b: Tensor, a0, b0, sa, sb) -> Tensor:
    """Gaussian hill of height 1 at ``(a0, b0)`` with widths ``sa`` and ``sb``."""
    return hill(((a - a0) / sa) ** 2 + ((b - b0) / sb) ** 2)


def hill(square: Tensor) -> Tensor:
    """``exp(-square)``, cut off where it no longer shows: denormal numbers would slow the processor down a lot."""
    return torch.exp(-square.clamp(max=25.0))


def unit(vector: Tensor) -> Tensor:
    """Vectors along dimension 1 scaled to length one (several times faster than the general norm on strided data)."""
    return vector * torch.rsqrt((vector * vector).sum(1, keepdim=True).clamp(min=1e-12))


def soft_max(x: Tensor, y: Tensor, k: float | Tensor) -> Tensor:
    """Maximum of two surfaces with a rounded seam of size ``k``."""
    d = x - y
    return 0.5 * (x + y + torch.sqrt(d * d + k * k))


def srgb_to_linear(x: Tensor) -> Tensor:
    """sRGB in [0, 1] to linear light (pure 2.2 power: the exact toe does not matter for drawings)."""
    return x.clamp(min=1e-4) ** 2.2


def direction(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit direction of a point ``(a, b)`` of the Lambert azimuthal equal-area map centred on the front of the head."""
    r2 = (a * a + b * b).clamp(max=3.99)
    s = torch.sqrt(1 - 0.25 * r2)
    return a * s, b * s, 1 - 0.5 * r2


def map_coordinates(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of :func:`direction` for any point: ``(a, b, distance from the origin)``."""
    n = torch.sqrt(x * x + y * y + z * z).clamp(min=1e-6)
    s = torch.sqrt(2 / (n * (n + z)).clamp(min=1e-4))
    return x * s, y * s, n


def texture_grid(size: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Map coordinates ``a`` and ``b`` of the texel centres, each ``(1, 1, size, size)``; ``b`` grows with the row."""
    line = torch.linspace(-TEXTURE_LIMIT, TEXTURE_LIMIT, size, device=device)
    b, a = torch.meshgrid(line, line, indexing="ij")
    return a[None, None], b[None, None]


def look_up(texture: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Bilinear sample of a map texture ``(B, C, T, T)`` at map coordinates ``(B, 1, H, W)`` -> ``(B, C, H, W)``."""
    grid = torch.cat([a, b], 1).permute(0, 2, 3, 1) * (1 / TEXTURE_LIMIT)
    return F.grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=True)


class NoiseBank:
    """Periodic noise textures made once from a fixed seed; an immutable resource passed to the painters.

    ``soft``: two octaves-balanced fields for blotches and clouds; ``grain``: two finer fields; ``strand``: two fields
    stretched along the second axis, for hair. All have zero mean and unit variance, and wrap around without a seam
    because they are shaped in Fourier space.
    """

    def __init__(self, size: int = 256, seed: int = 20241, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        f = torch.fft.fftfreq(size) * size
        fy, fx = torch.meshgrid(f, f, indexing="ij")
        radius = torch.sqrt(fx * fx + fy * fy).clamp(min=1)

        def field(gain: Tensor) -> Tensor:
            white = torch.randn(2, size, size, generator=generator)
            out = torch.fft.ifft2(torch.fft.fft2(white) * gain).real
            out = (out - out.mean((1, 2), keepdim=True)) / out.std((1, 2), keepdim=True)
            return F.pad(out[None], (0, 1, 0, 1), mode="circular").to(device)

        self.soft = field(radius**-1.6 * torch.exp(-((radius / 20) ** 2)))
        self.grain = field(radius**0.5 * torch.exp(-((radius / 34) ** 2)))
        along, across = fy.abs(), fx.abs()
        self.strand = field(torch.exp(-((along / 2.5) ** 2)) * torch.exp(-((across / 56) ** 2)) * (across > 2))

    def __call__(self, name: str, u: Tensor, v: Tensor) -> Tensor:
        """Two noise channels ``(B, 2, H, W)`` of texture ``name`` at coordinates of period 1."""
        texture = getattr(self, name)
        grid = torch.cat([u - torch.floor(u), v - torch.floor(v)], 1).permute(0, 2, 3, 1) * 2 - 1
        return F.grid_sample(
            texture.expand(u.shape[0], -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=True
        )


def rotate2d(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame turned by ``angle`` radians (counter-clockwise)."""
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x + s * y, c * y - s * x


def degrees(x: float) -> float:
    """Degrees to radians."""
    return x * math.pi / 180
