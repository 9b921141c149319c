"""From reference pictures to reference latents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refbfr_core.errors import unknown_name
from refbfr_core.models import encode_latents
from refbfr_core.pipelines.rows import ROW_GROUP, in_groups

if TYPE_CHECKING:
    from diffusers import VQModel

ENCODINGS = ("separate", "strip")


def encode_references(
    vq: VQModel,
    references: Tensor,
    mask: Tensor | None = None,
    *,
    patch_size: int = 1,
    encoding: str = "separate",
    rows: int = ROW_GROUP,
) -> Tensor:
    """Un-quantised latents of reference pictures.

    Args:
        vq: the first stage.
        references: (B, R, 3, H, W) in [0, 1].
        mask: (B, R) bool, False for padding; None uses every reference. Latents of padding are zero.
        patch_size: space-to-depth factor after the encoder, as in `encode_latents`.
        encoding: "separate" encodes every picture alone. "strip" does what ReF-LDM's release does: a person's pictures
            are laid side by side, encoded as one wide image and the latent is cut into squares, so that group norms,
            convolutions at the seams and the encoder's attention mix them.
        rows: how many pictures the encoder sees at a time, when they are encoded one by one.

    Returns:
        (B, R, C, h, w).

    Raises:
        UnknownNameError: another encoding.
    """
    if encoding not in ENCODINGS:
        raise unknown_name("reference encoding", encoding, ENCODINGS)
    if mask is None:
        mask = torch.ones(references.shape[:2], dtype=torch.bool, device=references.device)
    if encoding == "separate":
        chosen = in_groups(partial(encode_latents, vq, patch_size=patch_size), references[mask], rows)
    else:
        # One strip a person: padding must not take part in the statistics of the pictures beside it.
        strips = [
            _encode_strip(vq, own[used], patch_size) for own, used in zip(references, mask, strict=True) if used.any()
        ]
        chosen = torch.cat(strips)
    latents = chosen.new_zeros(*mask.shape, *chosen.shape[1:])
    latents[mask] = chosen
    return latents


def _encode_strip(vq: VQModel, pictures: Tensor, patch_size: int) -> Tensor:
    """(R, 3, H, W) -> (R, C, h, w) through one image of size H × RW."""
    strip = torch.cat(list(pictures), dim=-1).unsqueeze(0)
    latent = encode_latents(vq, strip, patch_size)
    return torch.cat(latent.chunk(len(pictures), dim=-1))
