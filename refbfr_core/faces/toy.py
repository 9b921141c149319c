"""``ToyFaces``: the drawn domain as one object - people, views of them, and pictures with exact ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fields import NoiseBank
from .identity import Identities, numbers_of, sample_identities
from .render import render_batch
from .traits import traits_of
from .view import Views, sample_views
from .view import numbers_of as view_numbers_of

RESOLUTIONS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Rendering:
    """Pictures of ``I`` people in ``n`` views each, with what no photo set has.

    ``images`` ``(I, n, 3, H, W)`` float32 RGB in [0, 1]; ``landmarks`` ``(I, n, 98, 2)`` pixels (x right, y down, WFLW
    order); ``face_mask`` ``(I, n, 1, H, W)`` in [0, 1]; ``identity`` ``(I, D)`` the identity vectors.
    """

    images: Tensor
    landmarks: Tensor
    face_mask: Tensor
    identity: Tensor


class ToyFaces:
    """Procedural faces at 64, 128, 256 or 512 pixels.

    ``oversample`` is the number of samples along each side of a pixel before filtering down. The same numbers give the
    same bytes on the same kind of machine, alone or together with others. Raises ``ValueError`` for other resolutions.
    """

    def __init__(self, resolution: int = 128, oversample: float = 1.5) -> None:
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution must be one of {RESOLUTIONS}, got {resolution}")
        if not 1 <= oversample <= 4:
            raise ValueError(f"oversample must be between 1 and 4, got {oversample}")
        self.resolution, self.oversample = resolution, oversample
        self._noise = NoiseBank()

    def identities(self, n: int, seed: int = 0, split: str = "train") -> Identities:
        """``n`` people of a split ("train", "judge", "val" or "test"; splits never share a person)."""
        return sample_identities(n, seed, split)

    def views(self, identities: Identities, n: int, seed: int = 0) -> Views:
        """``n`` views of each person."""
        return sample_views(identities, n, seed)

    @torch.no_grad()
    def render(self, identities: Identities, views: Views, device: torch.device | str | None = None) -> Rendering:
        """Draw every view of every person.

        On the CPU pictures are drawn one by one (fastest there: the working set stays in the cache) and do not depend
        on their neighbours; on a GPU in chunks. Raises ``ValueError`` when the two lists do not belong together.
        """
        if len(identities) != views.people:
            raise ValueError(
                f"{len(identities)} identities but views of {views.people} people; "
                "make the views with faces.views(identities, n)"
            )
        device = torch.device(device or "cpu")
        chunk = 1 if device.type == "cpu" else 64
        noise = self._noise if device.type == "cpu" else NoiseBank(device=device)
        owner = torch.arange(len(identities)).repeat_interleave(views.views)
        person, view = numbers_of(identities[owner], device), view_numbers_of(views, device)
        images, masks, points = [], [], []
        for k in range(0, len(owner), chunk):
            rows = slice(k, k + chunk)
            out = render_batch(traits_of(person.rows(rows), view.rows(rows)), noise, self.resolution, self.oversample)
            images.append(out.image)
            masks.append(out.mask)
            points.append(out.landmarks)
        shape = (len(identities), views.views)
        return Rendering(
            torch.cat(images).unflatten(0, shape),
            torch.cat(points).unflatten(0, shape),
            torch.cat(masks).unflatten(0, shape),
            identities.vector.clone(),
        )
