"""A stand-in for the face renderer in tests of caches and training: one coloured square a person, drawn in no time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.faces.identity import Identities, sample_identities
from refbfr_core.faces.view import Views, sample_views


@dataclass(frozen=True)
class Blobs:
    """What the renderer returns, for squares."""

    images: Tensor
    landmarks: Tensor


class BlobFaces:
    """Draws each person as a square whose colour and place come from the identity, moved a little by the view."""

    def __init__(self, resolution: int = 32) -> None:
        self.resolution = resolution

    def identities(self, n: int, seed: int = 0, split: str = "train") -> Identities:
        return sample_identities(n, seed, split)

    def views(self, identities: Identities, n: int, seed: int = 0) -> Views:
        return sample_views(identities, n, seed)

    def render(self, identities: Identities, views: Views) -> Blobs:
        size = self.resolution
        images = torch.empty(len(identities), views.views, 3, size, size)
        for i, person in enumerate(identities.vector):
            for j, view in enumerate(views.vector[i]):
                images[i, j] = (0.5 + 0.3 * view[:3])[:, None, None]
                top, left = (((person[k] + 1) * size / 4 + view[k] + 1).int().clamp(0, size - 2) for k in (0, 1))
                images[i, j, :, top : top + size // 2, left : left + size // 2] = ((person[3:6] + 1) / 2)[:, None, None]
        landmarks = torch.zeros(len(identities), views.views, 98, 2) + size / 2
        return Blobs(images.clamp(0, 1), landmarks)


class OtherBlobFaces(BlobFaces):
    """A renderer that was changed after a cache had been drawn."""

    def render(self, identities: Identities, views: Views) -> Blobs:
        drawn = super().render(identities, views)
        return Blobs(1 - drawn.images, drawn.landmarks)
