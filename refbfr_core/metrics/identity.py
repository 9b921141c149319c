"""Identity scores: does the restored face still look like the same person to a face embedder?

On the toy profile the embedder is the judge that ships with the package. It was trained for judging only and takes part
in no other training and no guidance, because a loss can be gamed by the network it was optimised against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.errors import ConfigError
from refbfr_core.images import to_network

_CHUNK = 32


@runtime_checkable
class Embedder(Protocol):
    """Anything that embeds aligned faces by itself, crop included, such as `refbfr_core.models.FaceEmbedder`."""

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, D)."""


EmbedderLike = Embedder | Callable[[Tensor], Tensor]


def ids(restored: Tensor, target: Tensor, embedder: EmbedderLike | None = None) -> Tensor:
    """Identity similarity: cosine of the two faces' embeddings (ReF-LDM's IDS).

    Both images are cropped by 1/16 on every side and resized by area to 112 px, as ReF-LDM does in its loss and its
    evaluation; no landmarks are used, so the faces have to be aligned already.

    Args:
        restored, target: (B, 3, H, W) in [0, 1], aligned. The target may be any picture of the person.
        embedder: an object with ``embed(images in [-1, 1])``, or a function from (B, 3, 112, 112) crops in [-1, 1] to
            (B, D). Default: the shipped judge. Numbers of different embedders are not comparable.

    Returns:
        (B,) float64 in [-1, 1].

    Raises:
        WeightsError: the judge is not there.
        ConfigError: an embedder in training mode, or one that does not return (B, D).
    """
    mine, truth = _unit_embeddings(restored, target, embedder)
    return (mine * truth).sum(dim=1).clamp(-1.0, 1.0)


def deg(restored: Tensor, target: Tensor, embedder: EmbedderLike | None = None) -> Tensor:
    """Angle in degrees between the two embeddings of :func:`ids` (the Deg that PDGrad takes over from VQFR).

    Every pair counts. The script in which Deg was introduced leaves pairs under one degree out of the mean; nothing
    restored comes that close, but exact copies do. `refbfr_core.metrics.mean_deg` takes the mean either way.

    Returns:
        (B,) float64 in [0, 180]; 0 for identical images.
    """
    mine, truth = _unit_embeddings(restored, target, embedder)
    # Equal to arccos of the cosine, but exact near 0, where arccos turns the last bit of float32 into 0.02 degrees.
    half_angle = torch.atan2((mine - truth).norm(dim=1), (mine + truth).norm(dim=1))
    return torch.rad2deg(2.0 * half_angle)


def _unit_embeddings(restored: Tensor, target: Tensor, embedder: EmbedderLike | None) -> tuple[Tensor, Tensor]:
    if embedder is None:
        from refbfr_core.weights import load_network

        embedder = load_network("judge", device=restored.device)
    if isinstance(embedder, nn.Module) and embedder.training:
        raise ConfigError(
            "the embedder is in training mode, so its scores would depend on the batch; call embedder.eval()."
        )
    return _embed(restored, embedder), _embed(target, embedder)


def _embed(images: Tensor, embedder: EmbedderLike) -> Tensor:
    # Imported here because the models bring diffusers with them, which the other metrics can do without.
    from refbfr_core.models import crop_and_resize

    parts = []
    for chunk in to_network(images).split(_CHUNK):
        part = embedder.embed(chunk) if isinstance(embedder, Embedder) else embedder(crop_and_resize(chunk, 112))
        if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(chunk):
            came = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ConfigError(f"the embedder must return a tensor ({len(chunk)}, D), got {came}.")
        parts.append(part)
    return F.normalize(torch.cat(parts).double(), dim=1)
