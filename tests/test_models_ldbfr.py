"""LD-BFR's stage 1 and its output VQGAN: features, codes, dual cross-attention, the tail, sizes, refusals."""

from __future__ import annotations

import formulas_ldbfr as formulas
import pytest
import tiny_ldbfr as tiny
import torch
import torch.nn.functional as F
from diffusers import VQModel
from formulas_ldbfr import draw, seeded

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.images import to_network
from refbfr_core.models import decode_latents, encode_latents, pixels_per_latent
from refbfr_core.models.dual_cross_attention import BRANCHES, DualCrossAttention
from refbfr_core.models.first_stage import fold_pixels
from refbfr_core.models.ldbfr_full_size import count_parameters, full_size_networks
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.models.vq_restorer import VQRestorer, decode_feature, encode_feature, look_up, restore_features


@pytest.fixture(scope="module")
def vqc():
    return tiny.condition_vq()


@pytest.fixture(scope="module")
def restorer(vqc):
    return tiny.restorer(vqc)


def pictures(count: int = 2, seed: int = 0) -> torch.Tensor:
    return to_network(tiny.faces(count, seed))


# --- DCAM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [BRANCHES, ("spatial",), ("channel",), ()])
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_the_formulas(mode, use):
    formulas.compare_dcam(mode, use=use)
    formulas.compare_dcam(mode, channel_scale=False, use=use)


@torch.no_grad()
def test_rows_of_the_channel_matrix_sum_to_one_and_mix_only_codes():
    module = seeded(DualCrossAttention, 16, 4)
    degraded, codes = draw(3, 16, 4, 4, size=0.3), draw(3, 16, 4, 4, seed=1)
    trace = module.look(degraded, codes)
    assert trace.channel_map.shape == (3, 16, 16) and trace.spatial_map.shape == (3, 4, 16, 16)
    for rows in (trace.channel_map, trace.spatial_map):
        assert rows.min() >= 0
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
    # Means of the codes' channels stay between the smallest and the largest of them, at every place.
    assert (trace.channel <= codes.amax(1, keepdim=True) + 1e-6).all()
    assert (trace.channel >= codes.amin(1, keepdim=True) - 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_places_may_be_reordered_together(mode):
    module = seeded(DualCrossAttention, 8, 2, mode)
    degraded, codes = draw(2, 8, 4, 4), draw(2, 8, 4, 4, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))

    def moved(x):
        return x.flatten(2)[:, :, order].view_as(x)

    expected = moved(module(degraded, codes))
    torch.testing.assert_close(module(moved(degraded), moved(codes)), expected, rtol=1e-5, atol=1e-5)
    # Not so if only one of the two is reordered: queries and keys then belong to different places.
    assert not torch.allclose(module(moved(degraded), codes), expected, atol=1e-2)


@torch.no_grad()
def test_branches_can_be_switched_off_one_by_one():
    degraded, codes = draw(2, 8, 4, 4), draw(2, 8, 4, 4, seed=1)
    parallel = seeded(DualCrossAttention, 8, 2)
    trace = parallel.look(degraded, codes)
    for name in BRANCHES:
        alone = parallel.look(degraded, codes, (name,))
        assert torch.equal(alone.fused, getattr(alone, name)) and torch.equal(alone.fused, getattr(trace, name))
        other = BRANCHES[name == BRANCHES[0]]
        assert getattr(alone, other) is None and getattr(alone, f"{other}_map") is None
    torch.testing.assert_close(trace.fused, trace.spatial + trace.channel)
    assert torch.equal(parallel(degraded, codes, ()), codes)
    sequential = seeded(DualCrossAttention, 8, 2, "sequential")
    outputs = [sequential(degraded, codes, use) for use in (BRANCHES, ("spatial",), ("channel",), ())]
    assert torch.equal(outputs[3], codes)
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(outputs) for b in outputs[:i])


@torch.no_grad()
@pytest.mark.parametrize(("size", "scaled", "unscaled"), [(0.1, 0.0046, 0.049), (0.3, 0.016, 1.0), (1.0, 1.0, 1.0)])
def test_without_the_scale_the_channel_matrix_is_nearly_the_identity(size, scaled, unscaled):
    """At the published 256 x 16 x 16; features of unit size make it the identity even with the scale."""
    features = draw(2, 256, 16, 16, size=size)
    for flag, expected in ((True, scaled), (False, unscaled)):
        own = DualCrossAttention(256, 8, channel_scale=flag).channel_attention(features, features)[1]
        assert float(own.diagonal(dim1=1, dim2=2).mean()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, x: DualCrossAttention(8, 3), ConfigError, "3 heads"),
        (lambda m, x: DualCrossAttention(8, 0), ConfigError, "0 heads"),
        (lambda m, x: DualCrossAttention(8, 2, "paralel"), UnknownNameError, "parallel"),
        (lambda m, x: m(x, x, ("chanel",)), UnknownNameError, "channel"),
        (lambda m, x: m(x, x[:, :, :2]), ImageContractError, "one shape"),
        (lambda m, x: m(x[:, :4], x[:, :4]), ImageContractError, r"\(B, 8, h, w\)"),
        (lambda m, x: m(x[0], x[0]), ImageContractError, "one shape"),
    ],
)
def test_dcam_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call(DualCrossAttention(8, 2), draw(1, 8, 4, 4))


