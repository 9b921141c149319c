"""From the guided-diffusion code base (ADM), which DifFace's and PGDiff's face model is built on, to an `ADMUNet`.

The names are those that latent diffusion took over, so the table is `convert_ldm.unet_moves`. What is new here: blocks
are counted for each level (DifFace), resampling layers can be residual blocks, and the files of multi-GPU trainings
carry "module." before every name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.models.adm_unet import GROUPS, ADMUNet
from refbfr_core.weights.convert_ldm import unet_moves
from refbfr_core.weights.convert_strict import Move, fill, source_shapes

PREFIX = "module."
"""What `DistributedDataParallel` puts before every name; the converter takes it off."""


def convert_adm_unet(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: int,
    model_channels: int,
    channel_mult: Sequence[float],
    num_res_blocks: int | Sequence[int],
    attention_sizes: Sequence[int],
    num_head_channels: int,
    resblock_updown: bool,
    legacy_qkv: bool = True,
    out_channels: int = 6,
) -> ADMUNet:
    """Turn a U-Net of the guided-diffusion code base into an `ADMUNet`.

    Parameters
    ----------
    state_dict : the authors' tensors, with or without "module." before every name.
    image_size : side of the pictures in pixels.
    model_channels, channel_mult : the width of level i is `model_channels * channel_mult[i]`, a multiple of 32.
    num_res_blocks : residual blocks of every level, or one number a level (DifFace).
    attention_sizes : sides of the feature maps with attention, as DifFace and PGDiff write them. OpenAI's constructor
        wants `image_size // side` instead.
    num_head_channels : channels of one attention head.
    resblock_updown : resampling by residual blocks instead of convolutions.
    legacy_qkv : rows of the joint projection are laid out (head, query/key/value, channel); False is OpenAI's
        `use_new_attention_order`.
    out_channels : 6 with a learned variance, 3 without.

    Returns
    -------
    `ADMUNet` in eval mode, float32 (on the meta device if the tensors are there).

    Raises
    ------
    WeightsError : names or shapes do not match, on either side; nothing is ever loaded in part.
    ConfigError : settings that no such network has.
    """
    network, moves = _plan(
        image_size=image_size,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        attention_sizes=attention_sizes,
        num_head_channels=num_head_channels,
        resblock_updown=resblock_updown,
        legacy_qkv=legacy_qkv,
        out_channels=out_channels,
    )
    return fill(network, state_dict, moves, PREFIX, "ADM U-Net")


def adm_unet_shapes(**config: object) -> dict[str, tuple[int, ...]]:
    """The authors' name (without prefix) and shape of every tensor that `convert_adm_unet` needs for its keywords."""
    return source_shapes(*_plan(**config))


def _plan(
    *,
    image_size: int,
    model_channels: int,
    channel_mult: Sequence[float],
    num_res_blocks: int | Sequence[int],
    attention_sizes: Sequence[int],
    num_head_channels: int,
    resblock_updown: bool,
    legacy_qkv: bool = True,
    out_channels: int = 6,
) -> tuple[ADMUNet, list[Move]]:
    """The empty network of a configuration (shapes only), and the table that fills it."""
    channels = tuple(int(model_channels * factor) for factor in channel_mult)
    levels = len(channels)
    blocks = (num_res_blocks,) * levels if isinstance(num_res_blocks, int) else tuple(num_res_blocks)
    if len(blocks) != levels:
        raise ConfigError(
            f"num_res_blocks has {len(blocks)} numbers for {levels} levels (channel_mult); expected one a level, or a "
            "single number for all."
        )
    sides = [image_size // 2**level for level in range(levels)]
    if strange := [side for side in attention_sizes if side not in sides]:
        raise ConfigError(
            f"attention_sizes names {strange}, but this network's feature maps are {sides} wide. Pass sides of "
            "feature maps; if yours are downsampling factors (OpenAI's constructor), pass image_size // factor."
        )
    attends = [side in attention_sizes for side in sides]
    widths = {width for width, attending in zip(channels, attends, strict=True) if attending} | set(channels[-1:])
    if any(width % GROUPS for width in channels) or any(w % num_head_channels for w in widths):
        raise ConfigError(
            f"levels {channels} channels wide cannot be normalised in {GROUPS} groups and attended to in heads of "
            f"{num_head_channels}; widths must be multiples of both. Check model_channels, channel_mult and "
            "num_head_channels."
        )
    with torch.device("meta"):
        network = ADMUNet(
            sample_size=image_size,
            channels=channels,
            layers_per_level=blocks,
            attention_levels=tuple(level for level, attending in enumerate(attends) if attending),
            head_width=num_head_channels,
            out_channels=out_channels,
            time_width=None if model_channels == channels[0] else model_channels,
            resample="resnet" if resblock_updown else "conv",
        )
    head_width = num_head_channels if legacy_qkv else 0
    return network, list(unet_moves(attends, blocks, head_width, set(network.state_dict()), resblock_updown))
