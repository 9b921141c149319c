"""Attention maps: the weights of the real call, and nothing left behind. Joint attention: who may look at whom."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from refbfr_core.errors import CacheError, ConfigError, UnknownNameError
from refbfr_core.models import (
    ReferenceCache,
    attention_lift,
    denoise,
    joint_denoise,
    mass_near,
    record_attention,
    who_sees_whom,
)
from refbfr_core.models.attention_maps import query_tokens
from refbfr_core.models.cachekv import attention_layers

C, SIDE, R = 4, 8, 3
POINTS = torch.tensor([[0.1, 0.2], [0.99, 0.99], [0.5, 0.0]])


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIDE,
        in_channels=2 * C,
        out_channels=C,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(3.0 if "to_q" in name or "to_k" in name else 1.0)
    return network.eval()


@pytest.fixture
def sample() -> torch.Tensor:
    return torch.randn(2, 2 * C, SIDE, SIDE)


@pytest.fixture
def references() -> torch.Tensor:
    return torch.randn(2, R, C, SIDE, SIDE)


def close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


def mixed_by_hand(layer, maps, hidden, entry, row, share=1):
    """What the layer adds at the queries of one row: recorded weights times values, then the output projection."""
    own = layer.to_v(layer.group_norm(hidden.flatten(2)).transpose(1, 2))
    values = torch.cat([own, entry.values.repeat_interleave(share, dim=0)], dim=1) if entry is not None else own
    values = values[row].unflatten(-1, (layer.heads, -1)).transpose(0, 1)
    mixed = maps[row].flatten(2) @ values
    return layer.to_out[0](mixed.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("kind", ["references", "masked", "shared", "none"])
def test_weights_times_values_are_what_the_real_layers_put_out(unet, sample, references, kind):
    mask = torch.tensor([[True, False, True], [True, True, True]]) if kind == "masked" else None
    cache = ReferenceCache.build(unet, references, mask)
    if kind == "shared":
        cache, sample = cache.repeat_interleave(2), torch.randn(4, 2 * C, SIDE, SIDE)
    cache = None if kind == "none" else cache
    seen = {}
    layers = attention_layers(unet)
    handles = [
        layer.register_forward_hook(lambda m, a, out, name=name: seen.update({name: (a[0], out)}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        denoise(unet, sample, 300, cache)
    for handle in handles:
        handle.remove()
    maps = record_attention(unet, sample, 300, cache, points=POINTS)
    assert set(maps.weights) == set(seen) == set(layers)
    for name, (before, after) in seen.items():
        weights, grid = maps.weights[name], before.shape[-2:]
        assert weights.shape == (len(sample), layers[name].heads, 3, 1 + (0 if cache is None else R), *grid)
        assert close(weights.sum(dim=(-3, -2, -1)), torch.ones(weights.shape[:3]))
        index = query_tokens(POINTS, *grid)
        added = (after - before).flatten(2).transpose(1, 2)
        for row in range(len(sample)):
            entry = None if cache is None else cache.layers[name]
            with torch.no_grad():
                expected = mixed_by_hand(layers[name], weights, before, entry, row, 2 if kind == "shared" else 1)
            assert close(added[row, index], expected), (name, row)


def test_the_call_is_the_real_call_and_leaves_nothing_behind(unet, sample, references):
    cache = ReferenceCache.build(unet, references)
    before = {name: layer.processor for name, layer in attention_layers(unet).items()}
    maps = record_attention(unet, sample, 300, cache, points=POINTS, layers=["mid_block.attentions.0"])
    assert close(maps.prediction, denoise(unet, sample, 300, cache), atol=0)
    assert list(maps.weights) == ["mid_block.attentions.0"] and not maps.prediction.requires_grad
    assert {name: layer.processor for name, layer in attention_layers(unet).items()} == before
    assert not any(layer._forward_pre_hooks for layer in attention_layers(unet).values())
    assert "3 queries" in repr(maps)


def test_a_masked_reference_gets_no_attention_and_mass_sums_to_one(unet, sample, references):
    mask = torch.tensor([[True, False, True], [True, True, True]])
    mass = record_attention(unet, sample, 300, ReferenceCache.build(unet, references, mask), points=POINTS).mass()
    assert mass.shape == (len(attention_layers(unet)), 2, 3, 1 + R)
    assert close(mass.sum(-1), torch.ones(mass.shape[:3]))
    assert float(mass[:, 0, :, 2].max()) == 0 and float(mass[:, 1].min()) > 0


def test_each_row_may_have_points_of_its_own(unet, sample, references):
    cache = ReferenceCache.build(unet, references)
    own = torch.stack([POINTS, POINTS.flip(0)])
    name = "mid_block.attentions.0"
    both = record_attention(unet, sample, 300, cache, points=own, layers=[name]).weights[name]
    same = record_attention(unet, sample, 300, cache, points=POINTS, layers=[name]).weights[name]
    assert close(both[0], same[0], atol=1e-6) and close(both[1], same[1].flip(1), atol=1e-6)


def test_a_point_belongs_to_the_token_that_covers_it():
    points = torch.tensor([[0.0, 0.0], [0.49, 0.0], [0.51, 0.0], [0.0, 0.99], [0.99, 0.99]])
    assert query_tokens(points, 2, 4).tolist() == [0, 1, 2, 4, 7]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"points": torch.zeros(2)}, ConfigError, r"\(Q, 2\)"),
        ({"points": torch.zeros(3, 1, 2)}, ConfigError, "B = 2 rows"),
        ({"points": torch.tensor([[64.0, 2.0]])}, ConfigError, "Divide pixels"),
        ({"layers": ["mid_block.attentions.1"]}, UnknownNameError, "mid_block.attentions.0"),
        ({"max_bytes": 1000}, ConfigError, "max_bytes=1,000"),
        ({"sample": torch.zeros(3, 2 * C, SIDE, SIDE)}, CacheError, "3 rows"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_nothing(unet, sample, references, changed, error, message):
    cache = ReferenceCache.build(unet, references)
    arguments = {"sample": sample, "points": POINTS, **changed}
    with pytest.raises(error, match=message):
        record_attention(unet, arguments.pop("sample"), 300, cache, **arguments)
    assert not any(layer._forward_pre_hooks for layer in attention_layers(unet).values())


def test_mass_near_a_point():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = 5.0
    maps[1] = 0.25
    inside, chance = mass_near(maps, torch.tensor([0.6, 0.45]), radius=0.01)  # the token that covers it
    assert inside.tolist() == [1.0, 0.0625] and chance.tolist() == [0.0625, 0.0625]
    inside, chance = mass_near(maps, torch.tensor([0.625, 0.625]), radius=0.26)  # it and four neighbours
    assert inside.tolist() == [1.0, 5 / 16] and chance.tolist() == [5 / 16, 5 / 16]
    inside, chance = mass_near(maps, torch.tensor([[0.1, 0.9], [float("nan")] * 2]), radius=2.0)
    assert inside[0] == chance[0] == 1.0 and inside[1].isnan() and chance[1].isnan()


def test_lift_is_one_for_even_attention_and_counts_pictures_by_their_attention():
    even = torch.full((1, 2, 1, 3, 4, 4), 0.01)
    points = torch.full((1, 1, 3, 2), 0.125)
    assert close(attention_lift(even, points), torch.ones(1, 1))
    looking = torch.zeros(1, 1, 1, 2, 4, 4)
    looking[..., 0, 0, 0] = 0.3  # all of the first picture's attention is at the point, 16 times as much as by chance
    looking[..., 1, 3, 3] = 0.1  # none of the second's
    assert close(attention_lift(looking, points[:, :, :2]), torch.tensor([[16 * 0.75]]))
    unseen = points[:, :, :2].clone()
    unseen[..., 1, :] = float("nan")
    assert close(attention_lift(looking, unseen), torch.tensor([[16.0]]))
    assert attention_lift(looking, torch.full_like(unseen, float("nan"))).isnan().all()


# --- joint attention --------------------------------------------------------------------------------------------------


def test_cachekv_is_the_joint_pass_in_which_references_see_only_themselves(unet, sample, references):
    with torch.no_grad():
        cached = denoise(unet, sample, 300, ReferenceCache.build(unet, references))
        joint = {view: joint_denoise(unet, sample, 300, references, view=view) for view in ("themselves", "everything")}
    assert close(joint["themselves"], cached)
    assert not close(joint["everything"], cached, atol=1e-3)


def test_references_that_see_each_other_change_with_their_company_but_not_with_the_picture(unet, sample, references):
    assert who_sees_whom(2).tolist() == [[True] * 3, [False, True, False], [False, False, True]]
    assert who_sees_whom(2, "each other").tolist() == [[True] * 3, [False, True, True], [False, True, True]]
    assert who_sees_whom(2, "everything").all()
    with torch.no_grad():
        alone = [
            joint_denoise(unet, sample, 300, references[:, :1], view=view) for view in ("themselves", "each other")
        ]
        company = [joint_denoise(unet, sample, 300, references, view=view) for view in ("themselves", "each other")]
    assert close(*alone) and not close(*company, atol=1e-4)


def test_joint_pass_refuses_what_does_not_fit_and_puts_processors_back(unet, sample, references):
    before = {name: layer.processor for name, layer in attention_layers(unet).items()}
    with pytest.raises(CacheError, match="expected"):
        joint_denoise(unet, sample, 300, references[:1])
    with pytest.raises(UnknownNameError, match="themselves"):
        joint_denoise(unet, sample, 300, references, view="nobody")
    assert {name: layer.processor for name, layer in attention_layers(unet).items()} == before
