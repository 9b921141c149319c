"""Attention drawn over pictures, and the exact places in a drawn face where a query can be put."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from refbfr_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from refbfr_core.faces import ToyFaces
    from refbfr_core.faces.identity import Identities
    from refbfr_core.faces.view import Views

_GLOW = (1.0, 0.72, 0.0)
_LEAST_CHANGE = 0.2


def feature_places(faces: ToyFaces, people: Identities, views: Views) -> dict[str, Tensor]:
    """Where features of drawn faces are, exactly, as fractions (x right, y down) of the picture.

    Mouth, eye (the left one in the picture), nose and chin come from the landmarks. The first mole and glasses have
    none: they are found by drawing the same face without them, as the middle of what changes most.

    Parameters
    ----------
    faces, people, views : as for `ToyFaces.render`; n views each of I people.

    Returns
    -------
    name -> (I, n, 2); NaN where a feature cannot be seen in a view: no glasses worn, the mole turned away or covered.
    """
    seen = faces.render(people, views)
    points = seen.landmarks / faces.resolution
    without_mole = faces.render(people.replace(mole0_size=-1.0), views).images
    without_glasses = faces.render(people, views.replace(glasses=-1.0)).images
    inside = (points >= 0) & (points < 1)
    points = torch.where(inside.all(dim=-1, keepdim=True), points, float("nan"))
    return {
        "mouth": points[:, :, 76:96].mean(dim=2),
        "eye": points[:, :, 96],
        "nose": points[:, :, 57],
        "chin": points[:, :, 16],
        "mole": _middle_of_change(seen.images, without_mole),
        "glasses": _middle_of_change(seen.images, without_glasses),
    }


def glow(picture: Tensor, weights: Tensor, full: float) -> Tensor:
    """Return a picture with attention weights laid over it: the grey, darkened picture shines where the weight is.

    Parameters
    ----------
    picture : (3, H, W) in [0, 1].
    weights : (h, w), not negative; every token is drawn as the block of pixels it stands for, without smoothing.
    full : the weight that is drawn at full strength; use one for all pictures that are compared.

    Raises
    ------
    ConfigError : other shapes, negative weights, or `full` not above 0.
    """
    if picture.ndim != 3 or weights.ndim != 2 or bool((weights < 0).any()) or not full > 0:
        raise ConfigError(
            f"picture {tuple(picture.shape)}, weights {tuple(weights.shape)}, full={full}; expected (3, H, W), (h, w) "
            "with weights from 0 on, and a positive number, for example the largest weight."
        )
    share = F.interpolate((weights / full).clamp(0, 1)[None, None], size=picture.shape[-2:], mode="nearest")[0]
    grey = 0.75 * picture.mean(dim=0, keepdim=True)
    colour = torch.tensor(_GLOW, dtype=picture.dtype, device=picture.device)[:, None, None]
    return torch.lerp(grey.expand_as(picture), colour.expand_as(picture), 0.9 * share.to(picture))


def ring(picture: Tensor, point: Tensor, radius: float = 0.045) -> Tensor:
    """Return a picture with a white and black ring around a point given in fractions; `radius` likewise."""
    height, width = picture.shape[-2:]
    y = (torch.arange(height, device=picture.device) + 0.5) / height - float(point[1])
    x = (torch.arange(width, device=picture.device) + 0.5) / width - float(point[0])
    away = (y[:, None] ** 2 + x**2).sqrt() * min(height, width)
    thick = max(0.7, 0.007 * min(height, width))
    edge = radius * min(height, width)
    out = torch.where((away - edge).abs() < 2 * thick, torch.zeros_like(picture), picture)
    return torch.where((away - edge).abs() < thick, torch.ones_like(picture), out)


def tiled(pictures: list[Tensor] | Tensor, columns: int = 2, gap: int = 2) -> Tensor:
    """Return pictures (3, H, W) of one size as one picture, row by row, white between them; for frames of a strip.

    Raises
    ------
    ConfigError : no picture, or sizes that differ.
    """
    pictures = list(pictures)
    if not pictures or len({tuple(picture.shape) for picture in pictures}) != 1:
        raise ConfigError(f"{len(pictures)} pictures; expected at least one, all of one size.")
    padded = [F.pad(picture, (0, gap, 0, gap), value=1.0) for picture in pictures]
    padded += [torch.ones_like(padded[0])] * (-len(padded) % columns)
    rows = [torch.cat(padded[k : k + columns], dim=-1) for k in range(0, len(padded), columns)]
    return torch.cat(rows, dim=-2)[:, :-gap, :-gap]


def shifted(pictures: Tensor, right: int, down: int) -> Tensor:
    """Return pictures (..., H, W) moved by whole pixels; the edge that comes in repeats the last row or column."""
    height, width = pictures.shape[-2:]
    rows = (torch.arange(height, device=pictures.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=pictures.device) - right).clamp(0, width - 1)
    return pictures[..., rows[:, None], columns]


def _middle_of_change(one: Tensor, other: Tensor) -> Tensor:
    """(I, n, 3, H, W) twice to (I, n, 2), NaN where nothing changes visibly."""
    change = (one - other).abs().sum(dim=2)
    top = change.amax(dim=(-2, -1), keepdim=True)
    change = torch.where(change > 0.25 * top, change, 0.0)
    height, width = change.shape[-2:]
    x = (torch.arange(width, device=change.device) + 0.5) / width
    y = (torch.arange(height, device=change.device) + 0.5) / height
    total = change.sum(dim=(-2, -1)).clamp(min=1e-12)
    middle = torch.stack([(change.sum(-2) * x).sum(-1), (change.sum(-1) * y).sum(-1)], dim=-1) / total[..., None]
    return torch.where(top[..., 0] > _LEAST_CHANGE, middle, float("nan"))
