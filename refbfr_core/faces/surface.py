"""The shape of a drawn head: a star-shaped surface ``R(a, b)`` over the azimuthal map, with hair as extra height.

A picture's surface is one small texture of radii. Rays find it by bracketing and secant steps (:mod:`.camera`);
normals, occlusion and cast shadows are computed in the same texture, so nothing can float or show a seam.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .curves import lip_curves
from .fields import NoiseBank, bump, direction, edge, hill, look_up, map_coordinates, smooth, soft_max, unit
from .hair import beard_cover, hair_cover


def _ellipsoid(d: tuple[Tensor, Tensor, Tensor], centre, radii) -> Tensor:
    """Distance from the origin (inside) to an axis-aligned ellipsoid along unit directions ``d``."""
    q = tuple(x / r for x, r in zip(d, radii, strict=True))
    c = tuple(x / r for x, r in zip(centre, radii, strict=True))
    aa = q[0] ** 2 + q[1] ** 2 + q[2] ** 2
    bb = q[0] * c[0] + q[1] * c[1] + q[2] * c[2]
    cc = c[0] ** 2 + c[1] ** 2 + c[2] ** 2 - 1
    return (bb + torch.sqrt((bb * bb - aa * cc).clamp(min=1e-6))) / aa


def _skull(d, t: SimpleNamespace) -> Tensor:
    i, m = t.i, t.masc
    width, height = i("head_width", 0.65, 0.76), i("head_height", 0.78, 0.90)
    cranium = _ellipsoid(
        d, (0 * width, 0.18 + 0 * width, -0.12 + 0 * width), (width, height, i("head_depth", 0.86, 0.96))
    )
    jaw_w = i("jaw_width", 0.53, 0.68) + 0.025 * m
    jaw = _ellipsoid(
        d,
        (0 * width, -0.40 + 0 * width, 0.10 + 0 * width),
        (jaw_w, i("jaw_length", 0.58, 0.72) + 0.02 * m, 0.60 + 0 * width),
    )
    return soft_max(cranium, jaw, 0.10)


def _relief(a: Tensor, b: Tensor, t: SimpleNamespace) -> Tensor:
    """Height of the features above the skull."""
    i, s, m = t.i, a.abs(), t.masc
    smile, age = t.smile.clamp(min=0), t.age
    h = -(0.070 + 0.025 * i("eye_depth")) * bump(s, b, t.eye_a - 0.03, t.eye_b + 0.01, 0.21, 0.125)
    h = h + (0.030 + 0.018 * i("brow_ridge") + 0.012 * m) * bump(s, b, t.eye_a - 0.02, t.brow_b - 0.03, 0.26, 0.09)
    h = h + (0.045 + 0.030 * i("cheekbone")) * bump(s, b, 0.52, -0.20 + 0.03 * smile, 0.24, 0.17)
    h = h + (0.030 + 0.035 * i("cheek_fullness") + 0.02 * smile) * bump(s, b, 0.48, -0.52 + 0.08 * smile, 0.24, 0.22)
    h = h + 0.025 * i("forehead") * bump(a, b, 0.0, 0.60, 0.5, 0.25)
    # eyelids bulge over the eyeball
    h = h + 0.030 * bump(s, b, t.eye_a, t.eye_b, t.eye_w * 0.95, 0.085)
    # nose: ridge from the bridge to the tip, ball, wings and nostril hollows
    along = smooth(b, t.eye_b + 0.10, t.nose_base + 0.02)
    below = edge(b - t.nose_base + 0.015, 0.07)
    ridge_w = torch.lerp(t.nose_bridge, t.nose_tip, along) * 1.15
    profile = t.nose_h * (0.22 + 0.78 * along) * smooth(b, t.eye_b + 0.26, t.eye_b + 0.02)
    profile = profile + t.nose_hump * bump(a * 0, b, 0.0, t.eye_b - 0.14, 1.0, 0.09)
    x = a - t.nose_side * along
    h = h + profile * below * hill((x / ridge_w) ** 2)
    h = h + 0.40 * t.nose_h * bump(x, b, 0.0, t.nose_base + 0.075, t.nose_tip * 1.25, 0.07) * below
    h = h + 0.36 * t.nose_h * bump(x.abs(), b, t.nose_w * 0.80, t.nose_base + 0.05, t.nose_w * 0.40, 0.055)
    h = h - 0.10 * t.nose_h * bump(x.abs(), b, t.nose_w * 1.25, t.nose_base + 0.05, 0.04, 0.07)
    # muzzle, philtrum, lips, chin
    h = h + 0.050 * bump(a, b, 0.0, t.mouth_b + 0.03, 0.30, 0.20)
    h = h - (0.014 + 0.006 * i("philtrum")) * bump(a, b, 0.0, 0.5 * (t.mouth_b + t.nose_base) + 0.03, 0.035, 0.07)
    lips = lip_curves(a, t)
    fade = (1 - lips.u**2).clamp(min=0)
    up = bump(a * 0, b, 0.0, 0.5 * (lips.upper + lips.upper_inner), 1.0, t.lip_up * 0.75 + 0.01)
    low = bump(a * 0, b, 0.0, 0.5 * (lips.lower + lips.lower_inner), 1.0, t.lip_lo * 0.65 + 0.01)
    h = h + fade * ((0.018 + 0.35 * t.lip_up) * up + (0.020 + 0.35 * t.lip_lo) * low)
    h = h - 0.026 * fade * bump(a * 0, b, 0.0, lips.line, 1.0, 0.016)
    h = h - 0.030 * bump(a, b, 0.0, lips.lower_mid - 0.065, 0.17, 0.045)
    chin_b = -1.02
    h = h + (0.055 + 0.035 * i("chin_forward") + 0.01 * m) * bump(
        a, b, 0.0, chin_b + 0.05, 0.17 - 0.05 * i("chin_point"), 0.13
    )
    # folds: from the nose wing to the corner of the mouth, deeper with a smile and with age
    fold_a = t.nose_w + 0.09 + (t.mouth_w + 0.06 - t.nose_w) * ((t.nose_base + 0.04 - b) / 0.42).clamp(0, 1)
    fold = (
        hill(((s - fold_a) / 0.035) ** 2)
        * smooth(b, t.mouth_b - 0.10, t.mouth_b + 0.08)
        * smooth(b, t.nose_base + 0.10, t.nose_base)
    )
    return h - (0.002 + 0.013 * smile + 0.022 * age**1.5) * fold


def _ears(a: Tensor, b: Tensor, t: SimpleNamespace) -> Tensor:
    """Height of the ears: a flange growing to the back, with rim, bowl and lobe."""
    u, v = (a.abs() - 1.46) / (0.165 * t.ear_size), (b - t.ear_b) / (0.27 * t.ear_size)
    v = v + 0.12 * u
    r = torch.sqrt(u * u + v * v * torch.where(v < 0, 1.12, 0.9))
    body = smooth(1 - r, -0.05, 0.50)
    rim = hill(((r - 0.80) / 0.16) ** 2) * smooth(u + 0.3 * v, -0.9, 0.1)
    bowl = bump(u, v, -0.10, -0.10, 0.38, 0.36)
    return body * (0.035 + t.ear_out * (0.30 + 0.38 * smooth(u, -0.9, 0.9)) + 0.035 * rim - 0.055 * bowl)


class Surface:
    """Radius textures of a batch of heads.

    ``skin`` and ``all`` ``(B, 1, T, T)``: radii without and with hair and beard; ``hair`` the signed
    distance to the hairline (positive: hair);
    ``normal`` and ``hair_normal`` ``(B, 3, T, T)`` unit vectors in head space; ``occlusion`` in [0, 1] (1 = open).
    """

    def __init__(self, t: SimpleNamespace, noise: NoiseBank, a: Tensor, b: Tensor) -> None:
        self.t = t
        d = direction(a, b)
        self.skin = (_skull(d, t) + _relief(a, b, t) + _ears(a, b, t)).contiguous()
        beard = beard_cover(a, b, t)
        shell = hair_cover(a, b, d, t, noise)
        with_beard = self.skin + t.beard_volume * smooth(beard, 0.0, 0.9)
        rise = smooth(shell.distance, -0.004, 0.11)
        thick = t.thickness * (1 + t.hair_top * smooth(b, 0.3, 1.3)) * (1 + 0.07 * shell.clump)
        over = torch.maximum(_skull(d, t) + thick, self.skin + 0.02)
        curtain = _ellipsoid(
            d,
            (t.sway, -0.38 + 0 * t.sway, -0.15 + 0 * t.sway),
            (0.93 + 0.10 * t.i("hair_volume"), 1.60 + 0 * t.sway, 0.74 + 0 * t.sway),
        ) * (1 + 0.02 * shell.clump)
        curtain = torch.where(b < 0.9, curtain, torch.zeros_like(curtain)) * t.curtain
        over = soft_max(over, curtain, 0.05)
        floor = (-d[1]).clamp(min=1e-3)
        over = torch.minimum(over, torch.maximum(self.skin, (t.length + 0.04 * shell.clump) / floor))
        knot = t.knot * 0.42 * bump(a, b, 0.0, 1.22, 0.26, 0.20)
        over = over + knot
        self.hair = shell.distance.clamp(-0.25, 0.25)
        self.all = torch.lerp(with_beard, torch.maximum(over, with_beard), rise * t.hair_on).contiguous()
        self.position = torch.cat(d, 1) * self.all
        self.normal = _normals(self.position)
        self.occlusion = _occlusion(self.all)
        self.bound = float(self.all.amax())

    def radius(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signed gap ``|p| - R`` of head-space points, with their map coordinates."""
        a, b, n = map_coordinates(x, y, z)
        return n - look_up(self.all, a, b), a, b

    def shadow(self, light: Tensor, steps: int = 9) -> Tensor:
        """Light visibility in [0, 1], ``(B, 1, S, S)``, of texels seen from direction ``light`` ``(B, 3, 1, 1)``."""
        size = max(self.all.shape[-1] // 2, 32)
        p = F.interpolate(self.position, size=(size, size), mode="bilinear", align_corners=True)
        n = F.interpolate(self.normal, size=(size, size), mode="bilinear", align_corners=True)
        visible = torch.ones_like(p[:, :1])
        for k in range(steps):
            reach = 0.035 + 1.0 * ((k + 0.5) / steps) ** 1.5
            q = p + n * 0.015 + light * reach
            gap, _, _ = self.radius(q[:, :1], q[:, 1:2], q[:, 2:])
            visible = torch.minimum(visible, edge(gap + 0.012, 0.035 + 0.16 * reach))
        return visible


def _normals(position: Tensor) -> Tensor:
    padded = F.pad(position, (1, 1, 1, 1), mode="replicate")
    da = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    db = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return unit(torch.linalg.cross(da, db, dim=1))


def _occlusion(radius: Tensor) -> Tensor:
    """Openness from how far a texel lies under its blurred surroundings, at two scales."""
    size = radius.shape[-1]
    out = torch.ones_like(radius)
    for cells, gain in ((size // 3, 7.0), (size // 8, 3.2)):
        small = F.adaptive_avg_pool2d(radius, cells)
        blurred = F.avg_pool2d(small, 5, 1, 2, count_include_pad=False)
        wide = F.interpolate(blurred, size=(size, size), mode="bilinear", align_corners=False)
        out = out * torch.exp(-gain * (wide - radius).clamp(min=0))
    return out
