"""From the latent diffusion code base, which ReF-LDM is built on, to stock diffusers networks.

The two implementations compute the same thing with other names. What differs beyond names: query, key and value share
one projection there, laid out per head; 1x1 convolutions became Linear layers; decoder levels are counted the other
way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor

from refbfr_core.weights.convert_strict import Move, fill, parameters_of, read_config, source_shapes

_UNET_REQUIRED = (
    "image_size",
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "attention_resolutions",
    "num_res_blocks",
    "num_head_channels",
)
_UNET_FIXED = {
    "use_spatial_transformer": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "dropout": 0,
}
# Widths per head rule out a number of heads; the others concern training or half precision.
_UNET_IGNORED = ("num_heads", "num_heads_upsample", "use_checkpoint", "use_fp16", "legacy")

_VQ_REQUIRED = ("resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "z_channels")
_VQ_FIXED = {"double_z": False, "attn_resolutions": [], "dropout": 0}

_UNET_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_VQ_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}


def convert_ldm_unet(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> UNet2DModel:
    """Turn a U-Net of the latent diffusion code base into a stock `UNet2DModel`.

    Parameters
    ----------
    state_dict : the authors' tensors, with or without the outer "model.diffusion_model.".
    config : the authors' own keywords (image_size, in_channels, out_channels, model_channels, channel_mult,
        attention_resolutions, num_res_blocks, num_head_channels).

    Returns
    -------
    `UNet2DModel` in eval mode, float32 (on the meta device if the tensors are there).

    Raises
    ------
    WeightsError : names or shapes do not match, on either side; nothing is ever loaded in part.
    ConfigError, UnknownNameError : a keyword is missing, unsupported or unknown.
    """
    network, moves = _unet_plan(config)
    return fill(network, state_dict, moves, "model.diffusion_model.", "U-Net")


def ldm_unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The authors' name and shape of every tensor `convert_ldm_unet` needs; raises as it does for `config`."""
    return source_shapes(*_unet_plan(config))


def _unet_plan(config: Mapping[str, Any]) -> tuple[UNet2DModel, list[Move]]:
    """The empty network of a configuration (shapes only), and the table that fills it."""
    c = read_config(config, _UNET_REQUIRED, _UNET_FIXED, _UNET_IGNORED, "U-Net")
    attends = [2**level in c["attention_resolutions"] for level in range(len(c["channel_mult"]))]
    with torch.device("meta"):
        network = UNet2DModel(
            sample_size=c["image_size"],
            in_channels=c["in_channels"],
            out_channels=c["out_channels"],
            block_out_channels=tuple(c["model_channels"] * factor for factor in c["channel_mult"]),
            layers_per_block=c["num_res_blocks"],
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            attention_head_dim=c["num_head_channels"],
            norm_num_groups=32,
            norm_eps=1e-5,
            downsample_padding=1,
            freq_shift=0,
            flip_sin_to_cos=True,
            act_fn="silu",
            resnet_time_scale_shift="default",
        )
    blocks = [c["num_res_blocks"]] * len(attends)
    return network, list(unet_moves(attends, blocks, c["num_head_channels"], set(network.state_dict())))


def convert_ldm_vq(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any], n_embed: int, embed_dim: int
) -> VQModel:
    """Turn a first stage (VQGAN) of the latent diffusion code base into a stock `VQModel`.

    Parameters
    ----------
    state_dict : the authors' tensors, with or without the outer "first_stage_model."; no discriminator ("loss.").
    config : the authors' own keywords (resolution, in_channels, out_ch, ch, ch_mult, num_res_blocks, z_channels,
        attn_resolutions, double_z, dropout).
    n_embed, embed_dim : number and width of the codebook vectors.

    Returns
    -------
    `VQModel` in eval mode, float32, with scaling factor 1 (on the meta device if the tensors are there).

    Raises
    ------
    WeightsError : names or shapes do not match, on either side; nothing is ever loaded in part.
    ConfigError, UnknownNameError : a keyword is missing, unsupported or unknown.
    """
    network, moves = _vq_plan(config, n_embed, embed_dim)
    return fill(network, state_dict, moves, "first_stage_model.", "VQGAN")


