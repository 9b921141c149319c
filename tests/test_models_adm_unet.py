"""The guided-diffusion network and the coarse restorer made of it: structure, folding, the two halves, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_pdgrad import faces, shake

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.images import to_network
from refbfr_core.models.adm_unet import ADMUNet, zero_output
from refbfr_core.models.coarse import CoarseNet

SHAPE = {"sample_size": 32, "channels": (8, 16), "layers_per_level": (1, 1), "attention_levels": (1,)}
SHAPE |= {"head_width": 8, "groups": 4}


def make(kind=ADMUNet, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return shake(kind(**(SHAPE | changes)), 1)


def pictures(count: int = 2) -> torch.Tensor:
    return to_network(faces(count, 4))


@torch.no_grad()
def output(network, images, t=500):
    return network(images, t).sample


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": 2, "bounded_code": True},
        {"time_width": 12, "layers_per_level": (1, 2)},
        {"resample": "resnet", "attention_levels": ()},
    ],
)
def test_a_saved_network_comes_back_the_same(tmp_path, changes):
    network = make(**changes)
    network.save_pretrained(tmp_path)
    again = ADMUNet.from_pretrained(tmp_path).eval()
    for key, value in (SHAPE | changes).items():
        kept = again.config[key]
        assert (tuple(kept) if isinstance(value, tuple) else kept) == value
    x = pictures()
    assert torch.allclose(output(network, x), output(again, x), atol=1e-6)
    empty = ADMUNet.from_config(network.config)
    assert [(key, value.shape) for key, value in empty.state_dict().items()] == [
        (key, value.shape) for key, value in network.state_dict().items()
    ]


def test_the_configuration_names_this_class_arguments_only():
    config = make().config
    assert {"channels", "layers_per_level", "patch_size", "time_width"} <= set(config)
    assert "block_out_channels" not in config and "down_block_types" not in config


def test_a_coarse_network_comes_back_the_same(tmp_path):
    network = make(CoarseNet, patch_size=2)
    network.save_pretrained(tmp_path)
    again = CoarseNet.from_pretrained(tmp_path).eval()
    assert again.config.patch_size == 2 and "out_channels" not in again.config
    assert torch.allclose(network.restore(pictures()), again.restore(pictures()), atol=1e-6)


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 3)])
def test_every_level_has_its_own_number_of_blocks(counts):
    network = make(layers_per_level=counts)
    assert tuple(len(block.resnets) for block in network.down_blocks) == counts
    assert tuple(len(block.resnets) for block in network.up_blocks) == tuple(n + 1 for n in reversed(counts))
    assert output(network, pictures()).shape == (2, 6, 32, 32)


def test_attention_sits_at_the_named_levels_and_in_the_middle():
    network = make(attention_levels=(0,))
    attending = [bool(getattr(block, "attentions", None)) for block in (*network.down_blocks, *network.up_blocks)]
    assert attending == [True, False, False, True]
    # Without its own group norm the middle would be another function than ADM's.
    assert network.mid_block.attentions[0].group_norm.num_groups == 4
    assert network.mid_block.attentions[0].heads == 2


def test_the_sinusoid_has_a_width_of_its_own():
    plain, wide = make(), make(time_width=12)
    assert plain.time_embedding.linear_1.in_features == 8 and plain.time_embedding.linear_1.out_features == 32
    assert wide.time_embedding.linear_1.in_features == 12 and wide.time_embedding.linear_1.out_features == 48
    assert {block.time_emb_proj.in_features for block in wide.down_blocks[0].resnets} == {48}
    x = pictures()
    assert not torch.allclose(output(wide, x, 10), output(wide, x, 900), atol=1e-3)
    # Every picture may have its own timestep.
    both = output(wide, x, torch.tensor([10, 900]))
    assert torch.allclose(both[:1], output(wide, x[:1], 10), atol=1e-5)
    assert torch.allclose(both[1:], output(wide, x[1:], 900), atol=1e-5)


@pytest.mark.parametrize("patch", [2, 4])
def test_folding_is_a_pixel_unshuffle_around_an_unfolded_network(patch):
    folding = make(patch_size=patch)
    inner = {"sample_size": 32 // patch, "in_channels": 3 * patch**2, "out_channels": 6 * patch**2}
    unfolded = make(**inner)
    unfolded.load_state_dict(folding.state_dict())
    x = pictures()
    by_hand = F.pixel_shuffle(output(unfolded, F.pixel_unshuffle(x, patch)), patch)
    assert torch.allclose(output(folding, x), by_hand, atol=1e-6)
    assert folding.config.sample_size == 32


# --- the two halves of the output -------------------------------------------------------------------------------------


def test_a_bounded_code_stays_in_range_and_leaves_the_prediction_alone():
    free = make(patch_size=2)
    with torch.no_grad():
        free.conv_out.weight.mul_(100)
    bounded = make(patch_size=2, bounded_code=True)
    bounded.load_state_dict(free.state_dict())
    x = pictures()
    (prediction, code), (own, squashed) = (output(each, x).chunk(2, dim=1) for each in (free, bounded))
    assert torch.equal(prediction, own) and float(prediction.abs().max()) > 1
    assert float(code.abs().max()) > 1 >= float(squashed.abs().max())
    assert torch.equal(squashed, code.tanh())


def test_zero_output_predicts_nothing_and_leaves_the_skips():
    network = make()
    assert float(output(network, pictures()).abs().max()) > 0
    assert zero_output(network) is network
    assert not output(network, pictures()).any()
    assert not any(block.conv2.weight.any() for block in network.down_blocks[0].resnets)
    assert network.conv_in.weight.any()


# --- the coarse restorer ----------------------------------------------------------------------------------------------


def test_the_coarse_restorer_answers_in_range_without_a_gradient():
    network = make(CoarseNet, patch_size=2)
    with torch.no_grad():
        network.conv_out.weight.mul_(100)
    x = pictures().requires_grad_(True)
    restored = network.restore(x)
    assert restored.shape == x.shape and not restored.requires_grad
    assert float(restored.min()) == -1 and float(restored.max()) == 1
    residual = network.residual(x)
    assert residual.shape == x.shape and residual.requires_grad
    assert torch.equal(restored, (x + residual).clamp(-1, 1).detach())


def test_an_untrained_coarse_restorer_changes_nothing():
    x = pictures()
    assert torch.equal(zero_output(make(CoarseNet)).restore(x), x)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers_per_level": (1,)}, "same levels"),
        ({"layers_per_level": (1, 0)}, "each with a block"),
        ({"channels": (), "layers_per_level": ()}, "same levels"),
        ({"attention_levels": (2,)}, "not there; levels are 0"),
        ({"attention_levels": (-1,)}, "not there"),
        ({"resample": "bilinear"}, "'conv' or 'resnet'"),
        ({"patch_size": 3}, "folded by 3"),
        ({"patch_size": 0}, "folded by 0"),
        ({"sample_size": 33}, "33 px"),
        ({"groups": 3}, "3 groups"),
        ({"head_width": 12}, "heads of 12"),
        ({"head_width": 32}, "heads of 32"),
        ({"time_width": 7}, "even number"),
        ({"bounded_code": True, "out_channels": 3}, "variance code needs 6"),
        ({"center_input_sample": True}, "no centring"),
        ({"class_embed_type": "timestep"}, "no class labels"),
    ],
)
def test_impossible_configurations_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        ADMUNet(**(SHAPE | changes))


def test_a_coarse_network_has_no_code_to_bound():
    with pytest.raises(ConfigError, match="bounded_code"):
        CoarseNet(**SHAPE, bounded_code=True)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 3, 32, 34), (3, 32, 32)])
def test_pictures_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(ImageContractError, match="divisible by 4"):
        make(patch_size=2)(torch.zeros(shape), 0)