# --- codes ------------------------------------------------------------------------------------------------------------


def test_nearest_codes_and_a_gradient_that_passes_them_by():
    formulas.compare_look_up()


def test_straight_through_alone_trains_the_encoder(vqc):
    """From the pixel loss with DCAM frozen, and without DCAM at all, where no other path is left."""
    target = pictures(2, seed=9)
    for dual in (True, False):
        network = tiny.restorer(vqc, dual=dual)
        if dual:
            network.dcam.requires_grad_(False)
        features = restore_features(network, vqc, pictures())
        F.mse_loss(decode_feature(vqc, features.restored), target).backward()
        sizes = {name: float(p.grad.abs().max()) for name, p in network.named_parameters() if p.grad is not None}
        assert not any(name.startswith("dcam") for name in sizes)
        assert sizes["encoder.conv_in.weight"] > 0 and sizes["quant_conv.weight"] > 0
    vqc.zero_grad()


@torch.no_grad()
def test_codes_may_be_chosen_by_hand(vqc, restorer):
    x = pictures()
    own = restore_features(restorer, vqc, x)
    assert own.codes.shape == (2, 4, 4) and own.codes.dtype == torch.int64
    assert len(own.codes.unique()) > 4
    again = restore_features(restorer, vqc, x, codes=own.codes)
    assert torch.equal(again.restored, own.restored)
    edited = own.codes.clone()
    edited[0, 1, 2] = (edited[0, 1, 2] + 1) % tiny.CODES
    changed = restore_features(restorer, vqc, x, codes=edited)
    differs = (changed.looked_up != own.looked_up).any(1)
    assert differs.sum() == 1 and bool(differs[0, 1, 2])
    assert torch.equal(changed.degraded, own.degraded) and torch.equal(changed.restored[1], own.restored[1])
    assert not torch.equal(changed.restored[0], own.restored[0])


@pytest.mark.parametrize(
    "codes",
    [
        torch.zeros(2, 3, 4, dtype=torch.int64),
        torch.full((2, 4, 4), tiny.CODES),
        torch.full((2, 4, 4), -1),
        torch.zeros(2, 4, 4),
    ],
    ids=["shape", "too large", "negative", "no whole numbers"],
)
def test_codes_that_do_not_exist(vqc, restorer, codes):
    with pytest.raises(ConfigError, match="indices below 32"):
        restore_features(restorer, vqc, pictures(), codes=codes)


def test_a_codebook_of_another_width():
    with pytest.raises(ConfigError, match="no codes of 8 numbers"):
        look_up(draw(1, 8, 4, 4), draw(10, 4))


# --- the restorer -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_starts_as_a_copy_of_the_clean_encoder_and_shares_nothing(vqc):
    network, x = VQRestorer.copy_of(vqc, heads=4), pictures()
    assert torch.equal(network.encode(fold_pixels(vqc, x)), encode_feature(vqc, x))
    theirs = {p.data_ptr() for p in vqc.parameters()}
    assert not theirs & {p.data_ptr() for p in network.parameters()}


@torch.no_grad()
def test_shapes_of_stage_one(vqc, restorer):
    features = restore_features(restorer, vqc, pictures(3))
    for each in (features.degraded, features.looked_up, features.restored):
        assert each.shape == (3, *tiny.FEATURES)
    assert decode_feature(vqc, features.restored).shape == (3, 3, tiny.SIDE, tiny.SIDE)
    without = restore_features(tiny.restorer(vqc, dual=False), vqc, pictures(3))
    assert torch.equal(without.restored, without.looked_up)
    assert not torch.allclose(features.restored, features.looked_up, atol=1e-2)
    switched_off = restore_features(restorer, vqc, pictures(3), use=())
    assert torch.equal(switched_off.restored, switched_off.looked_up)


@torch.no_grad()
@pytest.mark.parametrize("dcam", [{}, {"dual": False}, {"mode": "sequential", "channel_scale": False}])
def test_a_saved_restorer_comes_back_the_same(tmp_path, vqc, dcam):
    network = tiny.restorer(vqc, **dcam)
    network.save_pretrained(tmp_path)
    again, info = VQRestorer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    before, after = (restore_features(one, vqc, pictures()).restored for one in (network, again))
    assert torch.equal(before, after)
    assert (again.dcam is None) == (dcam.get("dual") is False)
    if again.dcam is not None:
        assert (again.dcam.config.mode, again.dcam.config.channel_scale) == (
            dcam.get("mode", "parallel"),
            dcam.get("channel_scale", True),
        )


