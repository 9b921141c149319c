"""LD-BFR's injection: P_s, the three injectors, the network with them, and what is refused."""

from __future__ import annotations

import formulas_ldbfr as formulas
import pytest
import tiny_ldbfr as tiny
import torch
from diffusers import UNet2DModel
from formulas_ldbfr import draw

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.models.hq_injection import condition_channels, resample_condition
from refbfr_core.models.injected_unet import VARIANTS, HQInjection, denoise_injected


@pytest.fixture(scope="module")
def network():
    return tiny.unet()


def inputs(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(count, *tiny.LATENTS), draw(count, *tiny.FEATURES, seed=1)


def silence(injectors: HQInjection, *keys: str) -> None:
    """Put the last layer of the injectors of these halves and levels back to zero."""
    for key in keys:
        for one in injectors.injectors[key]:
            for name in ("project", "conv", "to_out"):
                if hasattr(one, name):
                    for parameter in getattr(one, name).parameters():
                        parameter.zero_()
                    break


# --- P_s --------------------------------------------------------------------------------------------------------------


def test_rearranging_number_by_number():
    formulas.compare_rearranging()


@pytest.mark.parametrize("side", [4, 8, 16, 32, 64])
def test_rearranging_loses_nothing_and_can_be_undone(side):
    condition = draw(2, 256, 16, 16)
    made = resample_condition(condition, side)
    assert made.numel() == condition.numel()
    assert made.shape == (2, condition_channels(256, 16, side), side, side)
    assert torch.equal(made.flatten().sort().values, condition.flatten().sort().values)
    assert torch.equal(resample_condition(made, 16), condition)


def test_channels_of_the_condition_at_full_size():
    assert [condition_channels(256, 16, side) for side in (32, 16, 8)] == [64, 256, 1024]


@pytest.mark.parametrize(("channels", "own", "side"), [(16, 4, 6), (6, 4, 8), (16, 4, 3), (16, 6, 4)])
def test_sides_that_do_not_fit(channels, own, side):
    with pytest.raises(ConfigError, match="cannot be rearranged"):
        resample_condition(draw(1, channels, own, own), side)
    with pytest.raises(ConfigError, match="cannot be rearranged"):
        condition_channels(channels, own, side)


# --- injectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compare",
    [
        formulas.compare_concatenation,
        formulas.compare_e_hqi,
        formulas.compare_d_hqi,
        lambda: formulas.compare_d_hqi(released=True),
    ],
    ids=["concatenation", "E-HQI", "D-HQI as printed", "D-HQI as released"],
)
def test_the_formulas(compare):
    compare()


def test_the_two_readings_of_the_d_hqi_are_different_modules(network):
    printed, released = (HQInjection.for_network(network, 16, 4, released=flag) for flag in (False, True))
    names = [set(dict(one.injectors["up_2"][0].named_parameters())) for one in (printed, released)]
    assert names[1] - names[0] == {"norm.weight", "norm.bias", "norm_query.weight", "norm_query.bias"}
    widths = [one.injectors["up_2"][0].modulation.in_features for one in (printed, released)]
    assert widths == [4, 4 + 16]
    for key in ("down_2", "down_4"):
        assert str(printed.injectors[key]) == str(released.injectors[key])


# --- the network with injectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_injectors_follow_the_attention_layers_and_go_over_the_skips(variant):
    formulas.compare_network(variant)


@torch.no_grad()
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_start_the_network_is_bit_for_bit_the_unconditional_one(network, variant, released):
    injectors = HQInjection.for_network(network, 16, 4, variant, released=released).eval()
    sample, condition = inputs(3)
    for timestep in (0, 999, torch.tensor(500), torch.tensor([1, 20, 999])):
        stock = network(sample, timestep).sample
        assert torch.equal(denoise_injected(network, sample, timestep, injectors, condition), stock)
        assert torch.equal(denoise_injected(network, sample, timestep, None, None), stock)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_wide_levels_are_no_exception(variant, count):
    """Attention leaves features of one picture in a layout of its own; convolutions of 32 channels and more notice."""
    shape = {"sample_size": 16, "block_out_channels": (32, 64), "norm_num_groups": 32, "attention_head_dim": 16}
    attends = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    wide = UNet2DModel(**shape, **attends, layers_per_block=1).eval()
    injectors = HQInjection.for_network(wide, 16, 4, variant, levels=(2,)).eval()
    sample, condition = inputs(count)
    assert torch.equal(denoise_injected(wide, sample, 7, injectors, condition), wide(sample, 7).sample)
    feature = wide.down_blocks[1].attentions[0](draw(count, 64, 8, 8))
    for injector in (injectors.at("down", 2, 0), injectors.at("up", 2, 0)):
        made = injector(feature, draw(count, 4, 8, 8))
        assert torch.equal(made, feature) and made.stride() == feature.stride()


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_half_and_level_is_used(network, variant):
    sample, condition = inputs()

    def run(*silenced, given=condition):
        injectors = tiny.injection(network, variant)
        silence(injectors, *silenced)
        return denoise_injected(network, sample, 500, injectors, given)

    whole, keys = run(), ("down_2", "down_4", "up_2", "up_4")
    stock = network(sample, 500).sample
    torch.testing.assert_close(run(*keys), stock)  # what `silence` does is what it says
    outputs = [whole, stock, run("down_2", "down_4"), run("up_2", "up_4"), *(run(key) for key in keys)]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert float((a - b).abs().max()) > 1e-3
    assert float((run(given=condition.flip(0)) - whole).abs().max()) > 1e-3
    # Each sample sees its own condition only.
    other = condition.clone()
    other[1] += 1
    changed = run(given=other)
    assert torch.allclose(changed[0], whole[0], atol=1e-5) and not torch.allclose(changed[1], whole[1], atol=1e-3)


