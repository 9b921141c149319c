"""LD-BFR's output VQGAN: a stock `VQModel` whose decoder renders larger than its encoder reads.

Du et al., LD-BFR, ACM MM 2024. Clean faces enter at half the final side and become the latents of the diffusion
(256 px to 3 x 64 x 64 with the published f4 layout); the decoder ends in one more residual block and one more doubling,
so those latents are rendered at the full side (512 px).
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ModelMixin, VQModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D

from refbfr_core.errors import ConfigError

__all__ = ["ModelMixin", "OutputVQModel"]  # diffusers looks a component's base class up in its module


class OutputVQModel(VQModel):
    """A `VQModel` with `tail_layers` doublings after its normal decoder, each behind one residual block.

    Everything else is the stock class: `fold_pixels`, `encode_latents` and `decode_latents` take it as it is and halve
    the pictures on their way in. The default scaling factor is 1, as in the latent diffusion models of faces (the stock
    class has Stable Diffusion's 0.18215).

    Args:
        tail_layers: 1 as published; 0 gives the stock network, whose weights then load into this class.
        others: as for `VQModel`.

    Raises:
        ConfigError: a negative number of tail layers.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 3,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",) * 3,
        block_out_channels: Sequence[int] = (128, 256, 512),
        layers_per_block: int = 2,
        latent_channels: int = 3,
        num_vq_embeddings: int = 8192,
        norm_num_groups: int = 32,
        vq_embed_dim: int = 3,
        scaling_factor: float = 1.0,
        mid_block_add_attention: bool = True,
        tail_layers: int = 1,
        norm_type: str = "group",
        lookup_from_codebook: bool = False,
    ) -> None:
        if tail_layers < 0:
            raise ConfigError(f"tail_layers is {tail_layers}; expected 0 or more doublings after the decoder.")
        if norm_type != "group" or lookup_from_codebook:
            raise ConfigError("the output VQGAN has group norms and decodes latents; keep norm_type and look-up.")
        own = dict(self.config)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            num_vq_embeddings=num_vq_embeddings,
            norm_num_groups=norm_num_groups,
            vq_embed_dim=vq_embed_dim,
            scaling_factor=scaling_factor,
            mid_block_add_attention=mid_block_add_attention,
        )
        width = block_out_channels[0]
        for _ in range(tail_layers):
            # Before the last norm and convolution, which then work at the new side.
            tail = UpDecoderBlock2D(
                in_channels=width,
                out_channels=width,
                num_layers=1,
                resnet_eps=1e-6,
                resnet_act_fn="silu",
                resnet_groups=norm_num_groups,
                add_upsample=True,
            )
            self.decoder.up_blocks.append(tail)
        self._internal_dict = FrozenDict(own)
