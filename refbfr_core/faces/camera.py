"""Camera: pose, rays through pixels, intersection with the head, and exact projection of points."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import direction, look_up
from .surface import Surface

FRAME = 2.22  # width of the picture in head units at the depth of the head's centre
_BACK = -1.45  # nothing of the head lies behind this depth


class Camera:
    """Perspective camera in front of a turned head.

    Head space: x right, y up, z towards the viewer. ``rotation`` is ``(B, 3, 3)``; camera space = rotation @ head
    + ``offset``. The picture is aligned as photo sets are: the middle of eyes and mouth sits at a fixed
    place, plus jitter.
    """

    def __init__(self, t: SimpleNamespace, surface: Surface, size: int) -> None:
        self.size, self.t = size, t
        yaw, pitch, roll = (x.flatten() for x in (t.yaw, t.pitch, t.roll))
        self.rotation = _turn(yaw, pitch, roll)
        self.distance = t.v("distance", 6.0, 12.0)
        self.frame = FRAME * (1 + 0.05 * t.v("scale"))
        eye = self._anchor(surface, t.eye_a * 0, t.eye_b)
        mouth = self._anchor(surface, t.mouth_b * 0, t.mouth_b)
        middle = torch.einsum("bij,bj->bi", self.rotation, 0.5 * (eye + mouth) * 0.88)
        x = -middle[:, 0] + 0.05 * t.v("shift_x").flatten()
        y = -middle[:, 1] - 0.085 * self.frame.flatten() + 0.05 * t.v("shift_y").flatten()
        self.offset = torch.stack([x, y, torch.zeros_like(x)], 1)

    @staticmethod
    def _anchor(surface: Surface, a: Tensor, b: Tensor) -> Tensor:
        d = torch.cat(direction(a, b), 1)
        return (d * look_up(surface.skin, a, b)).flatten(1)

    def pixels(self, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates of pixel centres on the plane z = 0 of camera space, each ``(B, 1, size, size)``."""
        size = size or self.size
        line = (torch.arange(size, device=self.frame.device) + 0.5) / size - 0.5
        y, x = torch.meshgrid(-line, line, indexing="ij")
        return x[None, None] * self.frame, y[None, None] * self.frame

    def ray(self, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
        """Rays in head space as ``origin + z * slope`` with camera depth ``z``; each ``(B, 3, H, W)``."""
        zero = torch.zeros_like(px)
        origin = torch.cat([px, py, zero], 1) - self.offset[:, :, None, None]
        slope = torch.cat([-px / self.distance, -py / self.distance, zero + 1], 1)
        back = self.rotation.transpose(1, 2)
        return torch.einsum("bij,bjhw->bihw", back, origin), torch.einsum("bij,bjhw->bihw", back, slope)

    def project(self, points: Tensor) -> Tensor:
        """Head-space points ``(B, N, 3)`` -> pixel coordinates ``(B, N, 2)`` (x right, y down, centres at .5)."""
        p = torch.einsum("bij,bnj->bni", self.rotation, points) + self.offset[:, None]
        scale = 1 / (1 - p[..., 2] / self.distance.view(-1, 1))
        frame = self.frame.view(-1, 1)
        x = p[..., 0] * scale / frame + 0.5
        y = 0.5 - p[..., 1] * scale / frame
        return torch.stack([x, y], -1) * self.size

    def to_head(self, vector: Tensor) -> Tensor:
        """Camera-space direction ``(B, 3, 1, 1)`` in head space."""
        return torch.einsum("bij,bjhw->bihw", self.rotation.transpose(1, 2), vector)


def _turn(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)

    def matrix(*rows) -> Tensor:
        return torch.stack([torch.stack(r, -1) for r in rows], -2)

    cy, sy, cp, sp, cr, sr = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin(), roll.cos(), roll.sin()
    about_y = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    about_x = matrix((one, zero, zero), (zero, cp, sp), (zero, -sp, cp))
    about_z = matrix((cr, -sr, zero), (sr, cr, zero), (zero, zero, one))
    return about_z @ about_x @ about_y


def _march(surface: Surface, origin: Tensor, slope: Tensor, start: Tensor, stop: Tensor, steps: int, refine: int):
    """First crossing of the surface between depths ``start`` and ``stop`` (decreasing): depth and a hit mask."""
    step = (stop - start) / steps
    z = start
    before, _, _ = surface.radius(*(origin + z * slope).split(1, 1))
    near, near_gap, far, far_gap = z, before, z, before
    found = torch.zeros_like(z, dtype=torch.bool)
    for _ in range(steps):
        ahead = z + step
        gap, _, _ = surface.radius(*(origin + ahead * slope).split(1, 1))
        crossing = (gap < 0) & ~found
        near, near_gap = torch.where(crossing, z, near), torch.where(crossing, before, near_gap)
        far, far_gap = torch.where(crossing, ahead, far), torch.where(crossing, gap, far_gap)
        found = found | crossing
        z, before = ahead, gap
    for _ in range(refine):
        fraction = (near_gap / (near_gap - far_gap).clamp(min=1e-5)).clamp(0.05, 0.95)
        middle = near + (far - near) * fraction
        gap, _, _ = surface.radius(*(origin + middle * slope).split(1, 1))
        inside = gap < 0
        near, near_gap = torch.where(inside, near, middle), torch.where(inside, near_gap, gap)
        far, far_gap = torch.where(inside, middle, far), torch.where(inside, gap, far_gap)
    return torch.where(found, far, stop), found


def intersect(camera: Camera, surface: Surface, size: int) -> SimpleNamespace:
    """Where the rays of a ``size`` x ``size`` picture meet the head.

    A coarse march at a third of the size brackets the depth; the full size only searches inside that bracket.
    Returns ``hit`` (bool), ``z`` (camera depth), ``point`` (head space), ``a``, ``b``, ``origin`` and ``slope``.
    """
    coarse = max(size // 3, 24)
    px, py = camera.pixels(coarse)
    origin, slope = camera.ray(px, py)
    start, stop = torch.full_like(px, surface.bound), torch.full_like(px, _BACK)
    z, hit = _march(surface, origin, slope, start, stop, 22, 1)
    # Bracket from the hits around each coarse ray; rays with no hit nearby keep an empty bracket behind the head.
    pad = F.pad(torch.where(hit, z, stop), (1, 1, 1, 1), mode="replicate")
    near = F.interpolate(F.max_pool2d(pad, 3, 1), size=(size, size), mode="nearest")
    pad = F.pad(torch.where(hit, z, -stop), (1, 1, 1, 1), mode="replicate")
    far = F.interpolate(-F.max_pool2d(-pad, 3, 1), size=(size, size), mode="nearest")
    far = torch.where(near > _BACK, far, near)
    px, py = camera.pixels(size)
    origin, slope = camera.ray(px, py)
    z, hit = _march(surface, origin, slope, near + 0.08, far - 0.14, 6, 2)
    point = origin + z * slope
    _, a, b = surface.radius(*point.split(1, 1))
    return SimpleNamespace(hit=hit, z=z, point=point, a=a, b=b, origin=origin, slope=slope, px=px, py=py)
