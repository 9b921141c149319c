"""Curves of the face - lids, brows, lips, jaw - shared by the painters and by the exact landmarks."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .fields import hill, rotate2d


def eye_frame(a: Tensor, b: Tensor, t: SimpleNamespace, side: Tensor) -> tuple[Tensor, Tensor]:
    """Eye coordinates ``(u, v)``: ``u`` from -1 (inner corner) to 1 (outer), ``v`` upwards in map units.

    ``side`` is -1 for the eye on the left of the picture and +1 for the right one.
    """
    tilt = t.eye_tilt + 0.04 * t.i("asymmetry_eye") * side
    x, y = rotate2d(side * a - t.eye_a, b - t.eye_b - 0.010 * t.i("asymmetry_eye") * side, tilt)
    return x / t.eye_w, y


def lid_curves(u: Tensor, t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Heights ``v`` of the upper and the lower lid over ``u``; they meet at the corners."""
    arc = (1 - u * u).clamp(min=0)
    upper = t.eye_open * 1.18 * arc**0.62 * (1 + 0.16 * u * t.i("eye_tilt") - 0.10 * u)
    lower = -t.eye_open * 0.62 * arc**0.8 * (1 + 0.14 * u)
    return upper, lower


def brow_curve(u: Tensor, t: SimpleNamespace) -> Tensor:
    """Height ``v`` (relative to ``brow_b``) of the middle of a brow over ``u`` from -1 (inner end) to 1."""
    arch = t.brow_arch * (1 - ((u - 0.25) / 1.25) ** 2) + t.brow_raise
    return arch + torch.tan(t.brow_tilt) * t.brow_w * u - 0.045 * t.brow_frown * (1 - u) * 0.5


def brow_thickness(u: Tensor, t: SimpleNamespace) -> Tensor:
    """Half-thickness of a brow over ``u``: full inside, tapering to the tail."""
    return (
        t.brow_t
        * (1 - 0.72 * ((u + 0.35).clamp(min=0) / 1.35) ** 1.6)
        * (1 - ((-u - 0.72).clamp(min=0) / 0.28) ** 2).clamp(min=0.05)
    )


def lip_curves(a: Tensor, t: SimpleNamespace) -> SimpleNamespace:
    """Lip boundaries over ``a``: ``upper``, ``upper_inner``, ``line``, ``lower_inner``, ``lower`` (heights in the map).

    ``u`` is ``a`` in half-widths of the mouth; ``lower_mid`` is the lowest point of the lower lip.
    """
    u = (a / t.mouth_w).clamp(-1.25, 1.25)
    arc = (1 - u * u).clamp(min=0)
    lift = 0.055 * t.smile + t.mouth_corner
    line = t.mouth_b + lift * u * u + 0.012 * t.i("asymmetry_mouth") * u
    gap_up, gap_lo = 0.30 * t.gap * arc**0.7, 0.70 * t.gap * arc**0.7
    bow = 1 - t.cupid * hill((u / 0.14) ** 2) + 0.22 * hill(((u.abs() - 0.30) / 0.20) ** 2)
    thin = 1 - 0.28 * t.smile.clamp(min=0)
    upper_inner = line + gap_up
    lower_inner = line - gap_lo
    return SimpleNamespace(
        u=u,
        line=line,
        upper_inner=upper_inner,
        lower_inner=lower_inner,
        upper=upper_inner + t.lip_up * thin * arc**0.75 * bow,
        lower=lower_inner - t.lip_lo * thin * arc**0.62,
        lower_mid=t.mouth_b - 0.70 * t.gap - t.lip_lo,
    )


def jaw_point(position: Tensor, t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Map coordinates of the face contour; ``position`` runs from -1 (left ear) over 0 (chin) to 1 (right ear)."""
    angle = position * 1.5707963
    side, down = torch.sin(angle), torch.cos(angle)
    return 1.17 * torch.sign(side) * side.abs() ** 0.92, 0.06 - 1.16 * down**0.95
