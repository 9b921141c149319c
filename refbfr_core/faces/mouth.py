"""Mouth: shaded lips, the dark between them, teeth and tongue, over a window of the picture."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from .curves import lip_curves
from .fields import NoiseBank, bump, edge, hill, smooth
from .skin import rgb


def paint_mouth(
    skin: Tensor, a: Tensor, b: Tensor, t: SimpleNamespace, noise: NoiseBank
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour ``(B, 3, h, w)``, lip coverage (lips are glossier than skin) and coverage of the open mouth."""
    c = lip_curves(a, t)
    width = edge((1.0 - c.u.abs()) * t.mouth_w, 0.03)
    soft = 0.016 + 0.014 * (1 - t.lipstick)
    upper = edge(torch.minimum(c.upper - b, b - c.upper_inner), soft) * width
    lower = edge(torch.minimum(c.lower_inner - b, b - c.lower), soft) * width
    open_ = edge(torch.minimum(c.upper_inner - b, b - c.lower_inner), 0.014) * width * smooth(t.gap, 0.008, 0.02)
    chapped = noise("strand", a * 1.1 + t.i("noise_u"), b * 0.4)[:, :1]
    shade = 1 - 0.20 * upper + 0.10 * bump(a, b, 0.0, 0.5 * (t.mouth_b + t.lip_lo * -0.6), 0.2, 0.04) + 0.03 * chapped
    lips = (upper + lower).clamp(0, 1)
    out = torch.lerp(skin, t.lips * shade, lips * (0.80 + 0.18 * t.lipstick))
    # below the lower lip a soft shadow; in the corners and between the lips a dark line
    out = out * (1 - 0.20 * bump(a, b, 0.0, c.lower_mid - 0.035, 0.16, 0.03))
    seam = hill(((b - c.line) / 0.0105) ** 2) * edge(1.04 - c.u.abs(), 0.08) * (1 - smooth(t.gap, 0.0, 0.03))
    corner = bump(c.u.abs(), b - c.line, 1.0, 0.0, 0.10, 0.028)
    out = torch.lerp(out, t.lips * rgb(0.22, 0.12, 0.12, a), (0.85 * seam + 0.45 * corner).clamp(0, 1))

    cavity = rgb(0.045, 0.012, 0.012, a) + 0 * b
    tongue = bump(a, b, 0.0, t.mouth_b - 0.75 * t.gap, 0.17, 0.035) * smooth(t.gap, 0.05, 0.1)
    cavity = torch.lerp(cavity, rgb(0.42, 0.13, 0.12, a), 0.8 * tongue)
    tooth_line = t.mouth_b + 0.30 * t.gap - 0.050 * t.teeth
    rows = 1 - 0.14 * torch.cos(a * 62).clamp(min=0) ** 8
    teeth = edge(b - tooth_line, 0.012) * edge(0.80 - c.u.abs(), 0.25)
    cavity = torch.lerp(cavity, rgb(0.80, 0.76, 0.66, a) * rows, 0.95 * teeth)
    cavity = cavity * (1 - 0.45 * smooth(c.upper_inner - b, 0.018, 0.0))
    return torch.lerp(out, cavity, open_), lips * (1 - open_), open_
