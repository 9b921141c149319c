"""LD-BFR as a pipeline on tiny random networks: what enters the noise, what the condition does, what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_ldbfr import CODES, FEATURES, LATENTS, SIDE, components, condition_vq, faces, injection, ldbfr, output_vq
from tiny_ldbfr import restorer as make_restorer
from tiny_ldbfr import unet as make_unet
from tiny_pdgrad import shake

from refbfr_core.diffusion import NonFiniteError, Trace, image_generators, image_noise
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.images import from_network, to_network
from refbfr_core.models.injected_unet import HQInjection, denoise_injected
from refbfr_core.models.vq_restorer import VQRestorer, decode_feature, restore_features
from refbfr_core.pipelines import LDBFRPipeline


@pytest.fixture(scope="module")
def pipe():
    return ldbfr()


@pytest.fixture(scope="module")
def lq():
    return faces(3, 1)


def start_of(out):
    """z_T of a call that kept its x_t."""
    return out.trace.stack("x_t")[0]


def test_result_keeps_the_contract_and_says_how_it_was_made(pipe, lq):
    out = pipe(lq, seed=5)
    for pictures in (out.images, out.stage_one):
        assert pictures.shape == lq.shape and pictures.dtype == torch.float32 and not pictures.requires_grad
        assert pictures.min() >= 0 and pictures.max() <= 1
    assert pipe.resolution == SIDE and out.trace is None
    assert out.settings.timesteps == (801, 601, 401, 201, 1) and out.settings.references == (0, 0, 0)
    assert str(out.settings) == (
        "LD-BFR, 64 px, 5 uniform steps, guidance 0, eta 1, seeds 5-7, references 0, DCAM spatial and channel, "
        "injection D"
    )


def test_two_seeds_start_from_other_noise_with_the_same_condition(pipe, lq):
    keep = {"trace": Trace(keep=("x_t",))}
    one, two = pipe(lq, seed=1, **keep), pipe(lq, seed=11, trace=Trace(keep=("x_t",)))
    assert not torch.equal(start_of(one), start_of(two))
    assert torch.equal(one.features.restored, two.features.restored)
    assert torch.equal(one.stage_one, two.stage_one)
    assert (one.images - two.images).abs().mean() > 1e-2


def test_nothing_of_the_picture_enters_the_starting_noise(pipe, lq):
    one = pipe(lq, seed=3, trace=Trace(keep=("x_t",)))
    two = pipe(1 - lq, seed=3, trace=Trace(keep=("x_t",)))
    assert torch.equal(start_of(one), start_of(two))
    assert torch.equal(start_of(one), image_noise(image_generators([3, 4, 5], 3), LATENTS))
    assert (one.images - two.images).abs().mean() > 1e-3


def test_without_a_trained_injection_the_picture_does_not_matter(lq):
    free = ldbfr()
    free = free.with_parts(injection=HQInjection.for_network(free.unet, FEATURES[0], FEATURES[1]))
    assert torch.equal(free(lq, seed=3).images, free(1 - lq, seed=3).images)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_alone_in_a_batch_and_in_another_order(pipe, lq, eta):
    together, order = pipe(lq, seed=10, eta=eta), [2, 0, 1]
    shuffled = pipe(lq[order], seed=[10 + i for i in order], eta=eta)
    assert torch.equal(shuffled.images, together.images[order])
    assert torch.equal(shuffled.stage_one, together.stage_one[order])
    assert torch.equal(shuffled.features.restored, together.features.restored[order])
    for i in range(3):
        assert torch.equal(pipe(lq[i : i + 1], seed=10 + i, eta=eta).images, together.images[i : i + 1])


def test_same_call_twice_gives_the_same_bytes_and_leaves_the_global_state_alone(pipe, lq):
    torch.manual_seed(1)
    first = pipe(lq, seed=3).images
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, pipe(lq, seed=3).images)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, pipe(lq, generator=image_generators([3, 4, 5], 3)).images)
    # Larger calls differ by rounding, which may flip a code here and there.
    assert (first - pipe(lq, seed=3, rows_per_call=3).images).abs().median() < 1e-4


def test_eta_zero_is_deterministic_after_the_start(pipe, lq):
    generators = image_generators([1, 2, 3], 3)
    pipe(lq, generator=generators, eta=0.0)
    untouched = image_generators([1, 2, 3], 3)
    image_noise(untouched, LATENTS)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(generators, untouched, strict=True))
    pipe(lq, generator=generators, eta=1.0)
    assert not torch.equal(generators[0].get_state(), untouched[0].get_state())
    assert not torch.equal(pipe(lq, eta=0.0).images, pipe(lq, eta=0.5).images)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_run_is_the_librarys_ddim_with_f_hq_in_every_step_and_a_quantised_decoding(pipe, lq, eta):
    with torch.no_grad():
        condition = restore_features(pipe.restorer, pipe.vqc, to_network(lq)).restored
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading", steps_offset=1)
        scheduler.set_timesteps(5)
        generators = image_generators([7, 8, 9], 3)
        z = image_noise(generators, LATENTS)
        for t in scheduler.timesteps.tolist():
            output = denoise_injected(pipe.unet, z, t, pipe.injection, condition)
            noise = image_noise(generators, LATENTS) if eta else None
            z = scheduler.step(output, t, z, eta=eta, variance_noise=noise).prev_sample
        codebook = pipe.vqo.quantize.embedding.weight
        nearest = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, LATENTS[0]), codebook).argmin(1)
        quantised = codebook[nearest].view(3, *LATENTS[1:], LATENTS[0]).permute(0, 3, 1, 2)
        expected, plain = (pipe.vqo.decode(each, force_not_quantize=True).sample for each in (quantised, z))
    out = pipe(lq, seed=7, eta=eta, trace=Trace(keep=("x_prev",)))
    torch.testing.assert_close(out.trace.stack("x_prev")[-1], z, atol=2e-4, rtol=1e-3)
    assert (out.images - from_network(expected)).abs().median() < 1e-5
    assert (out.images - from_network(plain)).abs().mean() > 1e-2
    torch.testing.assert_close(out.features.restored, condition, atol=1e-4, rtol=1e-4)


def test_stage_one_is_the_condition_vqgans_picture(pipe, lq):
    made = pipe.features(lq)
    with torch.no_grad():
        expected = from_network(decode_feature(pipe.vqc, made.restored))
    torch.testing.assert_close(pipe.stage_one(made), expected, atol=1e-5, rtol=0)
    assert torch.equal(pipe.stage_one(made), pipe.stage_one(made.restored))
    assert torch.equal(pipe.stage_one(made), pipe(lq).stage_one)
    assert not torch.allclose(pipe.stage_one(made.looked_up), expected, atol=1e-2)


def test_codes_of_the_caller_replace_the_nearest(pipe, lq):
    made, plain = pipe.features(lq), pipe(lq, seed=1)
    kept = pipe(lq, seed=1, codes=made.codes)
    assert torch.equal(kept.images, plain.images) and kept.settings.codes_replaced == (0, 0, 0)
    codes = made.codes.clone()
    codes[1, 0, :3] = (codes[1, 0, :3] + 5) % CODES
    edited = pipe(lq, seed=1, codes=codes)
    assert edited.settings.codes_replaced == (0, 3, 0) and str(edited.settings).endswith(", 3 codes replaced")
    assert torch.equal(edited.features.codes, codes) and torch.equal(edited.features.degraded, made.degraded)
    for name in ("images", "stage_one"):
        same = [torch.equal(a, b) for a, b in zip(getattr(edited, name), getattr(plain, name), strict=True)]
        assert same == [True, False, True]
    # int32, as from a table, counts as well.
    assert torch.equal(pipe(lq, seed=1, codes=codes.int()).images, edited.images)


def test_branches_can_be_switched_off(pipe, lq):
    spatial, channel, both, none = (
        pipe.features(lq, use=use).restored for use in (("spatial",), "channel", ("channel", "spatial"), ())
    )
    torch.testing.assert_close(spatial + channel, both, atol=1e-5, rtol=1e-5)
    assert torch.equal(none, pipe.features(lq).looked_up)
    out = pipe(lq, use="channel", seed=1)
    assert torch.equal(out.features.restored, channel) and out.settings.branches == ("channel",)
    assert "DCAM channel," in str(out.settings) and "DCAM off," in str(pipe(lq, use=()).settings)
    assert not torch.equal(out.images, pipe(lq, seed=1).images)


def test_features_of_the_caller_skip_stage_one(lq, monkeypatch):
    pipe = ldbfr()
    made, expected = pipe.features(lq), pipe(lq, seed=1)
    monkeypatch.setattr(VQRestorer, "forward", lambda *arguments, **keywords: pytest.fail("stage 1 ran"))
    again = pipe(lq, seed=1, features=made)
    assert torch.equal(again.images, expected.images) and torch.equal(again.stage_one, expected.stage_one)
    assert again.features is made and "features of the caller, injection D" in str(again.settings)
    tensor = pipe(lq, seed=1, features=made.restored)
    assert torch.equal(tensor.images, expected.images) and tensor.settings.codes_replaced == ()
    # Somebody else's features make somebody else's picture, whatever lq is.
    other = pipe(lq, seed=[3, 1, 2], features=made.restored[[2, 0, 1]])
    assert torch.equal(other.images, expected.images[[2, 0, 1]])


def test_other_parts_share_the_rest(pipe, lq):
    variant = pipe.with_parts(injection=injection(pipe.unet, "A"))
    assert variant.vqc is pipe.vqc and variant.unet is pipe.unet and variant.restorer is pipe.restorer
    assert variant.config.num_inference_steps == 5 and variant(lq).settings.injection == "A"
    plain = pipe.with_parts(restorer=make_restorer(pipe.vqc, dual=False))
    out = plain(lq)
    assert torch.equal(out.features.restored, out.features.looked_up)
    assert out.settings.branches == () and plain.injection is pipe.injection
    assert pipe(lq).settings.injection == "D"


def test_references_are_checked_and_not_looked_at(pipe, lq):
    out = pipe(lq, faces(3, 9, 2), seed=1)
    assert torch.equal(out.images, pipe(lq, seed=1).images) and out.settings.references == (0, 0, 0)
    with pytest.raises(ImageContractError, match="references"):
        pipe(lq, faces(2, 9, 2))


def test_networks_keep_their_mode_and_steps_are_reported(lq):
    pipe, seen = ldbfr(), []
    pipe.unet.train()
    out = pipe(lq, callback=lambda state: seen.append(state.t), num_inference_steps=4)
    assert pipe.unet.training and not pipe.vqc.training
    assert tuple(seen) == out.settings.timesteps == (751, 501, 251, 1)
    assert pipe(lq, num_inference_steps=4, timestep_spacing="trailing").settings.timesteps == (999, 749, 499, 249)


def test_a_saved_pipeline_comes_back_the_same(tmp_path, pipe, lq):
    pipe.save_pretrained(tmp_path)
    again = LDBFRPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    for name in ("vqc", "restorer", "vqo", "unet", "injection"):
        mine, theirs = (getattr(each, name) for each in (pipe, again))
        assert type(mine) is type(theirs)
        mine, theirs = mine.state_dict(), theirs.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())
    assert again.config.num_inference_steps == 5 and again.config.timestep_spacing == "uniform"
    assert again.scheduler.config.prediction_type == "v_prediction" and again.injection.variant == "D"
    # Weights from a file lie elsewhere in memory, which may choose another kernel.
    assert (again(lq).images - pipe(lq).images).abs().median() < 1e-5


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_inference_steps": 0}, ConfigError, "0"),
        ({"timestep_spacing": "unifrom"}, UnknownNameError, "uniform"),
        ({"eta": 2.0}, ConfigError, "eta"),
        ({"use": ("spatail",)}, UnknownNameError, "spatial"),
        ({"rows_per_call": 0}, ConfigError, "rows_per_call"),
        ({"seed": 1, "generator": torch.Generator()}, ConfigError, "both seed and generator"),
        ({"codes": torch.zeros(1, 4, 5, dtype=torch.long)}, ConfigError, r"\(1, 4, 4\)"),
        ({"codes": torch.zeros(2, 4, 4, dtype=torch.long)}, ConfigError, r"\(1, 4, 4\)"),
        ({"codes": torch.zeros(1, 4, 4)}, ConfigError, "whole numbers"),
        ({"codes": torch.full((1, 4, 4), CODES)}, ConfigError, f"below {CODES}"),
        ({"codes": torch.full((1, 4, 4), -1)}, ConfigError, f"below {CODES}"),
        ({"features": torch.zeros(1, 16, 4, 5)}, ImageContractError, r"\(B, 16, 4, 4\)"),
        ({"features": torch.zeros(2, 16, 4, 4)}, ConfigError, "features of 2 pictures"),
        ({"features": "f_HQ"}, ImageContractError, "str"),
        ({"features": torch.zeros(1, 16, 4, 4), "use": ()}, ConfigError, "skip stage 1"),
        ({"features": torch.zeros(1, 16, 4, 4), "codes": torch.zeros(1, 4, 4).long()}, ConfigError, "skip stage 1"),
        ({"features": torch.full((1, 16, 4, 4), float("nan"))}, NonFiniteError, "NaN"),
    ],
)
def test_impossible_calls_are_refused(pipe, changes, error, says):
    with pytest.raises(error, match=says):
        pipe(faces(1, 1), **changes)


def test_pictures_of_another_size_or_range_are_refused(pipe):
    for call in (pipe, pipe.features):
        with pytest.raises(ImageContractError, match="64×64"):
            call(torch.rand(1, 3, 32, 32))
        with pytest.raises(ImageContractError):
            call(faces(1, 1) * 255)


def changed(network: torch.nn.Module, **changes) -> torch.nn.Module:
    """A new network with this one's configuration, but for `changes`."""
    own = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return type(network)(**{**own, **changes})


