"""Every network of DiffMAC in the published configuration (Gao et al., 2024): shapes and counts at full size.

A face of 512 px has moments of 8 x 64 x 64 and latents of 4 x 64 x 64. Denoiser and autoencoder are those of Stable
Diffusion 2.1-base; the widths of the condition pyramid are not printed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from refbfr_core.errors import missing_extra
from refbfr_core.models.ldbfr_full_size import count_parameters
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.models.second_stage import SecondStage

PYRAMID = (320, 640, 1280, 1280)
LIGHT_PYRAMID = (64, 128, 256, 256)
"""Widths of the condition pyramid: those of the denoiser, and a light choice."""
SIDE = 64
"""Of latents and moments."""


@dataclass(frozen=True)
class FullSizeNetworks:
    """The networks of one DiffMAC, untrained.

    `vae` serves both stages. `unet` is one stage's denoiser; where a stage trains its own, inference holds two.
    `modulation` is Stage I, `second` Stage II with its bottleneck, `prompt` what is left of the text encoder.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    modulation: FeatureModulation
    second: SecondStage
    prompt: PromptEmbedding

    def parameters(self) -> dict[str, int]:
        """Number of parameters by the name of the network."""
        return {name: count_parameters(network) for name, network in vars(self).items()}


def full_size_networks(
    device: str | torch.device = "meta", *, light: bool = False, compensation: str = "identity"
) -> FullSizeNetworks:
    """All networks in the published configuration, in eval mode, with PyTorch's initial values.

    Args:
        device: "meta" gives shapes without memory; elsewhere float32 needs about 4.3 GB.
        light: `LIGHT_PYRAMID` instead of `PYRAMID` in both stages.
        compensation: of the bottleneck, a name of `COMPENSATIONS`.

    Raises:
        UnknownNameError: another compensation.
    """
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
        )
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        modulation = FeatureModulation.for_network(unet, LIGHT_PYRAMID if light else PYRAMID)
        names = ("condition_channels", "channels", "levels", "pyramid")
        second = SecondStage(
            {name: modulation.config[name] for name in names},
            {"statistics_side": SIDE, "compensation": compensation},
            label="0.001_id" if compensation == "identity" else "",
        )
        networks = (vae, unet, modulation, second, PromptEmbedding())
    return FullSizeNetworks(*(network.eval() for network in networks))


def full_size_text_encoder(device: str | torch.device = "meta") -> nn.Module:
    """The text encoder that gives the empty prompt's embedding once: OpenCLIP's ViT-H with 23 of its 24 layers.

    Raises MissingExtraError without transformers.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise missing_extra("transformers", "prompts", "the text encoder of Stable Diffusion") from error
    configuration = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        max_position_embeddings=77,
        hidden_act="gelu",
    )
    with torch.device(device):
        return CLIPTextModel(configuration).eval()
