"""Everything around the head: background, neck, shoulders and glasses."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .fields import NoiseBank, edge, hill, smooth, unit
from .traits import colour


def paint_background(px: Tensor, py: Tensor, t: SimpleNamespace, noise: NoiseBank) -> Tensor:
    """Out-of-focus background ``(B, 3, H, W)`` in linear light: gradient, clouds or soft blocks."""
    v = t.v
    hue, saturation = v.chance("background_hue"), 0.5 * v.chance("background_saturation") ** 1.5
    value = v("background_value", 0.18, 0.92)
    base = colour(hue, saturation, value)
    other = colour(torch.remainder(hue + 0.12 + 0.2 * v("background_u"), 1), saturation * 0.8, (value * 0.55 + 0.1))
    kind = v.chance("background_kind")
    clouds = noise("soft", px * 0.10 + v("background_u"), py * 0.10 + v("background_v"))
    ramp = 0.5 + 0.30 * (py * v("background_v") + px * v("background_u"))
    blocks = edge(torch.sin(px * 1.7 + 3 * v("background_u")), 0.5) * 0.6 + edge(py - v("background_v"), 0.3) * 0.4
    amount = torch.where(
        kind < 0.4,
        ramp + 0.06 * clouds[:, :1],
        torch.where(kind < 0.75, 0.5 + 0.30 * clouds[:, :1], 0.15 + 0.7 * blocks + 0.08 * clouds[:, 1:]),
    )
    return torch.lerp(base, other, amount.clamp(0, 1)) * (0.75 + 0.25 * v.chance("light_strength"))


def body(px: Tensor, py: Tensor, t: SimpleNamespace, camera) -> SimpleNamespace:
    """Neck and shoulders met by each ray: ``z`` (camera depth, far away where missed), ``normal`` and ``coverage``."""
    turn = 0.45 * t.yaw
    x0 = px - camera.offset[:, 0].view(-1, 1, 1, 1) - 0.10 * torch.sin(t.yaw)
    y0 = py - camera.offset[:, 1].view(-1, 1, 1, 1)
    radius = 0.385 + 0.045 * t.i("neck_width") + 0.03 * t.masc
    flare = 1 + 0.35 * smooth(y0, -1.15, -1.75) ** 2
    xn = (x0 + 0.06 * torch.sin(t.roll) * y0) / (radius * flare)
    depth_n = torch.sqrt((1 - xn * xn).clamp(min=0))
    neck_z = torch.where(
        (xn.abs() < 1) & (y0 < -0.35), -0.30 + 0.80 * radius * depth_n - 0.10 * (y0 + 1), torch.full_like(x0, -9.0)
    )
    neck_normal = torch.cat([xn, 0 * xn + 0.1, depth_n + 0.05], 1)
    ys = (y0 + 2.02) / 0.92
    xs = x0 / 1.62
    inside = 1 - xs * xs - ys * ys
    wide = torch.where(inside > 0, -0.30 + 0.55 * torch.sqrt(inside.clamp(min=1e-6)), torch.full_like(x0, -9.0))
    shoulder_normal = torch.cat([xs / 1.62, ys / 0.86, torch.sqrt(inside.clamp(min=1e-4)) / 0.55], 1)
    front = wide > neck_z
    return SimpleNamespace(
        z=torch.maximum(neck_z, wide),
        neck=~front,
        x=x0 - 0.3 * torch.sin(turn),
        y=y0,
        normal=unit(torch.where(front, shoulder_normal, neck_normal)),
        coverage=torch.maximum(edge(inside, 0.03), (neck_z > -5).float()),
    )


def paint_body(s: SimpleNamespace, t: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Colour of neck and clothes ``(B, 3, H, W)`` and a factor for the shade under the chin."""
    v = t.v
    clothes = colour(v.chance("clothes_hue"), 0.15 + 0.4 * v.chance("neckline"), v("clothes_value", 0.12, 0.85))
    opening = -1.10 - 0.10 * v("neckline")
    deep = (v("neckline") > 0.2).float()
    line = opening - deep * (0.30 - 0.75 * s.x.abs()).clamp(min=0) - 0.45 * (0.50 - s.x.abs()).clamp(min=0)
    cloth = edge(line - s.y, 0.03) * (1 - s.neck.float() * edge(s.y + 1.25, 0.06))
    hem = hill(((line - s.y - 0.03) / 0.02) ** 2)
    skin = t.skin * 0.92 + 0 * s.x
    under = 1 - 0.62 * smooth(s.y, -1.55, -0.80) * s.neck
    return torch.lerp(skin, clothes * (1 - 0.25 * hem), cloth), under


