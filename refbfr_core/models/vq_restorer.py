"""Stage 1 of LD-BFR, DC-VQR: a degraded face in the vocabulary of clean ones (Du et al., ACM MM 2024, section 3.2).

    x_LQ --E_LQ--> f_LQ --nearest codes--> f'_HQ --DCAM(f_LQ, f'_HQ)--> f_HQ --D'_HQ--> stage 1's picture

Codebook and decoder D'_HQ belong to the condition VQGAN, a stock `VQModel` trained on clean faces and then frozen;
`VQRestorer` holds what stage 1 learns, E_LQ and DCAM.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn

from refbfr_core.errors import ConfigError
from refbfr_core.models.dual_cross_attention import BRANCHES, DualCrossAttention
from refbfr_core.models.first_stage import fold_pixels, unfold_pixels


@dataclass(frozen=True)
class CodeFeatures:
    """What stage 1 makes of a picture.

    `degraded` f_LQ, `looked_up` f'_HQ (straight-through: its gradient goes to f_LQ) and `restored` f_HQ are
    (B, C, h, w); `codes` (B, h, w) are the indices of the nearest codes.
    """

    degraded: Tensor
    codes: Tensor
    looked_up: Tensor
    restored: Tensor


class VQRestorer(ModelMixin, ConfigMixin):
    """E_LQ, a copy of the condition VQGAN's encoder with its 1 x 1 convolution, and DCAM.

    Args:
        in_channels, down_block_types, block_out_channels, layers_per_block, latent_channels, norm_num_groups,
            mid_block_add_attention: of the encoder, as in the `VQModel` it copies.
        vq_embed_dim: C, channels of the features and of the codes.
        heads, mode, channel_scale: of `DualCrossAttention`.
        dual: False leaves DCAM out: f_HQ = f'_HQ, the arm "without dual cross-attention" of Fig. 7.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 64,
        norm_num_groups: int = 32,
        mid_block_add_attention: bool = True,
        vq_embed_dim: int = 64,
        heads: int = 4,
        mode: str = "parallel",
        channel_scale: bool = True,
        dual: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=tuple(down_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            double_z=False,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.quant_conv = nn.Conv2d(latent_channels, vq_embed_dim, 1)
        self.dcam = DualCrossAttention(vq_embed_dim, heads, mode, channel_scale) if dual else None

    @classmethod
    def copy_of(cls, vq: VQModel, heads: int, **dcam: object) -> VQRestorer:
        """A restorer whose encoder starts as the condition VQGAN's own; `dcam`: mode, channel_scale, dual."""
        names = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "latent_channels",
                 "norm_num_groups", "mid_block_add_attention", "vq_embed_dim")  # fmt: skip
        own = {name: vq.config[name] for name in names}
        own["vq_embed_dim"] = own["vq_embed_dim"] or own["latent_channels"]
        restorer = cls(**own, heads=heads, **dcam)
        restorer.encoder.load_state_dict(copy.deepcopy(vq.encoder.state_dict()))
        restorer.quant_conv.load_state_dict(copy.deepcopy(vq.quant_conv.state_dict()))
        return restorer

    def encode(self, folded: Tensor) -> Tensor:
        """f_LQ (B, C, h, w) of degraded pictures as `fold_pixels` leaves them, in [-1, 1]."""
        return self.quant_conv(self.encoder(folded))

    def forward(
        self, folded: Tensor, codebook: Tensor, use: Sequence[str] = BRANCHES, codes: Tensor | None = None
    ) -> CodeFeatures:
        """Features of degraded pictures.

        Args:
            folded: pictures in [-1, 1] as `fold_pixels` leaves them.
            codebook: (K, C), L_HQ.
            use: branches of DCAM that take part.
            codes: (B, h, w) indices to take instead of the nearest ones.

        Raises:
            ConfigError: a codebook of another width, or codes of another shape or beyond it.
        """
        degraded = self.encode(folded)
        nearest, looked_up = look_up(degraded, codebook, codes)
        fused = looked_up if self.dcam is None else self.dcam(degraded, looked_up, use)
        return CodeFeatures(degraded, nearest, looked_up, fused)


def look_up(features: Tensor, codebook: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest code of every place: indices (B, h, w), and the codes (B, C, h, w) with a straight-through gradient.

    Args:
        features: (B, C, h, w). codebook: (K, C). codes: (B, h, w) indices that replace the nearest ones.

    Raises:
        ConfigError: shapes that do not fit, or an index outside 0 ... K-1.
    """
    batch, channels, height, width = features.shape
    if codebook.ndim != 2 or codebook.shape[1] != channels:
        raise ConfigError(f"a codebook of shape {tuple(codebook.shape)} has no codes of {channels} numbers.")
    codebook = codebook.to(features.dtype)
    if codes is None:
        tokens = features.detach().permute(0, 2, 3, 1).reshape(-1, channels)
        codes = torch.cdist(tokens.float(), codebook.float()).argmin(1).view(batch, height, width)
    elif (
        codes.is_floating_point()
        or codes.shape != (batch, height, width)
        or not 0 <= codes.min() <= codes.max() < len(codebook)
    ):
        raise ConfigError(
            f"codes of shape {tuple(codes.shape)} must be ({batch}, {height}, {width}) indices below {len(codebook)}."
        )
    chosen = codebook[codes].permute(0, 3, 1, 2)
    return codes, features + (chosen - features).detach()


def restore_features(
    restorer: VQRestorer, vq: VQModel, images: Tensor, use: Sequence[str] = BRANCHES, codes: Tensor | None = None
) -> CodeFeatures:
    """`VQRestorer` on pictures (B, 3, H, W) in [-1, 1] with the codebook of the condition VQGAN."""
    return restorer(fold_pixels(vq, images), vq.quantize.embedding.weight, use, codes)


def decode_feature(vq: VQModel, features: Tensor) -> Tensor:
    """D'_HQ: features (B, C, h, w) to pictures (B, 3, H, W), nominally in [-1, 1]; differentiable."""
    return unfold_pixels(vq, vq.decode(features, force_not_quantize=True).sample)


def encode_feature(vq: VQModel, images: Tensor) -> Tensor:
    """E'_HQ: clean pictures (B, 3, H, W) in [-1, 1] to features (B, C, h, w) before the codebook, f^_HQ of eq. 2."""
    return vq.encode(fold_pixels(vq, images)).latents
