"""A stock `UNet2DModel` with injectors behind its attention layers (LD-BFR, section 3.3, Figs 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.models.hq_injection import (
    ConcatInjector,
    DecoderInjector,
    EncoderInjector,
    condition_channels,
    resample_condition,
)

KINDS = ("e-hqi", "d-hqi", "concat", "none")
VARIANTS = MappingProxyType(
    {"A": ("concat", "concat"), "B": ("e-hqi", "e-hqi"), "C": ("d-hqi", "d-hqi"), "D": ("e-hqi", "d-hqi")}
)
"""Kinds of injector in encoder and decoder, by the letter of Fig. 9; D is the method."""


class HQInjection(ModelMixin, ConfigMixin):
    """All injectors of one network, theta_2 of equation 6: one behind every attention layer of the chosen levels.

    Args:
        channels: widths of the levels of the `UNet2DModel`, the finest first.
        layers_per_block: residual blocks of a level going down; going up each has one more.
        sample_side: side of the latents.
        condition: channels of f_HQ. condition_side: its side.
        levels: down-sampling factors with injectors, (2, 4) as published; the bottleneck never has one.
        encoder, decoder: kind in either half: "e-hqi", "d-hqi", "concat" or "none".
        head_width, groups: of the attentions and group norms.
        expansion: of the E-HQI's hidden channels, 2 as released.
        released: the authors' D-HQI, see `DecoderInjector`.

    Raises:
        UnknownNameError: another kind. ConfigError: levels that do not exist, or a condition that does not fit there.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        sample_side: int = 64,
        condition: int = 256,
        condition_side: int = 16,
        levels: Sequence[int] = (2, 4),
        encoder: str = "e-hqi",
        decoder: str = "d-hqi",
        head_width: int = 32,
        groups: int = 32,
        expansion: float = 2.0,
        released: bool = False,
    ) -> None:
        super().__init__()
        for kind in (encoder, decoder):
            if kind not in KINDS:
                raise unknown_name("injection", kind, KINDS)
        for factor in levels:
            if factor not in [2**index for index in range(len(channels))]:
                raise ConfigError(f"a network of {len(channels)} levels has no level {factor}; they are 1, 2, 4 ...")

        def injectors(kind: str, factor: int, count: int) -> nn.ModuleList:
            width = channels[factor.bit_length() - 1]
            given = condition_channels(condition, condition_side, sample_side // factor)
            make = {
                "concat": lambda: ConcatInjector(width, given),
                "e-hqi": lambda: EncoderInjector(width, given, head_width, groups, expansion),
                "d-hqi": lambda: DecoderInjector(width, given, head_width, released),
            }
            return nn.ModuleList([make[kind]() for _ in range(count)])

        going = (("down", encoder, layers_per_block), ("up", decoder, layers_per_block + 1))
        self.injectors = nn.ModuleDict(
            {
                f"{half}_{factor}": injectors(kind, factor, count)
                for half, kind, count in going
                for factor in sorted(levels)
                if kind != "none"
            }
        )

    @classmethod
    def for_network(cls, unet: UNet2DModel, condition: int, condition_side: int, variant: str = "D", **changes: object):
        """The injectors of a variant of Fig. 9 for a `UNet2DModel`; `changes` are other arguments of the class."""
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        encoder, decoder = VARIANTS[variant]
        own = {
            "channels": tuple(unet.config.block_out_channels),
            "layers_per_block": unet.config.layers_per_block,
            "sample_side": unet.config.sample_size,
            "head_width": unet.config.attention_head_dim,
            "groups": unet.config.norm_num_groups,
            "encoder": encoder,
            "decoder": decoder,
        }
        return cls(condition=condition, condition_side=condition_side, **{**own, **changes})

    def at(self, half: str, factor: int, index: int) -> nn.Module | None:
        """The injector behind attention layer `index` of a level, None where there is none."""
        key = f"{half}_{factor}"
        return self.injectors[key][index] if key in self.injectors else None

    @property
    def variant(self) -> str:
        """The letter of Fig. 9, or the kinds of both halves."""
        kinds = (self.config.encoder, self.config.decoder)
        return next((letter for letter, own in VARIANTS.items() if own == kinds), "+".join(kinds))


def denoise_injected(
    unet: UNet2DModel, sample: Tensor, timestep: Tensor | int, injection: HQInjection | None, condition: Tensor | None
) -> Tensor:
    """One call of the network with f_HQ injected; without injection or condition the stock forward pass.

    The blocks are the network's own. An injector follows the attention layer of its block, and what it returns also
    goes over the skip connection to the decoder.

    Args:
        unet: stock network whose levels 2, 4, ... have attention.
        sample: (B, C, s, s) noisy latents. timestep: one number or (B,).
        injection: theta_2, or None. condition: f_HQ (B, c, h, h), or None.

    Returns:
        (B, C, s, s), the prediction.

    Raises:
        ConfigError: only one of injection and condition, or another network than the injectors were made for.
        ImageContractError: latents or a condition that do not fit.
    """
    if (injection is None) != (condition is None):
        raise ConfigError("injectors and their condition belong together; pass both, or neither.")
    if injection is None:
        return unet(sample, timestep).sample
    _check(unet, sample, injection, condition)
    given = {factor: resample_condition(condition, sample.shape[-1] // factor) for factor in injection.config.levels}

    def attend(block: nn.Module, index: int, x: Tensor, half: str, factor: int) -> Tensor:
        if getattr(block, "attentions", None) is None:
            return x
        x = block.attentions[index](x)
        injector = injection.at(half, factor, index)
        return x if injector is None else injector(x, given[factor])

    embedding = unet.time_embedding(unet.time_proj(_timesteps(timestep, sample)).to(unet.dtype))
    x = unet.conv_in(sample)
    skips = [x]
    for level, block in enumerate(unet.down_blocks):
        for index, resnet in enumerate(block.resnets):
            x = attend(block, index, resnet(x, embedding), "down", 2**level)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
    x = unet.mid_block(x, embedding)
    for level, block in reversed(list(enumerate(reversed(unet.up_blocks)))):
        for index, resnet in enumerate(block.resnets):
            x = attend(block, index, resnet(torch.cat([x, skips.pop()], dim=1), embedding), "up", 2**level)
        for upsampler in block.upsamplers or ():
            x = upsampler(x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _timesteps(timestep: Tensor | int, sample: Tensor) -> Tensor:
    """(B,) from one number or from (B,)."""
    return torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))


def _check(unet: UNet2DModel, sample: Tensor, injection: HQInjection, condition: Tensor) -> None:
    own, made_for = unet.config, injection.config
    if tuple(own.block_out_channels) != tuple(made_for.channels) or own.layers_per_block != made_for.layers_per_block:
        raise ConfigError(
            f"these injectors belong to levels of {tuple(made_for.channels)} channels with {made_for.layers_per_block} "
            f"blocks, the network has {tuple(own.block_out_channels)} with {own.layers_per_block}; use "
            "HQInjection.for_network(unet, ...)."
        )
    for factor in made_for.levels:
        if getattr(unet.down_blocks[factor.bit_length() - 1], "attentions", None) is None:
            raise ConfigError(f"level {factor} of this network has no attention to inject behind; use other levels.")
    if tuple(sample.shape[-2:]) != (made_for.sample_side,) * 2:
        raise ImageContractError(
            f"the latents are {tuple(sample.shape)}, not (B, C, {made_for.sample_side}, {made_for.sample_side})."
        )
    side = made_for.condition_side
    if condition.shape != (len(sample), made_for.condition, side, side):
        raise ImageContractError(
            f"the condition is {tuple(condition.shape)}, not ({len(sample)}, {made_for.condition}, {side}, {side})."
        )
