"""The best sixteen numbers for DiffMAC's compensation: they are the best, and go the way of every identity."""

from __future__ import annotations

import pytest
import tiny_diffmac as tiny
import torch

from refbfr_core.benchmark.diffmac_oracle import best_compensation, best_modulation, fixed_modulation, latent_error
from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.models.bottleneck import BottleneckOutput
from refbfr_core.models.moments import encode_moments


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_pipeline(num_inference_steps=2)


@pytest.fixture(scope="module")
def second():
    return tiny.tiny_second(label="0.001_id")


def moments(seed, count=2):
    return torch.randn((count, *tiny.MOMENTS), generator=torch.Generator().manual_seed(seed))


def z_of(out, r, scale, shift):
    return out.share * r + (1 - out.share) * (scale[..., None, None] * out.normalised + shift[..., None, None])


@pytest.fixture
def given(second):
    """The bottleneck's output for random moments and an identity."""
    r = moments(1)
    with torch.no_grad():
        return second(r, identity=torch.nn.functional.normalize(moments(9)[:, 0, 0, : tiny.IDENTITY_DIM], dim=1)), r


def test_known_numbers_are_found_again(given):
    out, r = given
    scale, shift = torch.linspace(-1, 2, 16).view(2, 8), torch.linspace(3, -2, 16).view(2, 8)
    found = best_modulation(out, r, z_of(out, r, scale, shift))
    torch.testing.assert_close(found[0], scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], shift, atol=1e-4, rtol=1e-4)


def test_no_other_numbers_come_nearer(given):
    out, r = given
    target = moments(2)
    scale, shift = best_modulation(out, r, target)

    def error(scale, shift):
        return (z_of(out, r, scale, shift) - target).square().mean((2, 3))

    best = error(scale, shift)
    for step in (0.05, -0.05):
        assert (error(scale + step, shift) > best).all() and (error(scale, shift + step) > best).all()
        assert (error(scale + step, shift + step) > best).all() and (error(scale + step, shift - step) > best).all()
    assert (best <= (out.moments - target).square().mean((2, 3))).all()


def test_where_everything_passes_nothing_is_asked_for(second):
    r = moments(3)
    with torch.no_grad():
        out = second(r, identity=torch.ones(2, tiny.IDENTITY_DIM), share=1.0)
    scale, shift = best_modulation(out, r, moments(4))
    assert not scale.any() and not shift.any() and torch.equal(out.moments, r)
    with pytest.raises(ImageContractError, match="one shape"):
        best_modulation(out, r, moments(4)[:1])


def test_fixed_numbers_are_injected_face_by_face(second):
    scale, shift = moments(7, 3)[:, :, 0, 0], moments(8, 3)[:, :, 0, 0]
    before = {name: value.clone() for name, value in second.state_dict().items()}
    state = torch.random.get_rng_state()
    fixed = fixed_modulation(second, scale, shift)
    assert torch.equal(torch.random.get_rng_state(), state) and fixed.training == second.training
    r = moments(5, 3)
    with torch.no_grad():
        out = fixed(r, identity=torch.eye(3, tiny.IDENTITY_DIM))
        own = second(r, identity=torch.ones(3, tiny.IDENTITY_DIM))
    torch.testing.assert_close(out.moments, z_of(out, r, scale, shift))
    assert torch.equal(out.share, own.share) and torch.equal(out.normalised, own.normalised)
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())
    condition = moments(6, 1)[:, :4]
    pairs = zip(fixed.modulation.conditions(condition), second.modulation.conditions(condition), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_what_has_no_scales_and_shifts_is_refused(second):
    for compensation in ("noise", "none", "off"):
        with pytest.raises(ConfigError, match=repr(compensation)):
            fixed_modulation(tiny.tiny_second(compensation), torch.ones(1, 8), torch.ones(1, 8))
    with pytest.raises(ConfigError, match="fewer faces"):
        fixed_modulation(second, torch.ones(17, 8), torch.ones(17, 8))
    with pytest.raises(ImageContractError, match="expected"):
        fixed_modulation(second, torch.ones(1, 4), torch.ones(1, 8))


def test_a_restoration_with_the_best_numbers(pipe):
    truth, lq = tiny.faces(2, 1), tiny.faces(2, 2)
    first = pipe.stage_one(lq, seed=5)
    known = best_compensation(pipe, truth, first)
    with torch.no_grad():
        target, r = encode_moments(pipe.vae, truth), encode_moments(pipe.vae, first)
    torch.testing.assert_close(known.target, target)
    assert torch.equal(known.own.moments, pipe.bottleneck(first).moments)
    torch.testing.assert_close(known.best.moments, z_of(known.own, r, known.scale, known.shift), atol=1e-4, rtol=1e-4)
    factor = pipe.vae.config.scaling_factor
    assert (latent_error(known.best.moments, target, factor) < latent_error(known.own.moments, target, factor)).all()
    made = known.restore(lq, seed=5)
    torch.testing.assert_close(made.bottleneck.moments, known.best.moments, atol=1e-5, rtol=1e-5)
    own = pipe(lq, seed=5)
    assert (made.images - own.images).abs().max() > 1e-3
    # The same noise: with the same Z, Stage II makes the same picture.
    again = pipe(lq, seed=5, first=first)
    torch.testing.assert_close(again.images, own.images, atol=1e-5, rtol=1e-5)


def test_the_latent_error_counts_means_only():
    zero = torch.zeros(1, *tiny.MOMENTS)
    means, variances = zero.clone(), zero.clone()
    means[:, :4], variances[:, 4:] = 2.0, 2.0
    assert latent_error(means, zero, 0.5).tolist() == [1.0] and latent_error(variances, zero, 0.5).tolist() == [0.0]


def test_an_output_is_all_it_needs(given):
    out, r = given
    bare = BottleneckOutput(zero := torch.zeros_like(r), out.share, out.normalised, zero, zero)
    for one, two in zip(best_modulation(bare, r, moments(2)), best_modulation(out, r, moments(2)), strict=True):
        assert torch.equal(one, two)
