"""DiffMAC's feature modulation, its "ControlLayer": a condition pyramid and zero-initialised spatial scales and shifts.

Paper: DiffMAC (Gao et al., 2024), equations 2 to 4. Each tensor h^i that the encoder of a pretrained denoiser produces
is normalised over space, scaled and shifted by maps made from the condition, and added to itself:

    h_I = (h - mu_I) / sigma_I          (2)
    H_I = gamma_S * h_I + beta_S        (3)
    H = H_I + h                         (4)

gamma and beta are maps over space, so this is SPADE-style modulation (Park et al., CVPR 2019) although the paper says
AdaIN. Their 1 x 1 convolutions start at zero, as ControlNet's do: at step 0 the network is the pretrained one, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError

NORM_EPS = 1e-5

SD_CHANNELS = (320,) * 4 + (640,) * 3 + (1280,) * 5
"""Channels of the twelve tensors on the skip stack of Stable Diffusion's UNet, in order."""
SD_LEVELS = (0,) * 3 + (1,) * 3 + (2,) * 3 + (3,) * 3
"""Their levels: 0 at the side of the latents, each further one at half the side."""


class FeatureModulation(ModelMixin, ConfigMixin):
    """Condition pyramid z_S and the modulation of every encoder tensor; all that a stage of DiffMAC has to learn.

    Args:
        condition_channels: C of the condition s, a latent.
        channels, levels: of each modulated tensor, see `encoder_tensors`.
        pyramid: widths of the pyramid's levels. The paper does not give them; (64, 128, 256, 256) is a light choice.
        channelwise: gamma and beta are averaged over space: AdaIN in the strict sense, an ablation.

    Raises:
        ConfigError: channels and levels of different length, or a level that the pyramid does not have.
    """

    @register_to_config
    def __init__(
        self,
        condition_channels: int = 4,
        channels: Sequence[int] = SD_CHANNELS,
        levels: Sequence[int] = SD_LEVELS,
        pyramid: Sequence[int] = (320, 640, 1280, 1280),
        channelwise: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(levels) or not channels or not 0 <= min(levels) <= max(levels) < len(pyramid):
            raise ConfigError(
                f"{len(channels)} tensors have {len(levels)} levels up to {max(levels, default=-1)}, the pyramid has "
                f"{len(pyramid)}; give one level a tensor, each below {len(pyramid)}."
            )
        widths = (condition_channels, *pyramid)
        self.condition_convs = nn.ModuleList(
            [
                nn.Conv2d(below, width, 3, stride=1 if index == 0 else 2, padding=1)
                for index, (below, width) in enumerate(zip(widths[:-1], pyramid, strict=True))
            ]
        )
        self.scales = nn.ModuleList([_zero_conv(pyramid[k], c) for c, k in zip(channels, levels, strict=True)])
        self.shifts = nn.ModuleList([_zero_conv(pyramid[k], c) for c, k in zip(channels, levels, strict=True)])

    @classmethod
    def for_network(
        cls, unet: UNet2DConditionModel, pyramid: Sequence[int], channelwise: bool = False
    ) -> FeatureModulation:
        """The modulation of all encoder tensors of a UNet, conditioned on a latent of its own width."""
        tensors = encoder_tensors(unet)
        return cls(
            condition_channels=unet.config.in_channels,
            channels=tuple(width for width, _ in tensors),
            levels=tuple(level for _, level in tensors),
            pyramid=tuple(pyramid),
            channelwise=channelwise,
        )

    def conditions(self, condition: Tensor) -> list[Tensor]:
        """z_S^1, z_S^2, ...: the condition (B, C, s, s) as maps (B, width, s / 2^k, s / 2^k), the finest first.

        Raises ImageContractError for a condition of another width, or a side that cannot be halved often enough: two
        places must be left at the coarsest level, where one place alone has no spread to normalise by.
        """
        factor = 2 ** (len(self.condition_convs) - 1)
        width, sides = self.config.condition_channels, condition.shape[2:]
        if condition.ndim != 4 or condition.shape[1] != width or any(k % factor or k <= factor for k in sides):
            raise ImageContractError(
                f"the condition is {tuple(condition.shape)}, expected (B, {width}, h, w) with sides of {2 * factor}, "
                f"{3 * factor} and so on: a latent of the same picture size."
            )
        maps, x = [], condition
        for conv in self.condition_convs:
            x = F.silu(conv(x))
            maps.append(x)
        return maps

    def modulate(self, index: int, h: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Equations 2 to 4 for encoder tensor `index`, h (B, C, k, k), with the maps of `conditions`; same shape."""
        own = maps[self.config.levels[index]]
        scale, shift = self.scales[index](own), self.shifts[index](own)
        if self.config.channelwise:
            scale, shift = scale.mean((2, 3), keepdim=True), shift.mean((2, 3), keepdim=True)
        normalised = F.instance_norm(h, eps=NORM_EPS)  # (2): per sample and channel, over space, no affine
        return scale * normalised + shift + h  # (3), (4)


def encoder_tensors(unet: UNet2DConditionModel) -> list[tuple[int, int]]:
    """(channels, level) of each tensor that a UNet's encoder puts on its skip stack, in order: 12 for Stable Diffusion.

    `conv_in`, then of each level its residual blocks and, but for the last, its downsample, which counts to the next
    level because of its side.
    """
    widths = unet.config.block_out_channels
    layers = unet.config.layers_per_block
    layers = (layers,) * len(widths) if isinstance(layers, int) else layers
    found = [(widths[0], 0)]
    for level, (width, count) in enumerate(zip(widths, layers, strict=True)):
        found += [(width, level)] * count
        if level + 1 < len(widths):
            found.append((width, level + 1))
    return found


def _zero_conv(given: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(given, width, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def unchanged(modulation: FeatureModulation) -> bool:
    """Whether all scales and shifts are still zero, that is, whether the modulated network is the plain one."""
    return all(not bool(torch.any(p)) for part in (modulation.scales, modulation.shifts) for p in part.parameters())