def test_only_the_injectors_get_gradients_from_a_frozen_network(network):
    injectors = HQInjection.for_network(network, 16, 4).train()
    network.requires_grad_(False)
    sample, condition = inputs()
    denoise_injected(network, sample, 500, injectors, condition).square().mean().backward()
    reached = {name for name, p in injectors.named_parameters() if p.grad is not None and float(p.grad.abs().max())}
    # At the start only the zero layers learn: whatever stands before them is multiplied by zero.
    assert reached == {name for name in dict(injectors.named_parameters()) if _is_last_layer(name)}
    network.requires_grad_(True)


def _is_last_layer(name: str) -> bool:
    """E-HQI ends in `to_out`, D-HQI in `project`."""
    return (".to_out." in name) if ".down_" in name else (".project." in name)


# --- saving and refusals ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_injectors_come_back_the_same(network, tmp_path, variant):
    injectors = tiny.injection(network, variant)
    injectors.save_pretrained(tmp_path)
    again, info = HQInjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.variant == variant
    sample, condition = inputs()
    before, after = (denoise_injected(network, sample, 7, one, condition) for one in (injectors, again))
    assert torch.equal(before, after)


def test_halves_may_be_left_out_and_other_kinds_be_mixed(network):
    only = HQInjection.for_network(network, 16, 4, encoder="none")
    assert list(only.injectors) == ["up_2", "up_4"] and only.at("down", 2, 0) is None
    assert only.variant == "none+d-hqi"
    assert HQInjection.for_network(network, 16, 4, "A", decoder="d-hqi").variant == "concat+d-hqi"
    deep = HQInjection.for_network(network, 16, 4, levels=(2, 4, 8))
    assert [len(one) for one in deep.injectors.values()] == [1, 1, 1, 2, 2, 2]
    assert not any(name.startswith("mid") for name in deep.injectors)
    with torch.no_grad():
        sample, condition = inputs()
        assert torch.equal(denoise_injected(network, sample, 5, deep, condition), network(sample, 5).sample)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"variant": "E"}, UnknownNameError, "E"),
        ({"encoder": "ehqi"}, UnknownNameError, "e-hqi"),
        ({"decoder": "dhqi"}, UnknownNameError, "d-hqi"),
        ({"levels": (2, 16)}, ConfigError, "no level 16"),
        ({"levels": (3,)}, ConfigError, "no level 3"),
        ({"condition": 2}, ConfigError, "cannot be rearranged"),
        ({"condition_side": 5}, ConfigError, "cannot be rearranged"),
    ],
)
def test_injectors_that_cannot_be(network, changes, error, says):
    with pytest.raises(error, match=says):
        HQInjection.for_network(network, **({"condition": 16, "condition_side": 4} | changes))


def test_inputs_that_do_not_fit(network):
    injectors, (sample, condition) = HQInjection.for_network(network, 16, 4), inputs()
    for given in (condition[:1], condition[:, :8], condition[..., :2], draw(2, 16, 8, 8)):
        with pytest.raises(ImageContractError, match=r"not \(2, 16, 4, 4\)"):
            denoise_injected(network, sample, 5, injectors, given)
    for pair in ((None, condition), (injectors, None)):
        with pytest.raises(ConfigError, match="belong together"):
            denoise_injected(network, sample, 5, *pair)
    with pytest.raises(ImageContractError, match=r"latents are .*not \(B, C, 16, 16\)"):
        denoise_injected(network, draw(2, 3, 32, 32), 5, injectors, condition)


def test_networks_that_do_not_fit(network):
    sample, condition = inputs()
    shape = {"sample_size": 16, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8}
    attends = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    other = UNet2DModel(**shape, **attends)
    with pytest.raises(ConfigError, match=r"levels of \(8, 16, 16, 16\) channels with 1 blocks"):
        denoise_injected(other, sample, 5, HQInjection.for_network(network, 16, 4), condition)
    # A level without attention has no place behind it: an injector there would never be called.
    finest = HQInjection.for_network(other, 16, 4, levels=(1, 2))
    with pytest.raises(ConfigError, match="level 1 .*no attention"):
        denoise_injected(other, sample, 5, finest, condition)
