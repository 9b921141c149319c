"""Converters refuse whatever does not fit whole; what they compute is in the parity tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, UnknownNameError, WeightsError
from refbfr_core.weights import convert
from refbfr_core.weights.convert_strict import Move

UNET = {
    "image_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2, 2],
    "attention_resolutions": [2, 4],
    "num_res_blocks": 1,
    "num_head_channels": 16,
}
VQ = {
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 4,
}


def convert_unet(state: dict[str, Tensor], **changes):
    return convert.convert_ldm_unet(state, UNET | changes)


def convert_vq(state: dict[str, Tensor], **changes):
    return convert.convert_ldm_vq(state, VQ | changes, n_embed=16, embed_dim=4)


def authors_state(converter: Callable) -> dict[str, Tensor]:
    """A state in the authors' layout for one of the configurations, written out here independently of the tables."""
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape), torch.randn(shape[0])

    def residual(name: str, names: tuple[str, str, str, str], cin: int, cout: int, skip: str, emb: int = 0) -> None:
        norm1, conv1, norm2, conv2 = (f"{name}.{part}" for part in names)
        add(norm1, cin)
        add(conv1, cout, cin, 3, 3)
        add(norm2, cout)
        add(conv2, cout, cout, 3, 3)
        if emb:
            add(f"{name}.emb_layers.1", cout, emb)
        if cin != cout:
            add(f"{name}.{skip}", cout, cin, 1, 1)

    if converter is convert_unet:
        names = ("in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3")

        def block(name: str, cin: int, cout: int) -> None:
            residual(name, names, cin, cout, "skip_connection", emb=128)

        def attention(name: str, c: int) -> None:
            add(f"{name}.norm", c)
            add(f"{name}.qkv", 3 * c, c, 1)
            add(f"{name}.proj_out", c, c, 1)

        add("time_embed.0", 128, 32)
        add("time_embed.2", 128, 128)
        add("input_blocks.0.0", 32, 8, 3, 3)
        block("input_blocks.1.0", 32, 32)
        add("input_blocks.2.0.op", 32, 32, 3, 3)
        block("input_blocks.3.0", 32, 64)
        attention("input_blocks.3.1", 64)
        add("input_blocks.4.0.op", 64, 64, 3, 3)
        block("input_blocks.5.0", 64, 64)
        attention("input_blocks.5.1", 64)
        block("middle_block.0", 64, 64)
        attention("middle_block.1", 64)
        block("middle_block.2", 64, 64)
        for i, (cin, cout, attends) in enumerate(
            [(128, 64, True), (128, 64, True), (128, 64, True), (96, 64, True), (96, 32, False), (64, 32, False)]
        ):
            block(f"output_blocks.{i}.0", cin, cout)
            if attends:
                attention(f"output_blocks.{i}.1", cout)
        add("output_blocks.1.2.conv", 64, 64, 3, 3)
        add("output_blocks.3.2.conv", 64, 64, 3, 3)
        add("out.0", 32)
        add("out.2", 4, 32, 3, 3)
        return state

    def vq_block(name: str, cin: int, cout: int) -> None:
        residual(name, ("norm1", "conv1", "norm2", "conv2"), cin, cout, "nin_shortcut")

    for half, first, last in (("encoder", (32, 3), (4, 64)), ("decoder", (64, 4), (3, 32))):
        add(f"{half}.conv_in", *first, 3, 3)
        add(f"{half}.conv_out", *last, 3, 3)
        add(f"{half}.norm_out", last[1])
        for name in ("block_1", "block_2"):
            vq_block(f"{half}.mid.{name}", 64, 64)
        add(f"{half}.mid.attn_1.norm", 64)
        for name in ("q", "k", "v", "proj_out"):
            add(f"{half}.mid.attn_1.{name}", 64, 64, 1, 1)
    vq_block("encoder.down.0.block.0", 32, 32)
    add("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    vq_block("encoder.down.1.block.0", 32, 64)
    vq_block("decoder.up.1.block.0", 64, 64)
    vq_block("decoder.up.1.block.1", 64, 64)
    add("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    vq_block("decoder.up.0.block.0", 64, 32)
    vq_block("decoder.up.0.block.1", 32, 32)
    add("quant_conv", 4, 4, 1, 1)
    add("post_quant_conv", 4, 4, 1, 1)
    state["quantize.embedding.weight"] = torch.randn(16, 4)
    return state


BOTH = pytest.mark.parametrize(
    ("converter", "prefix"), [(convert_unet, "model.diffusion_model."), (convert_vq, "first_stage_model.")]
)


@BOTH
def test_with_and_without_the_outer_prefix(converter, prefix):
    state = authors_state(converter)
    plain, prefixed = converter(state), converter({prefix + key: tensor for key, tensor in state.items()})
    assert not plain.training
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, prefixed.state_dict()[key]), key


@BOTH
def test_missing_and_superfluous_tensors_are_named(converter, prefix):
    state = authors_state(converter)
    for key in list(state)[::19]:
        with pytest.raises(WeightsError, match=f"1 missing \\({key}\\)"):
            converter({other: tensor for other, tensor in state.items() if other != key})
    with pytest.raises(WeightsError, match=r"1 superfluous \(loss.discriminator.weight\)"):
        converter(state | {"loss.discriminator.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="missing"):
        converter({})


@BOTH
def test_wrong_shapes_and_types_are_named(converter, prefix):
    state = authors_state(converter)
    key = next(key for key in state if key.endswith(("conv_in.weight", "input_blocks.0.0.weight")))
    with pytest.raises(WeightsError, match=f"{key} is .*, not "):
        converter(state | {key: state[key][:, :2]})
    with pytest.raises(WeightsError, match=f"not floating \\({key}\\)"):
        converter(state | {key: state[key].to(torch.int32)})


@BOTH
def test_another_configuration_does_not_fit(converter, prefix):
    with pytest.raises(WeightsError, match="Nothing was loaded"):
        converter(authors_state(converter), num_res_blocks=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_network_owns_its_tensors_in_float32(dtype):
    state = {key: tensor.to(dtype) for key, tensor in authors_state(convert_unet).items()}
    unet = convert_unet(state)
    before = unet.conv_in.weight.clone()
    state["input_blocks.0.0.weight"].zero_()
    assert unet.dtype == torch.float32
    assert torch.equal(unet.conv_in.weight, before)
    qkv = [layer.weight for layer in (unet.mid_block.attentions[0].to_q, unet.mid_block.attentions[0].to_k)]
    assert qkv[0].untyped_storage().data_ptr() != qkv[1].untyped_storage().data_ptr()


def test_joint_projections_are_split_head_by_head():
    # Two heads of width 2: rows are q q k k v v of head 0, then of head 1.
    rows = torch.arange(12.0)[:, None, None].expand(12, 4, 1)
    parts = Move("qkv", ("q", "k", "v"), trailing=1, head_width=2).apply(rows)
    assert {name: part[:, 0].tolist() for name, part in parts.items()} == {
        "q": [0.0, 1.0, 6.0, 7.0],
        "k": [2.0, 3.0, 8.0, 9.0],
        "v": [4.0, 5.0, 10.0, 11.0],
    }


def test_configurations_that_mean_another_network_are_refused():
    with pytest.raises(ConfigError, match="lacks num_res_blocks"):
        convert.convert_ldm_unet({}, {key: value for key, value in UNET.items() if key != "num_res_blocks"})
    with pytest.raises(ConfigError, match="use_scale_shift_norm=True is not supported"):
        convert_unet({}, use_scale_shift_norm=True)
    with pytest.raises(ConfigError, match="attn_resolutions"):
        convert_vq({}, attn_resolutions=[16])
    with pytest.raises(UnknownNameError, match="Did you mean 'num_head_channels'"):
        convert_unet({}, num_head_chanels=16)