def _wide() -> dict:
    return {"restorer": changed(make_restorer(condition_vq()), vq_embed_dim=8)}


def _deep() -> dict:
    types = ("DownEncoderBlock2D",) * 3
    return {"restorer": changed(make_restorer(condition_vq()), down_block_types=types, block_out_channels=(8, 8, 16))}


def _other_injection(**changes) -> dict:
    return {"injection": changed(injection(make_unet()), **changes)}


def _no_attention() -> dict:
    return {"unet": changed(make_unet(), up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2)}


@pytest.mark.parametrize(
    ("part", "error", "says"),
    [
        (_wide, ConfigError, "features of 8 channels, the codes of vqc have 16"),
        (_deep, ConfigError, "through 3 levels"),
        (lambda: {"vqo": changed(output_vq(), latent_channels=4, vq_embed_dim=4)}, ConfigError, "of vqo have 4"),
        (lambda: {"vqo": changed(output_vq(), tail_layers=0)}, ConfigError, "pictures of 32 px"),
        (lambda: _other_injection(channels=(8, 16, 16, 24)), ConfigError, "injectors were made for"),
        (lambda: _other_injection(condition=4, condition_side=8), ConfigError, "4 channels and side 8"),
        (_no_attention, ConfigError, "UpBlock2D has none there"),
        (lambda: {"timestep_spacing": "unifrom"}, UnknownNameError, "uniform"),
    ],
)
def test_components_that_do_not_fit_each_other_are_refused(part, error, says):
    with pytest.raises(error, match=says):
        LDBFRPipeline(**(components() | part()))


@pytest.mark.parametrize("name", ["vqc", "unet", "injection", "vqo"])
def test_a_network_that_returns_nan_stops_the_run(name, lq):
    pipe = ldbfr()
    network = {"vqc": pipe.vqc.decoder, "vqo": pipe.vqo.decoder}.get(name, getattr(pipe, name))
    shake(network, 0, float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        pipe(lq[:1])
