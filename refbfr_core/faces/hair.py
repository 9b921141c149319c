"""Hair and beard: where they grow, how thick they stand, and the flow of their strands."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from .fields import NoiseBank, bump, edge, smooth

_CROWN_B = 1.02  # map height of the point from which strands flow


def hairline(a: Tensor, b: Tensor, t: SimpleNamespace) -> Tensor:
    """Signed distance (positive: hair) to the edge of the hair, in map units."""
    s = a.abs()
    top = t.top_line + t.temple * bump(s, b * 0, 0.46, 0.0, 0.24, 1.0)
    below = (-b).clamp(min=0)
    # Long hair closes in towards the jaw and opens again around the neck.
    side = t.side_line - t.cover_ears * (0.10 * smooth(below, 0.1, 0.8)) + 0.06 * t.sway * a
    e = torch.sqrt((s / side) ** 2 + (b.clamp(min=0) / top) ** 2 + 1e-6)
    grows = (e - 1) * 0.9
    # Locks over the forehead: a curtain of hair from the line down to the fringe line, lifted towards the parting.
    lock = t.fringe_line + 0.10 * t.part * a * 4 + 0.22 * bump(a, b * 0, t.part, 0.0, 0.10, 1.0) * t.cover_ears
    fringe = torch.minimum(b - lock, 1.02 * side - s)
    grows = torch.where(t.fringe > 0.5, torch.maximum(grows, fringe), grows)
    # Short hair ends in front of the ear at the sideburn and behind it at the nape.
    nape = torch.where(s > 1.62, torch.full_like(s, -0.55), t.sideburn - 0.0 * s)
    short = torch.minimum(grows, b - nape)
    ear = torch.sqrt(((s - 1.46) / (0.22 * t.ear_size)) ** 2 + ((b - t.ear_b) / (0.33 * t.ear_size)) ** 2) - 1
    short = torch.minimum(short, ear * 0.25)
    neck = torch.maximum(s - 0.80, -b - 1.52)
    long = torch.minimum(grows, torch.where(b < -0.9, neck, torch.full_like(b, 9.0)))
    return torch.where(t.cover_ears > 0.9, long, short)


def flow(a: Tensor, b: Tensor, t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Strand coordinates: ``across`` in turns around the parting, ``along`` the distance from it."""
    x, y = a - 0.9 * t.part, b - _CROWN_B
    along = torch.sqrt(x * x + y * y + 1e-6)
    return torch.atan2(x, -y) / (2 * math.pi), along


def hair_cover(a: Tensor, b: Tensor, d, t: SimpleNamespace, noise: NoiseBank) -> SimpleNamespace:
    """Distance to the hairline and clumps of hair, on the map texture. ``d`` is the direction of each texel."""
    across, along = flow(a, b, t)
    u, v = t.i("noise_u"), t.i("noise_v")
    wave = t.curl * 0.018 * torch.sin(along * 16 + 9 * u + 4 * math.pi * across * 3)
    combed = noise("soft", across * 4 + wave * 4 + u, along * 0.18 + v)[:, :1]
    puffs = noise("soft", a * 0.42 + u, b * 0.42 + v)[:, :1]
    clump = torch.lerp(combed, puffs, smooth(t.curl, 0.85, 1.0))
    jag = noise("soft", across * 9 + v, along * 0.35 + u)[:, 1:]
    return SimpleNamespace(distance=hairline(a, b, t) + 0.011 * jag, clump=clump)


def strands(a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank) -> Tensor:
    """Strand pattern of zero mean, about unit variance: two channels ``(B, 2, H, W)``, fine and clumped."""
    across, along = flow(a, b, t)
    u, v = t.i("noise_u"), t.i("noise_v")
    wave = t.curl * (
        0.012 * torch.sin(along * 16 + 9 * u + 4 * math.pi * across * 3) + 0.005 * torch.sin(along * 31 + 5 * v)
    )
    combed = noise("strand", across * 2 + wave + u, along * 0.22 + v)
    coils = noise("grain", a * 0.55 + u, b * 0.55 + v)
    return torch.lerp(combed, coils * 0.8, smooth(t.curl, 0.85, 1.0))


def beard_cover(a: Tensor, b: Tensor, t: SimpleNamespace) -> Tensor:
    """Density of beard in [0, 1] before strands, from its styles (cheeks, lip, chin)."""
    s = a.abs()
    line = -0.58 + 0.62 * ((s - 0.40) / 0.75).clamp(0, 1) ** 1.9
    inner = smooth(s, t.mouth_w * 0.95, t.mouth_w * 1.35)
    line = torch.lerp(t.mouth_b - t.lip_lo - 0.05 + 0 * s, line, inner)
    jaw = edge(line - b, 0.17) * edge(b + 1.38, 0.12) * edge(1.24 - s, 0.10)
    lip = (
        edge(b - t.mouth_b - t.lip_up * 0.9, 0.03)
        * edge(t.nose_base - 0.015 - b, 0.03)
        * edge(t.mouth_w * 1.10 - s, 0.07)
    )
    corner = edge(0.045 - (s - t.mouth_w * 1.10).abs(), 0.06) * edge(t.nose_base - 0.10 - b, 0.08) * edge(b + 1.30, 0.1)
    chin = edge(t.mouth_b - t.lip_lo - 0.06 - b, 0.06) * edge(b + 1.34, 0.12) * edge(0.26 - s + 0.05, 0.07)
    cover = torch.maximum(
        torch.maximum(t.beard_cheek * torch.maximum(jaw, corner), t.beard_lip * lip),
        t.beard_chin * torch.maximum(chin, corner * t.beard_lip * t.beard_chin),
    )
    return cover * t.beard_density.clamp(max=1.0) * (t.beard > 0)