# --- the output VQGAN -------------------------------------------------------------------------------------------------

_SHAPE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "num_vq_embeddings": tiny.CODES,
    "norm_num_groups": 4,
}


@torch.no_grad()
def test_pictures_enter_at_half_the_side_and_leave_at_the_whole():
    vq, faces = tiny.output_vq(), tiny.faces(2)
    latents = encode_latents(vq, faces)
    assert latents.shape == (2, *tiny.LATENTS) and pixels_per_latent(vq) == 4
    halved = faces.view(2, 3, 32, 2, 32, 2).mean((3, 5))
    torch.testing.assert_close(latents, vq.encode(2 * halved - 1).latents)
    assert decode_latents(vq, latents).shape == (2, 3, tiny.SIDE, tiny.SIDE)
    assert vq.config.scaling_factor == 1.0


@torch.no_grad()
def test_the_tail_stands_before_the_last_norm_and_nothing_else_is_new():
    vq = tiny.output_vq()
    stock = VQModel(vq_embed_dim=3, scaling_factor=1.0, **_SHAPE).eval()
    extra = set(vq.state_dict()) - set(stock.state_dict())
    assert extra and all(name.startswith("decoder.up_blocks.2.") for name in extra)
    stock.load_state_dict({name: x for name, x in vq.state_dict().items() if name not in extra})
    seen = []
    stock.decoder.conv_norm_out.register_forward_pre_hook(lambda module, came: seen.append(came[0]))
    latents = draw(1, *tiny.LATENTS)
    stock.decode(latents)
    tail = vq.decoder.up_blocks[2]
    large = tail.upsamplers[0](tail.resnets[0](seen[0], None))
    last = vq.decoder.conv_out(F.silu(vq.decoder.conv_norm_out(large)))
    torch.testing.assert_close(vq.decode(latents).sample, last)
    without = OutputVQModel(tail_layers=0, **_SHAPE).eval()
    without.load_state_dict(stock.state_dict())
    assert torch.equal(without.decode(latents).sample, stock.decode(latents).sample)


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_saved_output_vqgan_comes_back_the_same(tmp_path, layers):
    vq = OutputVQModel(**_SHAPE, tail_layers=layers).eval()
    vq.save_pretrained(tmp_path)
    again, info = OutputVQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert (again.config.tail_layers, len(again.config.up_block_types)) == (layers, 2)
    latents = draw(1, *tiny.LATENTS)
    assert torch.equal(vq.decode(latents).sample, again.decode(latents).sample)
    assert vq.decode(latents).sample.shape[-1] == 32 * 2**layers


def test_output_vqgans_that_do_not_exist():
    with pytest.raises(ConfigError, match="tail_layers is -1"):
        OutputVQModel(tail_layers=-1)
    with pytest.raises(ConfigError, match="group norms"):
        OutputVQModel(norm_type="spatial")


# --- full size --------------------------------------------------------------------------------------------------------


def test_full_size_counts():
    paper, code = full_size_networks(), full_size_networks(released=True)
    assert paper.parameters() == {
        "vqc": 72_672_835,
        "restorer": 29_744_960,
        "vqo": 55_322_782 + 443_264,
        "unet": 274_056_163,
        "injection": 59_437_504 + 8_292_480,
    }
    halves = [
        {half: sum(count_parameters(x) for name, x in one.injection.injectors.items() if name.startswith(half))
         for half in ("down", "up")} for one in (paper, code)
    ]  # fmt: skip
    assert halves == [{"down": 59_437_504, "up": 8_292_480}, {"down": 59_437_504, "up": 12_219_648}]
    assert count_parameters(paper.restorer.dcam) == 263_168
    with torch.device("meta"):
        assert count_parameters(OutputVQModel(tail_layers=0)) == 55_322_782
    assert count_parameters(paper.vqo.decoder.up_blocks[-1]) == 443_264
    assert round(count_parameters(paper.vqo.encoder) / 1e6, 2) == 22.34
    assert [len(x) for x in paper.injection.injectors.values()] == [2, 2, 3, 3]


@torch.no_grad()
def test_full_size_shapes():
    with torch.device("meta"):
        networks = full_size_networks()
        face = torch.empty(1, 3, 512, 512)
        features = networks.vqc.encode(face).latents
        assert features.shape == (1, 256, 16, 16)
        assert networks.vqc.decode(features, force_not_quantize=True).sample.shape == face.shape
        assert networks.restorer.encode(face).shape == features.shape
        assert networks.restorer.dcam(features, features).shape == features.shape
        latents = networks.vqo.encode(torch.empty(1, 3, 256, 256)).latents
        assert latents.shape == (1, 3, 64, 64)
        assert networks.vqo.decode(latents, force_not_quantize=True).sample.shape == face.shape
