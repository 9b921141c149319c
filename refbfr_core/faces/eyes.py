"""Eyes: lids, lashes, and an eyeball met by the ray behind the opening, so that gaze and parallax are right."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .curves import eye_frame, lid_curves
from .fields import NoiseBank, bump, direction, edge, hill, look_up, smooth, unit
from .skin import rgb

_BALL = 0.175  # radius of the eyeball, head units (a little larger than life)
IRIS = 0.54  # radius of the iris on the unit eyeball
PUPIL = 0.23


def eyeball_centres(t: SimpleNamespace, skin_radius: Tensor) -> Tensor:
    """Centres of the left and right eyeball in head space, ``(B, 2, 3)``; ``skin_radius`` is the radius texture."""
    centres = []
    for side in (-1.0, 1.0):
        a, b = side * t.eye_a, t.eye_b + 0.010 * t.i("asymmetry_eye") * side
        d = torch.cat(direction(a, b), 1)
        centres.append((d * (look_up(skin_radius, a, b) - 0.015) - rgb(0, 0, 1, a) * _BALL).flatten(1))
    return torch.stack(centres, 1)


def gaze_direction(t: SimpleNamespace) -> Tensor:
    """Unit gaze in head space ``(B, 3)``: partly towards the camera, as people look, plus the view's own gaze."""
    x = torch.sin(t.gaze_x - 0.55 * t.yaw)
    y = torch.sin(t.gaze_y + 0.5 * t.pitch)
    return F.normalize(torch.cat([x, y, torch.sqrt((1 - x * x - y * y).clamp(min=0.1))], 1).flatten(1), dim=1)


def paint_eyes(skin: Tensor, normal: Tensor, w: SimpleNamespace, t: SimpleNamespace, centres: Tensor, noise: NoiseBank):
    """Eyes over a window of the picture.

    ``skin`` and ``normal`` ``(B, 3, h, w)``; ``w`` holds the window's ``a, b, origin, slope``. Returns colour, normal,
    eye coverage ``(B, 1, h, w)`` and the shade of the upper lid on the eyeball.
    """
    a, b = w.a, w.b
    side = torch.where(a < 0, -1.0, 1.0)
    u, v = eye_frame(a, b, t, side)
    clamped = u.clamp(-1, 1)
    upper, lower = lid_curves(clamped, t)
    inside = torch.minimum(upper - v, v - lower)
    opening = edge(torch.minimum(inside, (1 - u.abs()) * t.eye_w), 0.018)

    centre = torch.where(a < 0, centres[:, 0, :, None, None], centres[:, 1, :, None, None])
    ball, hit_normal = _ball(w, centre)
    gaze = gaze_direction(t)[:, :, None, None]
    across = torch.linalg.cross(hit_normal, gaze.expand_as(hit_normal), dim=1)
    rho = torch.sqrt((across * across).sum(1, keepdim=True))
    rho = torch.where((hit_normal * gaze).sum(1, keepdim=True) > 0, rho, torch.ones_like(rho))

    angle = torch.atan2(across[:, 1:2], across[:, :1])
    fibres = noise("strand", angle * (2 / 6.2832) + t.i("noise_v"), rho * 0.1)[:, :1]
    iris = t.iris * (1 + 0.13 * fibres) * (0.75 + 0.6 * smooth(rho, PUPIL, IRIS))
    iris = iris * (1 - t.iris_ring * smooth(rho, IRIS * 0.78, IRIS * 0.98))
    eye = rgb(0.90, 0.86, 0.83, a) * (1 - 0.25 * smooth(u.abs(), 0.45, 1.0))
    eye = torch.lerp(eye, rgb(0.55, 0.25, 0.22, a), 0.65 * edge(-u - 0.90, 0.12))
    eye = torch.lerp(eye, iris, edge(IRIS - rho, 0.09))
    eye = torch.lerp(eye, torch.zeros_like(eye), edge(PUPIL - rho, 0.09) * 0.97)
    shade = 1 - 0.45 * smooth(upper - v, 0.055, 0.0) - 0.15 * smooth(v - lower, 0.02, 0.0)

    line = hill(((v - upper - 0.004) / 0.0125) ** 2) * edge(1.10 - u.abs(), 0.12)
    low_line = hill(((v - lower) / 0.010) ** 2) * edge(1.0 - u.abs(), 0.1)
    fan = smooth(u, -0.6, 0.9)
    lash = edge(0.012 + 0.030 * fan * t.lash * (0.6 + 0.4 * torch.cos(u * 42)) - (v - upper - 0.012).abs(), 0.02)
    lash = lash * edge(1.16 - u.abs(), 0.10) * t.lash
    crease_gap = 0.034 + 0.022 * t.i.chance("eye_open")
    crease = hill(((v - upper - crease_gap) / 0.012) ** 2) * edge(1.12 - u.abs(), 0.2) * (0.12 + 0.42 * t.lid_crease)
    bag = bump(u, v, 0.0, -t.eye_open * 0.62 - 0.055, 0.8, 0.012) * (0.05 + 0.30 * smooth(t.age, 0.3, 1.0))
    shadow_tone = (
        smooth(-t.masc, 0.2, 0.6)
        * t.lipstick
        * 0.5
        * smooth(v - upper, 0.09, 0.0)
        * edge(v - upper, 0.03)
        * edge(1.1 - u.abs(), 0.2)
    )

    dark = rgb(0.018, 0.013, 0.012, a)
    out = skin * (1 - (crease + bag).clamp(0, 0.7) * (1 - rgb(0.45, 0.36, 0.34, a)))
    out = torch.lerp(out, out * rgb(0.55, 0.42, 0.46, a), shadow_tone)
    out = torch.lerp(out, eye, opening)
    out = torch.lerp(out, out * 0.45, 0.55 * low_line)
    out = torch.lerp(out, dark, (0.50 + 0.45 * t.lash) * line)
    out = torch.lerp(out, dark, 0.85 * lash.clamp(0, 1))
    covered = opening * (1 - line)
    return out, torch.lerp(normal, hit_normal, covered), covered, torch.lerp(torch.ones_like(shade), shade, opening)


def _ball(w: SimpleNamespace, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Point of the ray on the eyeball (nearest approach where it misses) and the unit normal there."""
    q = w.origin - centre
    aa = (w.slope * w.slope).sum(1, keepdim=True)
    bb = (q * w.slope).sum(1, keepdim=True)
    cc = (q * q).sum(1, keepdim=True) - _BALL**2
    z = (-bb + torch.sqrt((bb * bb - aa * cc).clamp(min=0))) / aa
    point = w.origin + z * w.slope
    return point, unit(point - centre)