def glasses_on(t: SimpleNamespace) -> Tensor:
    """1 where the view wears glasses (about a fifth of the views)."""
    return (t.v("glasses") > 0.62).float()


def paint_glasses(picture: Tensor, hits: SimpleNamespace, t: SimpleNamespace, nose_z: Tensor) -> Tensor:
    """Frames, lenses and temples over a finished linear picture ``(B, 3, H, W)``.

    The frame lies in a plane just in front of the bridge of the nose; temples run to the ears in two side planes.
    """
    depth = nose_z - 0.02
    z = (depth - hits.origin[:, 2:]) / hits.slope[:, 2:]
    p = hits.origin + z * hits.slope
    x, y = p[:, :1], p[:, 1:2]
    r = 0.78
    cx, cy = t.eye_a * r * 0.98, t.eye_b * r - 0.015
    shape = t.v.chance("glasses_shape")
    wide, high = 0.212 + 0.02 * t.v("glasses_shape"), 0.135 + 0.055 * shape
    dx, dy = (x.abs() - cx) / wide, (y - cy) / high
    power = 2.2 + 3.0 * (1 - shape)
    rim = ((dx.abs() + 1e-4) ** power + (dy.abs() + 1e-4) ** power) ** (1 / power)
    thick = 0.009 + 0.008 * t.v.chance("glasses_colour")
    gap = (rim - 1) * 0.5 * (wide + high)
    frame = edge(thick - gap.abs(), 0.012)
    bridge = edge(thick - (y - cy - 0.035 + 0.25 * x * x).abs(), 0.012) * (x.abs() < cx - wide * 0.9)
    lens = edge(-gap, 0.012)
    reach = cx + wide
    side = torch.where(hits.slope[:, :1] < 0, -1.0, 1.0)
    zt = (side * reach - hits.origin[:, :1]) / hits.slope[:, :1].abs().clamp(min=1e-3) * torch.sign(hits.slope[:, :1])
    pt = hits.origin + zt * hits.slope
    along = depth - pt[:, 2:]
    arm = edge(thick * 1.05 - (pt[:, 1:2] - cy - 0.05).abs(), 0.012) * (along > 0) * (along < 1.0)
    arm = arm * (zt > torch.where(hits.hit, hits.z, torch.full_like(hits.z, -9.0)) - 0.02)
    on = glasses_on(t)
    # A frame is hidden only where the head stands in front of it (the far lens at large yaw).
    seen = on * (z > torch.where(hits.hit, hits.z, torch.full_like(hits.z, -9.0)) - 0.10)
    tone = colour(0.07 + 0 * on, 0.35 * t.v.chance("glasses_colour"), 0.08 + 0.45 * t.v.chance("glasses_colour") ** 3)
    out = torch.lerp(picture, picture * 0.93 + 0.012, lens * seen)
    streak = edge(0.04 - (dx + 0.8 * dy + 0.5).abs(), 0.05) * lens
    out = out + 0.05 * streak * seen
    out = torch.lerp(out, tone, 0.95 * torch.maximum(frame, bridge) * seen)
    return torch.lerp(out, tone, 0.95 * arm * on)
