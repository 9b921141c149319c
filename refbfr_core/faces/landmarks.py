"""Exact landmarks: 98 points in the order of the WFLW annotation, on the drawn head's own curves."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .curves import brow_curve, brow_thickness, jaw_point, lid_curves, lip_curves
from .eyes import eyeball_centres, gaze_direction
from .fields import direction, look_up
from .surface import Surface

GROUPS: dict[str, slice] = {
    "contour": slice(0, 33),
    "brow_left": slice(33, 42),
    "brow_right": slice(42, 51),
    "nose_bridge": slice(51, 55),
    "nose_base": slice(55, 60),
    "eye_left": slice(60, 68),
    "eye_right": slice(68, 76),
    "lips_outer": slice(76, 88),
    "lips_inner": slice(88, 96),
    "pupils": slice(96, 98),
}
"""Slices of the 98 points; left and right are those of the picture."""


def _row(*values: float, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, 1, 1, -1)


def _brow(t: SimpleNamespace, side: float) -> tuple[Tensor, Tensor]:
    order = (1.0, 0.5, 0.0, -0.5, -1.0, -1.0, -0.5, 0.0, 0.5)
    u = _row(*(order if side < 0 else (-1.0, -0.5, 0.0, 0.5, 1.0, 0.5, 0.0, -0.5, -1.0)), like=t.tone)
    sign = _row(*((1, 1, 1, 1, 1, -1, -1, -1, -1) if side < 0 else (1, 1, 1, 1, 1, -1, -1, -1, -1)), like=t.tone)
    v = brow_curve(u, t) + sign * brow_thickness(u, t)
    return side * (u * t.brow_w + t.eye_a + 0.01), v + t.brow_b + 0.012 * t.i("asymmetry_eye") * side


def _eye(t: SimpleNamespace, side: float) -> tuple[Tensor, Tensor]:
    start = 1.0 if side < 0 else -1.0
    u = _row(start, start * 0.5, 0.0, -start * 0.5, -start, -start * 0.5, 0.0, start * 0.5, like=t.tone)
    upper, lower = lid_curves(u, t)
    v = torch.where(_row(1, 1, 1, 1, 1, 0, 0, 0, like=t.tone) > 0, upper, lower)
    tilt = t.eye_tilt + 0.04 * t.i("asymmetry_eye") * side
    x, y = u * t.eye_w, v
    c, s = torch.cos(tilt), torch.sin(tilt)
    return side * (c * x - s * y + t.eye_a), s * x + c * y + t.eye_b + 0.010 * t.i("asymmetry_eye") * side


def _mouth(t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    outer = _row(-1.0, -0.62, -0.25, 0.0, 0.25, 0.62, 1.0, 0.62, 0.25, 0.0, -0.25, -0.62, like=t.tone) * t.mouth_w
    c = lip_curves(outer, t)
    top = _row(1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, like=t.tone) > 0
    inner = _row(-0.85, -0.4, 0.0, 0.4, 0.85, 0.4, 0.0, -0.4, like=t.tone) * t.mouth_w
    d = lip_curves(inner, t)
    inner_top = _row(1, 1, 1, 1, 1, 0, 0, 0, like=t.tone) > 0
    return (
        torch.cat([outer, inner], -1),
        torch.cat([torch.where(top, c.upper, c.lower), torch.where(inner_top, d.upper_inner, d.lower_inner)], -1),
    )


def landmarks_3d(t: SimpleNamespace, surface: Surface) -> Tensor:
    """The 98 points in head space, ``(B, 98, 3)``: on the skin (not on hair), pupils on the eyeballs."""
    ones = torch.ones_like(t.tone)
    contour = jaw_point(torch.linspace(-1, 1, 33, device=t.tone.device).view(1, 1, 1, -1), t)
    line = torch.linspace(0, 1, 4, device=t.tone.device).view(1, 1, 1, -1)
    bridge = (t.nose_side * line, torch.lerp(t.eye_b + 0.02, t.nose_base + 0.075, line))
    across = _row(-1.0, -0.5, 0.0, 0.5, 1.0, like=t.tone)
    base = (t.nose_side + across * t.nose_w, t.nose_base + 0.02 * across.abs() - 0.005 * (1 - across.abs()))
    parts = [contour, _brow(t, -1.0), _brow(t, 1.0), bridge, base, _eye(t, -1.0), _eye(t, 1.0), _mouth(t)]
    a = torch.cat([p[0] * ones for p in parts], -1)
    b = torch.cat([p[1] * ones for p in parts], -1)
    d = torch.cat(direction(a, b), 1) * look_up(surface.skin, a, b)
    points = d.squeeze(2).transpose(1, 2)
    pupils = eyeball_centres(t, surface.skin) + 0.175 * gaze_direction(t)[:, None]
    return torch.cat([points, pupils], 1)
