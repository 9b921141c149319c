"""Every network of LD-BFR in the published configuration (Du et al., ACM MM 2024): shapes and counts at full size.

A face of 512 px enters the condition VQGAN and gives f_HQ of 256 x 16 x 16; the same face at 256 px gives the output
VQGAN's latents of 3 x 64 x 64, which its tail renders at 512 px again. The paper prints few of these numbers; the rest
are read off its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DModel, VQModel
from torch import nn

from refbfr_core.models.injected_unet import HQInjection
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.models.vq_restorer import VQRestorer

HEADS = 8
"""Heads of DCAM's spatial branch: 32 of the 256 channels each."""


@dataclass(frozen=True)
class FullSizeNetworks:
    """The networks of one LD-BFR, untrained.

    `vqc` condition VQGAN (L_HQ, D'_HQ, E'_HQ), `restorer` E_LQ and DCAM, `vqo` output VQGAN with its tail, `unet`
    theta_1, `injection` theta_2.
    """

    vqc: VQModel
    restorer: VQRestorer
    vqo: OutputVQModel
    unet: UNet2DModel
    injection: HQInjection

    def parameters(self) -> dict[str, int]:
        """Number of parameters by the name of the network."""
        return {name: count_parameters(network) for name, network in vars(self).items()}


def full_size_networks(
    device: str | torch.device = "meta", *, variant: str = "D", released: bool = False
) -> FullSizeNetworks:
    """All networks in the published configuration, in eval mode, with PyTorch's initial values.

    Args:
        device: "meta" gives shapes without memory; elsewhere float32 needs about 2 GB.
        variant: letter of Fig. 9, as in `HQInjection.for_network`.
        released: the authors' D-HQI instead of the printed one, see `DecoderInjector`.

    Raises:
        UnknownNameError: another variant.
    """
    with torch.device(device):
        vqc = VQModel(
            block_out_channels=(64, 128, 128, 256, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 5 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 5,
            layers_per_block=2,
            sample_size=512,
            latent_channels=256,
            num_vq_embeddings=1024,
            vq_embed_dim=256,
            scaling_factor=1.0,
        )
        restorer = VQRestorer.copy_of(vqc, heads=HEADS)
        unet = UNet2DModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            block_out_channels=(224, 448, 672, 896),
            layers_per_block=2,
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
            up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
            attention_head_dim=32,
            norm_num_groups=32,
        )
        injection = HQInjection.for_network(unet, 256, 16, variant, released=released)
        networks = (vqc, restorer, OutputVQModel(), unet, injection)
    return FullSizeNetworks(*(network.eval() for network in networks))


def count_parameters(network: nn.Module) -> int:
    """How many numbers training can change."""
    return sum(parameter.numel() for parameter in network.parameters())
