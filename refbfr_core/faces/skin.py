"""Skin: colour, flush, freckles, moles, scar, wrinkles, brows and beard, painted at each pixel's map coordinates."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .curves import brow_curve, brow_thickness
from .fields import NoiseBank, bump, edge, rotate2d, smooth
from .hair import beard_cover
from .identity import MOLES


def rgb(r: float, g: float, b: float, like: Tensor) -> Tensor:
    """Constant colour ``(1, 3, 1, 1)`` on the device of ``like``."""
    return torch.tensor([r, g, b], device=like.device).view(1, 3, 1, 1)


def paint_skin(a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank) -> Tensor:
    """Linear-light skin colour ``(B, 3, H, W)`` without brows, beard, eyes and lips."""
    u, v = t.i("noise_u"), t.i("noise_v")
    s = a.abs()
    blotch = noise("soft", a * 0.30 + u, b * 0.30 + v)
    skin = t.skin * (1 + 0.035 * blotch[:, :1])
    flush = 0.55 * bump(s, b, 0.50, -0.28, 0.26, 0.20) + 0.40 * bump(a, b, 0.0, t.nose_base + 0.07, 0.14, 0.10)
    flush = flush + 0.30 * bump(s, b, 1.46, t.ear_b, 0.25, 0.35) + 0.20 * bump(a, b, 0.0, -1.0, 0.2, 0.12)
    make_up = smooth(-t.masc, 0.1, 0.5) * t.i("blush", 0.0, 0.5) * bump(s, b, 0.62, -0.20, 0.20, 0.13)
    warm = ((flush * t.flush + make_up) * (1 + 0.25 * blotch[:, 1:])).clamp(0, 1.2)
    skin = skin * (1 - warm * (1 - rgb(1.02, 0.70, 0.68, a)))
    # thin, shaded skin around the eyes; nostrils; folds of age
    ring = bump(s, b, t.eye_a - 0.01, t.eye_b - 0.095, 0.14, 0.055) * t.under_eye * (0.7 + 0.6 * t.age)
    ring = ring + 0.30 * bump(s, b, t.eye_a, t.eye_b + 0.07, 0.17, 0.05)
    skin = skin * (1 - ring * (1 - rgb(0.74, 0.66, 0.70, a)))
    x = (a - t.nose_side).abs()
    nostril = bump(x, b, t.nose_w * 0.50, t.nose_base + 0.004, t.nose_w * 0.26, 0.020)
    under = 0.30 * bump(x, b, 0.0, t.nose_base - 0.010, t.nose_w * 0.85, 0.03)
    wing = 0.28 * bump(x, b, t.nose_w * 1.12, t.nose_base + 0.035, 0.022, 0.05)
    skin = skin * (1 - (0.85 * nostril + under + wing).clamp(0, 0.9))
    lines = torch.zeros_like(a)
    for k, height in enumerate((0.47, 0.575, 0.68)):
        lines = lines + bump(s, b + 0.012 * blotch[:, :1] - 0.03 * s, 0.0, height, 0.52 - 0.04 * k, 0.013)
    frown = bump((s - 0.055).abs(), b, 0.0, t.brow_b + 0.01, 0.013, 0.07) * (0.3 + 0.7 * t.brow_frown)
    creases = (lines * (0.6 + 3.0 * t.brow_raise.clamp(min=0)) + frown) * smooth(t.age, 0.25, 1.0)
    skin = skin * (1 - 0.26 * creases.clamp(0, 1))
    return _marks(skin, a, b, t, noise)


def _marks(skin: Tensor, a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank) -> Tensor:
    u, v = t.i("noise_u"), t.i("noise_v")
    scale = t.freckle_scale * 0.1
    spots = noise("grain", a * scale + v, b * scale + u)[:, :1]
    zone = bump(a, b, 0.0, -0.08, 0.75, 0.35) + 0.35 * bump(a, b, 0.0, 0.55, 0.6, 0.25)
    freckle = smooth(spots, 1.25, 1.9) * zone.clamp(0, 1) * t.freckles * 0.75
    skin = skin * (1 - freckle * (1 - rgb(0.62, 0.42, 0.30, a)))
    mole_colour = t.skin * rgb(0.30, 0.20, 0.16, a)
    for k in range(MOLES):
        size = t.i(f"mole{k}_size")
        radius = 0.020 + 0.022 * size.clamp(min=0)
        r = torch.sqrt((a - 0.72 * t.i(f"mole{k}_a")) ** 2 + (b + 0.16 - 0.80 * t.i(f"mole{k}_b")) ** 2)
        skin = torch.lerp(skin, mole_colour, 0.9 * edge(radius - r, 0.016) * (size > 0.05))
    x, y = rotate2d(a - 0.65 * t.i("scar_a"), b + 0.1 - 0.7 * t.i("scar_b"), 3.14 * t.i("scar_angle"))
    length = 0.05 + 0.16 * t.i("scar_length").clamp(min=0)
    scar = edge(0.011 - y.abs(), 0.012) * edge(length - x.abs(), 0.05) * (t.i("scar_length") > 0.55)
    return skin * (1 + scar * (rgb(1.25, 1.05, 1.05, a) - 1))


def paint_beard(skin: Tensor, a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank) -> tuple[Tensor, Tensor]:
    """Beard and stubble over skin; also returns the coverage ``(B, 1, H, W)``, which takes the gloss away."""
    cover = beard_cover(a, b, t)
    speck = noise("grain", a * 1.05 + t.i("noise_v"), b * 0.60 + t.i("noise_u"))[:, :1]
    dense = smooth(t.beard_density, 0.4, 0.8)
    alpha = (cover * torch.lerp(0.62 + 0.42 * speck, 0.92 + 0.10 * speck, dense)).clamp(0, 1)
    tone = torch.lerp(t.hair, t.skin * 0.2, 0.25) * (1 + 0.28 * speck * dense)
    return torch.lerp(skin, tone.clamp(min=0), alpha), alpha


def paint_brows(skin: Tensor, a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank) -> Tensor:
    """Brows of slanted strands over skin ``(B, 3, h, w)``."""
    side = torch.where(a < 0, -1.0, 1.0)
    u = (side * a - t.eye_a - 0.01) / t.brow_w
    v = b - t.brow_b - 0.012 * t.i("asymmetry_eye") * side
    inside = u.clamp(-1, 1)
    middle, half = brow_curve(inside, t), brow_thickness(inside, t)
    hairs = noise("strand", u * 0.16 + v * 1.3 + t.i("noise_u"), v * 0.5 - u * 0.08)[:, :1]
    gap = half * (1 + 0.22 * hairs) - (v - middle).abs()
    cover = edge(gap, half * 0.85) * edge(1.03 - u.abs(), 0.12)
    alpha = (cover * (0.90 + 0.16 * hairs)).clamp(0, 1) * (0.62 + 0.38 * t.i.chance("brow_thickness"))
    return torch.lerp(skin, t.brow_colour, alpha)