def ldm_vq_shapes(config: Mapping[str, Any], n_embed: int, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """The authors' name and shape of every tensor `convert_ldm_vq` needs; raises as it does for `config`."""
    return source_shapes(*_vq_plan(config, n_embed, embed_dim))


def _vq_plan(config: Mapping[str, Any], n_embed: int, embed_dim: int) -> tuple[VQModel, list[Move]]:
    """The empty network of a configuration (shapes only), and the table that fills it."""
    c = read_config(config, _VQ_REQUIRED, _VQ_FIXED, (), "VQGAN")
    levels = len(c["ch_mult"])
    with torch.device("meta"):
        network = VQModel(
            in_channels=c["in_channels"],
            out_channels=c["out_ch"],
            block_out_channels=tuple(c["ch"] * factor for factor in c["ch_mult"]),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=c["num_res_blocks"],
            latent_channels=c["z_channels"],
            sample_size=c["resolution"],
            num_vq_embeddings=n_embed,
            vq_embed_dim=embed_dim,
            norm_num_groups=32,
            scaling_factor=1.0,
        )
    return network, list(_vq_moves(levels, c["num_res_blocks"], set(network.state_dict())))


def _residual(source: str, target: str, names: Mapping[str, str], shortcut: str, present: set[str]) -> Iterator[Move]:
    """The moves of one residual block; its shortcut convolution exists only where the width changes."""
    for theirs, ours in names.items():
        yield from parameters_of(f"{source}.{theirs}", f"{target}.{ours}")
    if f"{target}.conv_shortcut.weight" in present:
        yield from parameters_of(f"{source}.{shortcut}", f"{target}.conv_shortcut")


def unet_moves(
    attends: Sequence[bool], blocks: Sequence[int], head_width: int, present: set[str], resblock_updown: bool = False
) -> Iterator[Move]:
    """The table of the U-Net that latent diffusion took over from guided diffusion.

    The authors number blocks in one flat list down and one up; level i has `blocks[i]` (down) or `blocks[i]` + 1 (up)
    of them, and its resampling layer counts as one more on the way down.

    attends : which levels have attention, the finest first. head_width : as in `Move`. present : the network's names.
    resblock_updown : resampling layers are residual blocks, not convolutions.
    """

    def residual(source: str, target: str) -> Iterator[Move]:
        return _residual(source, target, _UNET_RESIDUAL, "skip_connection", present)

    def attention(source: str, target: str) -> Iterator[Move]:
        yield from parameters_of(f"{source}.norm", f"{target}.group_norm")
        for kind, trailing in (("weight", 1), ("bias", 0)):
            three = tuple(f"{target}.to_{letter}.{kind}" for letter in "qkv")
            yield Move(f"{source}.qkv.{kind}", three, trailing=trailing, head_width=head_width)
        yield from parameters_of(f"{source}.proj_out", f"{target}.to_out.0", trailing=1)

    yield from parameters_of("time_embed.0", "time_embedding.linear_1")
    yield from parameters_of("time_embed.2", "time_embedding.linear_2")
    yield from parameters_of("input_blocks.0.0", "conv_in")
    last = len(attends) - 1
    number = 1
    for level, attending in enumerate(attends):
        for j in range(blocks[level]):
            yield from residual(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{j}")
            if attending:
                yield from attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{j}")
            number += 1
        if level < last:
            target = f"down_blocks.{level}.downsamplers.0"
            if resblock_updown:
                yield from residual(f"input_blocks.{number}.0", target)
            else:
                yield from parameters_of(f"input_blocks.{number}.0.op", f"{target}.conv")
            number += 1
    yield from residual("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0")
    yield from residual("middle_block.2", "mid_block.resnets.1")
    number = 0
    for up, attending in enumerate(reversed(attends)):
        for j in range(blocks[last - up] + 1):
            yield from residual(f"output_blocks.{number}.0", f"up_blocks.{up}.resnets.{j}")
            if attending:
                yield from attention(f"output_blocks.{number}.1", f"up_blocks.{up}.attentions.{j}")
            number += 1
        if up < last:
            source, target = f"output_blocks.{number - 1}.{2 if attending else 1}", f"up_blocks.{up}.upsamplers.0"
            if resblock_updown:
                yield from residual(source, target)
            else:
                yield from parameters_of(f"{source}.conv", f"{target}.conv")
    yield from parameters_of("out.0", "conv_norm_out")
    yield from parameters_of("out.2", "conv_out")


def _vq_moves(levels: int, blocks: int, present: set[str]) -> Iterator[Move]:
    """The table of the VQGAN: encoder, codebook with its two 1x1 convolutions, decoder."""

    def residual(source: str, target: str) -> Iterator[Move]:
        return _residual(source, target, _VQ_RESIDUAL, "nin_shortcut", present)

    for half in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield from parameters_of(f"{half}.{name}", f"{half}.{name}")
        yield from parameters_of(f"{half}.norm_out", f"{half}.conv_norm_out")
        yield from residual(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
        yield from residual(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")
        source, target = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        yield from parameters_of(f"{source}.norm", f"{target}.group_norm")
        for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            yield from parameters_of(f"{source}.{theirs}", f"{target}.{ours}", trailing=2)
    for level in range(levels):
        up = levels - 1 - level  # the authors count decoder levels from the finest, diffusers from the coarsest
        for j in range(blocks):
            yield from residual(f"encoder.down.{level}.block.{j}", f"encoder.down_blocks.{level}.resnets.{j}")
        for j in range(blocks + 1):
            yield from residual(f"decoder.up.{level}.block.{j}", f"decoder.up_blocks.{up}.resnets.{j}")
        if level < levels - 1:
            source, target = f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
            yield from parameters_of(source, target)
        if level > 0:
            source, target = f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{up}.upsamplers.0.conv"
            yield from parameters_of(source, target)
    yield from parameters_of("quant_conv", "quant_conv")
    yield from parameters_of("post_quant_conv", "post_quant_conv")
    yield Move("quantize.embedding.weight", ("quantize.embedding.weight",))
