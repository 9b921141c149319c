"""DC-VQR, stage 1 of LD-BFR, by itself: the condition of its diffusion, and a coarse restorer for other methods.

Du et al., LD-BFR, ACM MM 2024, section 3.2. It is deterministic, takes one pass through two small networks, and needs
no reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import VQModel
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.models.dual_cross_attention import BRANCHES
from refbfr_core.models.first_stage import pixels_per_latent
from refbfr_core.models.vq_restorer import CodeFeatures, VQRestorer, decode_feature, look_up, restore_features
from refbfr_core.pipelines.base import check_decoded, evaluating
from refbfr_core.pipelines.prior import rows_of


class DCVQRRestorer:
    """Stage 1's picture D'_HQ(f_HQ) as a coarse restorer (`refbfr_core.pipelines.coarse.CoarseRestorer`).

    Args:
        vqc: condition VQGAN. restorer: what stage 1 learned for it.

    Raises:
        ConfigError: networks that do not belong together.
    """

    def __init__(self, vqc: VQModel, restorer: VQRestorer) -> None:
        check_stage_one(vqc, restorer)
        self.vqc, self.restorer = vqc, restorer
        self.title = "DC-VQR, stage 1 of LD-BFR" + ("" if restorer.dcam is not None else " without DCAM")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] in, the same out, computed where the networks are.

        Raises ImageContractError for sides of which the networks make no whole number of features.
        """
        cell = pixels_per_latent(self.vqc)
        if images.shape[-2] % cell or images.shape[-1] % cell:
            raise ImageContractError(
                f"pictures of {images.shape[-2]}×{images.shape[-1]} have no whole number of features, each stands for "
                f"{cell} pixels a side: resize them to a multiple of that first."
            )
        rows = rows_of(None, self.vqc.device)
        with evaluating(self.vqc, self.restorer):
            features = stage_one_features(self.vqc, self.restorer, images, rows=rows)
            return stage_one_pictures(self.vqc, features.restored, rows=rows)

    def __repr__(self) -> str:
        return f"DCVQRRestorer({self.title!r})"


def check_stage_one(vqc: VQModel, restorer: VQRestorer) -> None:
    """Raises ConfigError unless the restorer's features are as wide and as small as the condition VQGAN's codes."""
    width = vqc.quantize.embedding.weight.shape[1]
    if restorer.config.vq_embed_dim != width:
        raise ConfigError(
            f"the restorer makes features of {restorer.config.vq_embed_dim} channels, the codes of vqc have {width}; "
            "use a restorer that was trained with this VQGAN (VQRestorer.copy_of)."
        )
    own, theirs = ((n.config.in_channels, len(n.config.block_out_channels)) for n in (restorer, vqc))
    if own != theirs:
        raise ConfigError(
            f"the restorer takes {own[0]} channels through {own[1]} levels, vqc {theirs[0]} through {theirs[1]}, so "
            "their features differ in size; use a restorer that was trained with this VQGAN (VQRestorer.copy_of)."
        )


def check_branches(use: Sequence[str] | str) -> tuple[str, ...]:
    """The branches of DCAM to use, in their usual order; a single one may come as plain text.

    Raises UnknownNameError for one that does not exist.
    """
    names = (use,) if isinstance(use, str) else tuple(use)
    for name in names:
        if name not in BRANCHES:
            raise unknown_name("DCAM branch", name, BRANCHES)
    return tuple(name for name in BRANCHES if name in names)


def stage_one_features(
    vqc: VQModel,
    restorer: VQRestorer,
    images: Tensor,
    use: Sequence[str] = BRANCHES,
    codes: Tensor | None = None,
    *,
    rows: int,
) -> CodeFeatures:
    """f_LQ, codes and f_HQ of pictures (B, 3, H, W) in [-1, 1], `rows` pictures at a time.

    Raises:
        ConfigError: codes of another shape or type than (B, h, w) whole numbers, or beyond the codebook.
    """
    pictures = images.to(restorer.device, restorer.dtype).split(rows)
    given: Sequence[Tensor | None] = [None] * len(pictures)
    if codes is not None:
        sides = tuple(side // pixels_per_latent(vqc) for side in images.shape[-2:])
        if codes.shape != (len(images), *sides) or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ConfigError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}; expected whole numbers of shape "
                f"({len(images)}, {sides[0]}, {sides[1]}). Change a copy of the `codes` that features(lq) gives."
            )
        given = codes.to(restorer.device).long().split(rows)
    parts = [restore_features(restorer, vqc, part, use, own) for part, own in zip(pictures, given, strict=True)]
    names = ("degraded", "codes", "looked_up", "restored")
    return CodeFeatures(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def stage_one_pictures(vqc: VQModel, features: Tensor, *, rows: int) -> Tensor:
    """D'_HQ(f) (B, 3, H, W) in [-1, 1] for features (B, C, h, w), `rows` at a time.

    Raises NonFiniteError for a decoder that returns NaN or infinity.
    """
    decoded = [decode_feature(vqc, part) for part in features.to(vqc.device, vqc.dtype).split(rows)]
    return check_decoded(torch.cat(decoded).float()).clamp(-1.0, 1.0)


def replaced_codes(vqc: VQModel, features: CodeFeatures) -> tuple[int, ...]:
    """How many places of each picture have another code than the nearest."""
    codebook = vqc.quantize.embedding.weight
    nearest = torch.cat([look_up(row, codebook)[0] for row in features.degraded.split(1)])
    return tuple((nearest != features.codes).flatten(1).sum(dim=1).tolist())
