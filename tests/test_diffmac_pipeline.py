"""DiffMAC as a pipeline on tiny random networks: two stages, the bottleneck between them, whose identity it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from tiny_diffmac import IDENTITY_DIM, MOMENTS, SIDE, faces, modulation, tiny_pipeline, tiny_second, unet

from refbfr_core.diffusion import Trace, image_generators, image_noise
from refbfr_core.images import from_network, to_network
from refbfr_core.models.bottleneck import kl_exact
from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import decode_latent, encode_moments
from refbfr_core.pipelines import DiffMACPipeline
from refbfr_core.pipelines.diffmac import STREAMS
from refbfr_core.pipelines.diffmac_stages import child_generators

KINDS = [
    ("identity", "stage-one"), ("noise", "stage-one"), ("none", "stage-one"), ("off", "stage-one"), ("noise", "input")
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def lq():
    return faces(3, 1)


@pytest.fixture(scope="module")
def references():
    return faces(3, 9, 2)


@pytest.fixture(scope="module")
def first(pipe, lq):
    """X_D1 of `lq` with seed 5."""
    return pipe.stage_one(lq, seed=5)


def apart(a, b):
    return float((a - b).abs().mean())


def test_result_keeps_the_contract_and_says_how_it_was_made(pipe, lq, references):
    out = pipe(lq, references, seed=5)
    for pictures in (out.images, out.stage_one):
        assert pictures.shape == lq.shape and pictures.dtype == torch.float32 and not pictures.requires_grad
        assert pictures.min() >= 0 and pictures.max() <= 1
    assert pipe.resolution == SIDE and out.trace is None
    assert out.bottleneck.moments.shape == (3, *MOMENTS) and out.identity.shape == (3, IDENTITY_DIM)
    torch.testing.assert_close(out.identity.norm(dim=1), torch.ones(3))
    assert out.settings.timesteps == (999, 666, 333, 0) and out.settings.references == (2, 2, 2)
    torch.testing.assert_close(torch.tensor(out.settings.kept), out.bottleneck.share.mean((1, 2, 3)))
    mean = float(out.bottleneck.share.mean())
    assert str(out.settings) == (
        "DiffMAC, 32 px, 4 adm steps, guidance 0, eta 1, seeds 5-7, references 2, compensation identity, "
        f"Stage I run, identity references, mean lambda {mean:.3g}"
    )


def test_settings_tell_other_calls_apart(lq, references):
    pipe = tiny_pipeline().with_second(tiny_second(label="0.001_id"))
    said = {
        "own": str(pipe(lq).settings),
        "blend": str(pipe(lq, references, blend=0.25).settings),
        "given": str(pipe(lq, identity=torch.eye(3, IDENTITY_DIM), first=lq).settings),
        "share": str(pipe(lq, share=0.5).settings),
        "input": str(tiny_pipeline("noise", "input")(lq, references).settings),
        "off": str(tiny_pipeline("off")(lq).settings),
    }
    assert "references 0, 0.001_id, Stage I run, identity own, mean lambda 0." in said["own"]
    assert "references 2, 0.001_id, Stage I run, identity references x 0.25" in said["blend"]
    assert "Stage I given, identity the caller's" in said["given"]
    assert said["share"].endswith("identity own, mean of the caller's lambda 0.5")
    assert "references 0, compensation noise, Stage I none, mean lambda" in said["input"]
    assert said["off"].endswith("references 0, compensation off, Stage I run")


def test_a_run_is_the_librarys_ddpm_twice_with_the_bottleneck_between(pipe, lq):
    def ddpm(condition, generators, own):
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_small")
        scheduler.set_timesteps(timesteps=[999, 666, 333, 0])
        z = image_noise(generators, condition.shape[1:])
        for t in scheduler.timesteps:
            output = denoise_modulated(pipe.unet, z, t, pipe.prompt(), own, condition)
            z = scheduler.step(output, t, z, generator=generators).prev_sample
        return from_network(decode_latent(pipe.vae, z))

    one, _, two = child_generators(image_generators([7, 8, 9], 3), len(STREAMS))
    scale = pipe.vae.config.scaling_factor
    with torch.no_grad():
        first = ddpm(scale * encode_moments(pipe.vae, lq)[:, :4], one, pipe.modulation)
        r = encode_moments(pipe.vae, first)
        z = pipe.second(r, pipe.embedder.embed(to_network(first)))
        expected = ddpm(scale * z.moments[:, :4], two, pipe.second.modulation)
    out = pipe(lq, seed=7)
    torch.testing.assert_close(out.stage_one, first, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.bottleneck.moments, z.moments, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(out.images, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_alone_in_a_batch_and_in_another_order(kind, lq, references):
    pipe, order = tiny_pipeline(*kind), [2, 0, 1]
    together = pipe(lq, references, seed=10)
    shuffled = pipe(lq[order], references[order], seed=[10 + i for i in order])
    assert torch.equal(shuffled.images, together.images[order])
    for i in range(3):
        alone = pipe(lq[i : i + 1], references[i : i + 1], seed=10 + i)
        assert torch.equal(alone.images, together.images[i : i + 1])
        if kind[1] == "stage-one":
            assert torch.equal(alone.stage_one, together.stage_one[i : i + 1])
        if kind[0] != "off":
            assert torch.equal(alone.bottleneck.moments, together.bottleneck.moments[i : i + 1])
    assert apart(together.images, pipe(lq, references, seed=11).images) > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_picture_matters_and_stage_one_only_where_it_is_used(kind, lq):
    pipe = tiny_pipeline(*kind)
    out = pipe(lq, seed=5)
    assert apart(out.images, pipe(1 - lq, seed=5).images) > 1e-3
    assert (out.stage_one is None) == (kind[1] == "input") == (out.settings.stage_one == "none")
    assert (out.bottleneck is None) == (kind[0] == "off") == (out.settings.kept == ())
    assert (out.identity is None) == (kind[0] != "identity") == (not pipe.takes_references)
    if kind[1] == "stage-one":
        # The same denoiser and noise streams, but another modulation: Stage II is no copy of Stage I.
        assert apart(out.images, out.stage_one) > 1e-3


def test_same_call_twice_gives_the_same_bytes_and_leaves_the_global_state_alone(lq):
    pipe = tiny_pipeline("noise")
    torch.manual_seed(1)
    once = pipe(lq, seed=3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(once.images, pipe(lq, seed=3).images)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(once.images, pipe(lq, generator=image_generators([3, 4, 5], 3)).images)
    torch.testing.assert_close(once.images, pipe(lq, seed=3, rows_per_call=3).images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1] == "stage-one"], ids="-".join)
def test_a_first_restoration_of_the_caller_skips_stage_one_and_changes_nothing_else(kind, lq, monkeypatch):
    pipe = tiny_pipeline(*kind)
    whole = pipe(lq, seed=5)
    assert torch.equal(pipe.stage_one(lq, seed=5), whole.stage_one)
    steps = []
    again = pipe(lq, seed=5, first=whole.stage_one, callback=lambda state: steps.append(state.t))
    assert steps == [999, 666, 333, 0] and again.settings.stage_one == "given"
    assert torch.equal(again.images, whole.images) and torch.equal(again.stage_one, whole.stage_one)
    # Whatever lq is: only `first` is looked at.
    assert torch.equal(pipe(1 - lq, seed=5, first=whole.stage_one).images, whole.images)
    assert apart(pipe(lq, seed=5, first=faces(3, 2)).images, whole.images) > 1e-3


def test_more_steps_in_stage_one_leave_the_noise_of_stage_two_alone(pipe, lq):
    few, many = (pipe.stage_one(lq, seed=5, num_inference_steps=n) for n in (2, 6))
    assert apart(few, many) > 1e-3
    traces = [Trace(keep=("x_t",)) for _ in range(2)]
    for own, trace in zip((few, many), traces, strict=True):
        pipe(lq, seed=5, first=own, trace=trace)
    start = [trace.stack("x_t")[0] for trace in traces]
    assert torch.equal(*start)
    whole = pipe(lq, seed=5, trace=Trace(keep=("x_t",)))
    assert torch.equal(whole.trace.stack("x_t")[0], start[0]) and len(whole.trace) == 4


def test_untrained_modulations_know_nothing_of_the_picture(lq):
    denoiser = unet()
    none = FeatureModulation.for_network(denoiser, (8, 8, 8, 8))
    pipe = tiny_pipeline(modulation=none, second=tiny_second(size=0.0))
    out = pipe(lq, seed=5)
    assert torch.equal(out.images, pipe(1 - lq, seed=5).images)
    assert torch.equal(out.stage_one, pipe(1 - lq, seed=5).stage_one)
    trained = tiny_pipeline(modulation=modulation(denoiser), second=tiny_second(size=0.0))(lq, seed=5)
    assert apart(trained.stage_one, out.stage_one) > 1e-3 and torch.equal(trained.images, out.images)


# Identity: check 8 of the method, and Fig. 10.


def test_swapping_the_identity_changes_only_the_share_that_was_held_back(pipe, lq, references):
    own, swapped = pipe(lq, seed=5), pipe(lq, references, seed=5)
    a, b = own.bottleneck, swapped.bottleneck
    assert torch.equal(own.stage_one, swapped.stage_one)
    assert torch.equal(a.share, b.share) and torch.equal(a.normalised, b.normalised)
    assert torch.equal(a.information, b.information)
    moved = (1 - a.share) * (b.compensation - a.compensation)
    torch.testing.assert_close(b.moments - a.moments, moved, atol=1e-5, rtol=1e-4)
    assert moved.abs().mean() > 1e-2 and apart(own.images, swapped.images) > 1e-3
    # Scales and shifts of eq. 8 are the same at every place.
    r, difference = a.normalised.flatten(2), (b.compensation - a.compensation).flatten(2)
    centred = r - r.mean(2, keepdim=True)
    slope = (difference * centred).sum(2, keepdim=True) / centred.square().sum(2, keepdim=True)
    torch.testing.assert_close(difference, difference.mean(2, keepdim=True) + slope * centred, atol=1e-4, rtol=1e-3)


def test_everything_kept_leaves_no_room_for_an_identity(pipe, lq, references, first):
    kept, other = (pipe(lq, seed=5, first=first, share=1, **more) for more in ({}, {"references": references}))
    r = encode_moments(pipe.vae, first)
    torch.testing.assert_close(kept.bottleneck.moments, r, atol=1e-4, rtol=1e-4)
    assert torch.equal(kept.images, other.images) and not torch.equal(kept.identity, other.identity)
    assert torch.isinf(kept.bottleneck.information).all() and kept.settings.kept == (1.0, 1.0, 1.0)
    # Z = R is what "2AdaIN" conditions on.
    plain = tiny_pipeline("off")
    assert apart(plain(lq, seed=5, first=first).images, kept.images) < 1e-4


def test_lambda_can_be_overridden_by_number_and_by_map(pipe, lq, first):
    given = {"seed": 5, "first": first}
    half, none = pipe(lq, share=0.5, **given), pipe(lq, share=0.0, **given)
    r = half.bottleneck.normalised * pipe.second.bottleneck.floor_std + pipe.second.bottleneck.mean
    torch.testing.assert_close(
        half.bottleneck.moments, 0.5 * r + 0.5 * none.bottleneck.moments, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(none.bottleneck.moments, none.bottleneck.compensation)
    assert torch.equal(none.bottleneck.information, torch.zeros_like(r)) and none.settings.share == 0
    shares = torch.ones(1, 8, 16, 16)
    shares[..., 8:] = 0.0
    mixed = pipe(lq, share=shares, **given)
    torch.testing.assert_close(mixed.bottleneck.moments[..., :8], r[..., :8], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed.bottleneck.moments[..., 8:], none.bottleneck.moments[..., 8:])
    assert mixed.settings.share == "a tensor"
    each = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    assert torch.equal(pipe(lq, share=each, **given).images[:2], torch.stack([none.images[0], half.images[1]]))
    own = pipe(lq, **given).bottleneck
    torch.testing.assert_close(own.information, kl_exact(own.share, own.normalised))


def test_interpolated_identities_have_both_ends_and_go_the_short_way(pipe, lq, references, first):
    given = {"seed": 5, "first": first}
    own, other = pipe(lq, **given), pipe(lq, references, **given)
    assert torch.equal(pipe(lq, references, blend=0.0, **given).images, own.images)
    assert torch.equal(pipe(lq, references, identity="references", blend=1.0, **given).images, other.images)
    ways = [pipe(lq, references, blend=w, **given).identity for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    torch.testing.assert_close(ways[1], F.normalize(0.75 * own.identity + 0.25 * other.identity, dim=1))
    near = torch.stack([F.cosine_similarity(way, other.identity, dim=1) for way in ways])
    assert (near.diff(dim=0) > 0).all() and torch.allclose(near[-1], torch.ones(3))
    same = [(way.norm(dim=1) - 1).abs().max() < 1e-5 for way in ways]
    assert all(same) and pipe(lq, identity=other.identity, blend=0.5, **given).identity.allclose(ways[2], atol=1e-6)
    # Without references there is nothing to blend with.
    assert torch.equal(pipe(lq, blend=0.5, **given).identity, own.identity)


def test_several_references_are_averaged_whatever_their_order(pipe, lq, references, first):
    given = {"seed": 5, "first": first}
    both = pipe(lq, references, **given).identity
    one, two = (pipe.identity(references[:, i]) for i in range(2))
    torch.testing.assert_close(both, F.normalize(one + two, dim=1))
    torch.testing.assert_close(pipe(lq, references.flip(1), **given).identity, both)
    assert torch.equal(pipe.identity(references), both)
    torch.testing.assert_close(pipe(lq, references[:, [0, 0]], **given).identity, one)
    assert apart(one, both) > 1e-3


def test_people_may_have_different_numbers_of_references(pipe, lq, references, first):
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    padded = torch.where(mask[..., None, None, None], references, 0.5)
    for given, used in ((references, "any padding"), (padded, "grey padding")):
        out = pipe(lq, given, reference_mask=mask, seed=5, first=first)
        assert out.settings.references == (2, 1, 0), used
        whole = pipe(lq, references, seed=5, first=first)
        assert torch.equal(out.images[0], whole.images[0])
        torch.testing.assert_close(out.identity[1], pipe.identity(references[1:2, 1])[0])
        assert torch.equal(out.images[2], pipe(lq, seed=5, first=first).images[2])
    nobody = pipe(lq, references, reference_mask=torch.zeros(3, 2, dtype=torch.bool), seed=5, first=first)
    assert nobody.settings.identity == "own" and nobody.settings.references == (0, 0, 0)


def test_own_identity_leaves_references_aside(pipe, lq, references, first):
    own = pipe(lq, references, identity="own", seed=5, first=first)
    assert torch.equal(own.images, pipe(lq, seed=5, first=first).images)
    assert own.settings.references == (0, 0, 0) and own.settings.identity == "own"
    torch.testing.assert_close(own.identity, pipe.identity(first))
    # Embeddings of the caller may have any length.
    given = pipe(lq, identity=7 * own.identity, seed=5, first=first)
    torch.testing.assert_close(given.identity, own.identity)
    assert given.settings.identity == "the caller's" and given.settings.references == (0, 0, 0)


@pytest.mark.parametrize("kind", KINDS[1:], ids="-".join)
def test_references_are_checked_and_not_looked_at_where_nothing_is_injected(kind, lq, references):
    pipe = tiny_pipeline(*kind, embedder=None)
    out = pipe(lq, references, seed=1)
    assert torch.equal(out.images, pipe(lq, seed=1).images) and out.settings.references == (0, 0, 0)
    assert out.settings.identity == "none" and out.identity is None and pipe.takes_references is False


# Doors beside the call.


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] != "off"], ids="-".join)
def test_the_bottleneck_by_itself_is_that_of_a_call(kind, lq, references):
    pipe = tiny_pipeline(*kind)
    whole = pipe(lq, seed=5)
    alone = pipe.bottleneck(lq if kind[1] == "input" else whole.stage_one, seed=5)
    for name in ("moments", "share", "normalised", "compensation", "information"):
        assert torch.equal(getattr(alone, name), getattr(whole.bottleneck, name)), name
    noisy = pipe.bottleneck(lq, seed=6)
    same = torch.equal(noisy.compensation, pipe.bottleneck(lq, seed=7).compensation)
    assert same == (kind[0] != "noise")
    assert torch.equal(noisy.moments, pipe.bottleneck(lq, generator=image_generators([6, 7, 8], 3)).moments)
    if kind[0] == "identity":
        who = pipe.identity(references)
        assert torch.equal(
            pipe.bottleneck(whole.stage_one, identity=who).moments, pipe(lq, references, seed=5).bottleneck.moments
        )
    torch.testing.assert_close(pipe.bottleneck(lq, share=1.0).moments, encode_moments(pipe.vae, lq))


def test_moments_can_be_looked_at(pipe, lq):
    with torch.no_grad():
        r = encode_moments(pipe.vae, lq)
        expected = from_network(decode_latent(pipe.vae, r[:, :4] * pipe.vae.config.scaling_factor))
    torch.testing.assert_close(pipe.decode(r), expected, atol=1e-5, rtol=0)
    shown = pipe.decode(pipe.bottleneck(lq, share=0.2).moments)
    assert shown.shape == lq.shape and shown.min() >= 0 and shown.max() <= 1 and apart(shown, expected) > 1e-3


def test_another_second_stage_shares_everything_else(pipe, lq):
    other = pipe.with_second(tiny_second("noise", label="0.1_n"))
    for name in ("vae", "unet", "modulation", "embedder", "prompt", "scheduler"):
        assert getattr(other, name) is getattr(pipe, name)
    assert other.config.num_inference_steps == 4 and pipe.second.compensation == "identity"
    a, b = pipe(lq, seed=5), other(lq, seed=5)
    assert torch.equal(a.stage_one, b.stage_one) and apart(a.images, b.images) > 1e-3
    assert b.settings.variant == "0.1_n" and b.settings.compensation == "noise"


def test_stage_two_may_have_a_denoiser_of_its_own(pipe, lq):
    other = pipe.with_second(pipe.second, unet(seed=8))
    a, b = pipe(lq, seed=5), other(lq, seed=5)
    assert torch.equal(a.stage_one, b.stage_one) and torch.equal(a.bottleneck.moments, b.bottleneck.moments)
    assert apart(a.images, b.images) > 1e-3
    # The next second stage does not inherit it.
    assert other.with_second(pipe.second).unet_two is None


def test_networks_keep_their_mode_and_steps_of_both_stages_are_reported(lq):
    pipe, seen = tiny_pipeline(), []
    pipe.unet.train()
    out = pipe(lq, callback=lambda state: seen.append(state.t), num_inference_steps=3)
    assert pipe.unet.training and not pipe.vae.training and pipe.config.num_inference_steps == 4
    assert seen == [*out.settings.timesteps] * 2 and out.settings.num_inference_steps == 3
    seen.clear()
    pipe.stage_one(lq, callback=lambda state: seen.append(state.t), timestep_spacing="trailing")
    assert seen == [999, 749, 499, 249]


def test_a_saved_pipeline_comes_back_the_same(tmp_path, pipe, lq):
    pipe.with_second(pipe.second, unet(seed=8)).save_pretrained(tmp_path / "own")
    pipe.save_pretrained(tmp_path / "shared")
    for name, expected in (("own", pipe.with_second(pipe.second, unet(seed=8))), ("shared", pipe)):
        again = DiffMACPipeline.from_pretrained(tmp_path / name)
        again.set_progress_bar_config(disable=True)
        assert (again.unet_two is None) == (name == "shared")
        assert again.config.num_inference_steps == 4 and again.config.timestep_spacing == "adm"
        assert again.scheduler.config.prediction_type == "v_prediction"
        # Weights from a file lie elsewhere in memory, which may choose another kernel.
        torch.testing.assert_close(again(lq, seed=5).images, expected(lq, seed=5).images, atol=1e-3, rtol=0)
