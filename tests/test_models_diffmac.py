"""DiffMAC's moments, modulation and modulated denoiser against loops and against the stock networks."""

from __future__ import annotations

import formulas_diffmac as formulas
import pytest
import tiny_diffmac as tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from formulas_diffmac import draw

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.models.modulated_unet import TRAIN_UNET, ModulatedUNet, denoise_modulated, freeze_unet
from refbfr_core.models.modulation import (
    SD_CHANNELS,
    SD_LEVELS,
    FeatureModulation,
    encoder_tensors,
    unchanged,
)
from refbfr_core.models.moments import RunningMoments, decode_latent, encode_moments, latents_of
from refbfr_core.models.prompt import PromptEmbedding

PROMPT = torch.zeros(1, 1, 8)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny.unet()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny.vae()


def batch(count: int = 2, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timesteps and conditions."""
    return draw(count, 4, side, side), torch.arange(count) * 300 + 5, draw(count, 4, side, side, seed=1)


# --- moments and latents ----------------------------------------------------------------------------------------------


def test_moments_and_draws_are_those_of_the_library():
    formulas.compare_moments()


@torch.no_grad()
def test_eight_channels_of_moments_and_four_of_latents(vae):
    moments = encode_moments(vae, tiny.faces(2))
    assert moments.shape == (2, *tiny.MOMENTS) and latents_of(moments, 1.0).shape == (2, 4, 16, 16)
    assert moments.dtype == torch.float32
    assert decode_latent(vae, latents_of(moments, vae.config.scaling_factor)).shape == (2, 3, tiny.SIDE, tiny.SIDE)


def test_means_are_the_first_half_and_log_variances_the_second():
    moments = torch.cat([torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 2.0)], dim=1)
    assert torch.equal(latents_of(moments, 0.5), torch.full((1, 4, 2, 2), 1.5))
    drawn = latents_of(moments, 0.5, torch.ones(1, 4, 2, 2))
    torch.testing.assert_close(drawn, torch.full((1, 4, 2, 2), 0.5 * (3 + torch.e)))


@pytest.mark.parametrize(("log_variance", "spread"), [(-100.0, 3.06e-7), (100.0, 22026.5)])
def test_wild_log_variances_are_clamped(log_variance, spread):
    moments = torch.cat([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), log_variance)], dim=1)
    drawn = latents_of(moments, 1.0, torch.ones(1, 4, 1, 1))
    torch.testing.assert_close(drawn, torch.full((1, 4, 1, 1), spread), rtol=1e-2, atol=0)


def test_the_gradient_passes_through_encoder_and_draw(vae):
    pictures = tiny.faces(1).requires_grad_()
    latents_of(encode_moments(vae, pictures), 1.0, draw(1, 4, 16, 16)).square().sum().backward()
    assert float(pictures.grad.abs().max()) > 0
    moments = draw(1, 8, 2, 2).requires_grad_()
    latents_of(moments, 1.0, torch.ones(1, 4, 2, 2)).sum().backward()
    assert bool((moments.grad != 0).all())  # reparameterised: the log-variances get their share


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda vae: encode_moments(vae, tiny.faces(1) * 2), ImageContractError, r"\[0, 1\]"),
        (lambda vae: latents_of(draw(1, 7, 2, 2), 1.0), ImageContractError, "means before log-variances"),
        (lambda vae: latents_of(draw(8, 2, 2), 1.0), ImageContractError, "means before log-variances"),
        (lambda vae: latents_of(draw(1, 8, 2, 2), 1.0, draw(1, 8, 2, 2)), ImageContractError, "noise is"),
        (lambda vae: decode_latent(vae, draw(1, 8, 16, 16)), ConfigError, r"takes \(B, 4, h, w\)"),
        (lambda vae: decode_latent(vae, draw(4, 16, 16)), ConfigError, r"takes \(B, 4, h, w\)"),
        (lambda vae: RunningMoments().mean, ConfigError, "no moments were added yet"),
        (lambda vae: RunningMoments().std, ConfigError, "no moments were added yet"),
        (lambda vae: RunningMoments().update(draw(0, 8, 2, 2)), ImageContractError, "expected a batch"),
        (lambda vae: RunningMoments().update(draw(8, 2, 2)), ImageContractError, "expected a batch"),
    ],
)
def test_what_does_not_fit_is_refused(vae, call, error, says):
    with pytest.raises(error, match=says):
        call(vae)


# --- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per channel and place"])
def test_running_statistics_are_those_of_two_passes(per_channel):
    formulas.compare_statistics(per_channel)


@pytest.mark.parametrize("per_channel", [True, False])
def test_statistics_do_not_lose_digits_far_from_zero(per_channel):
    """The sum of squares minus the square of the sum would: 10^5 squared leaves no digit of a spread of 0.01."""
    everything = 1e5 + 0.01 * draw(40, 2, 2, 2).double()
    running = RunningMoments(per_channel)
    for part in everything.split(7):
        running.update(part)
    dims = (0, 2, 3) if per_channel else (0,)
    expected = everything.std(dims, correction=0)
    torch.testing.assert_close(running.std.double().squeeze(), expected.squeeze(), rtol=1e-4, atol=0)


def test_statistics_of_another_shape_are_refused():
    running = RunningMoments(per_channel=False)
    running.update(draw(2, 8, 4, 4))
    with pytest.raises(ImageContractError, match="those before gave"):
        running.update(draw(2, 8, 2, 2))
    running = RunningMoments(per_channel=True)
    running.update(draw(2, 8, 4, 4))
    running.update(draw(1, 8, 2, 2))  # per channel, sides do not matter
    assert running.count == 2 * 16 + 4 and running.mean.shape == (8, 1, 1)


# --- modulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channelwise", [False, True])
def test_modulation_is_equations_two_to_four(channelwise):
    formulas.compare_modulation(channelwise)


def test_the_twelve_tensors_of_stable_diffusion_in_order():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )  # fmt: skip
    tensors = encoder_tensors(unet)
    assert [width for width, _ in tensors] == [320] * 4 + [640] * 3 + [1280] * 5 == list(SD_CHANNELS)
    assert [level for _, level in tensors] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 == list(SD_LEVELS)


def test_tensors_are_those_the_network_puts_on_its_skip_stack():
    formulas.compare_tensors()


def test_it_starts_as_nothing_and_one_step_makes_it_something(unet):
    module = FeatureModulation.for_network(unet, tiny.PYRAMID)
    assert unchanged(module)
    sample, steps, condition = batch()
    with torch.no_grad():
        plain = unet(sample, steps, encoder_hidden_states=PROMPT.expand(2, -1, -1)).sample
        assert torch.equal(denoise_modulated(unet, sample, steps, PROMPT, module, condition), plain)
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-2)
    denoise_modulated(unet, sample, steps, PROMPT, module, condition).square().mean().backward()
    optimiser.step()
    assert not unchanged(module)
    with torch.no_grad():
        after = denoise_modulated(unet, sample, steps, PROMPT, module, condition)
    assert not torch.equal(after, plain)


def test_the_first_gradient_reaches_the_zero_convolutions_and_the_second_the_pyramid(unet):
    module = FeatureModulation.for_network(unet, tiny.PYRAMID)
    sample, steps, condition = batch()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for step, reached in enumerate((False, True)):
        optimiser.zero_grad()
        denoise_modulated(unet, sample, steps, PROMPT, module, condition).square().mean().backward()
        zeros = [*module.scales, *module.shifts]
        assert all(float(conv.weight.grad.abs().max()) > 0 for conv in zeros), step
        grown = [float(conv.weight.grad.abs().max()) > 0 for conv in module.condition_convs]
        assert grown == [reached] * 4
        optimiser.step()


@torch.no_grad()
def test_gamma_and_beta_are_maps_over_space_unless_asked_otherwise(unet):
    condition = draw(1, 4, 16, 16)
    for channelwise in (False, True):
        module = tiny.modulation(unet)
        module.register_to_config(channelwise=channelwise)
        h = draw(1, 8, 16, 16, seed=1)
        added = module.modulate(0, h, module.conditions(condition)) - h
        normal = torch.nn.functional.instance_norm(h)
        # With one gamma and one beta a channel, what is added is one line in the normalised feature.
        line = torch.stack([normal[0, 0].flatten(), torch.ones(256)], dim=1)
        rest = torch.linalg.lstsq(line, added[0, 0].flatten()[:, None]).solution
        misfit = float((line @ rest - added[0, 0].flatten()[:, None]).abs().max())
        assert (misfit < 1e-4) == channelwise


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda u, m: FeatureModulation(channels=(8, 8), levels=(0,)), ConfigError, "one level a tensor"),
        (lambda u, m: FeatureModulation(channels=(), levels=()), ConfigError, "one level a tensor"),
        (lambda u, m: FeatureModulation(channels=(8,), levels=(4,)), ConfigError, "each below 4"),
        (lambda u, m: FeatureModulation(channels=(8,), levels=(-1,)), ConfigError, "each below 4"),
        (lambda u, m: m.conditions(draw(1, 8, 16, 16)), ImageContractError, r"expected \(B, 4"),
        (lambda u, m: m.conditions(draw(4, 16, 16)), ImageContractError, r"expected \(B, 4"),
        (lambda u, m: m.conditions(draw(1, 4, 20, 16)), ImageContractError, "with sides of 16, 24"),
        (lambda u, m: m.conditions(draw(1, 4, 8, 8)), ImageContractError, "with sides of 16, 24"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT, m, None), ConfigError, "belong together"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT, None, batch()[2]), ConfigError, "belong together"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT, FeatureModulation(4, (8,), (0,), (8,)), batch()[2]),
         ConfigError, "for_network"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT[:, :, :4], m, batch()[2]), ImageContractError,
         r"\(1 or 2, tokens, 8\)"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT.expand(3, -1, -1), m, batch()[2]),
         ImageContractError, r"\(1 or 2, tokens, 8\)"),
        (lambda u, m: denoise_modulated(u, *batch()[:2], PROMPT, m, batch(1)[2]), ImageContractError, "one shape"),
        (lambda u, m: freeze_unet(u, "decoder"), UnknownNameError, "encoder"),
    ],
)  # fmt: skip
def test_modulation_refuses(unet, call, error, says):
    with pytest.raises(error, match=says):
        call(unet, tiny.modulation(unet))


def test_a_denoiser_with_other_inputs_is_refused():
    config = {key: value for key, value in tiny.unet().config.items() if not key.startswith("_")}
    conditional = UNet2DConditionModel(**(config | {"num_class_embeds": 4}))
    module = tiny.modulation(conditional)
    with pytest.raises(ConfigError, match="class_embedding"):
        denoise_modulated(conditional, *batch()[:2], PROMPT, module, batch()[2])


# --- the modulated network --------------------------------------------------------------------------------------------


def test_modulated_tensors_feed_the_next_block_and_the_skip_connection():
    formulas.compare_network()


@torch.no_grad()
def test_without_modulation_it_is_the_stock_forward_pass(unet):
    sample, steps, _ = batch()
    came = denoise_modulated(unet, sample, steps, PROMPT, None, None)
    assert torch.equal(came, unet(sample, steps, encoder_hidden_states=PROMPT.expand(2, -1, -1)).sample)


@torch.no_grad()
def test_one_timestep_and_one_prompt_serve_a_whole_batch(unet):
    module, (sample, _, condition) = tiny.modulation(unet), batch()
    several = denoise_modulated(unet, sample, torch.tensor([7, 7]), PROMPT.expand(2, -1, -1), module, condition)
    for one in (7, torch.tensor(7), torch.tensor([7])):
        assert torch.equal(denoise_modulated(unet, sample, one, PROMPT, module, condition), several)
    single = denoise_modulated(unet, sample[:1], 7, PROMPT, module, condition[:1])
    torch.testing.assert_close(several[:1], single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_is_left_behind_in_the_denoiser(unet):
    module, (sample, steps, condition) = tiny.modulation(unet), batch()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    keys = {name: set(vars(part)) for name, part in unet.named_modules()}
    plain = unet(sample, steps, encoder_hidden_states=PROMPT.expand(2, -1, -1)).sample
    first = denoise_modulated(unet, sample, steps, PROMPT, module, condition)
    other = denoise_modulated(unet, sample, steps, PROMPT, module, condition.flip(0))
    assert not torch.equal(first, other)
    assert torch.equal(denoise_modulated(unet, sample, steps, PROMPT, module, condition), first)
    assert torch.equal(unet(sample, steps, encoder_hidden_states=PROMPT.expand(2, -1, -1)).sample, plain)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert keys == {name: set(vars(part)) for name, part in unet.named_modules()}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in unet.modules())


@pytest.mark.parametrize("part", TRAIN_UNET)
def test_train_unet_freezes_what_it_says(part):
    unet = tiny.unet()
    network = ModulatedUNet(freeze_unet(unet, part), tiny.modulation(unet)).train()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    sample, steps, condition = batch()
    network(sample, steps, PROMPT, condition).square().mean().backward()
    optimiser.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    encoder = {name for name in before if name.startswith(("unet.conv_in", "unet.down_blocks"))}
    rest = {name for name in before if name.startswith("unet.")} - encoder
    assert {name for name in moved if name.startswith("modulation.")}
    # A key or value of the single prompt token that is zero has no gradient, nor has a softmax over it.
    assert bool(moved & encoder) == (part != "none") and bool(moved & rest) == (part == "all")
    assert {name for name, p in network.named_parameters() if p.requires_grad and name.startswith("unet.")} == {
        "none": set(), "encoder": encoder, "all": encoder | rest
    }[part]  # fmt: skip
    assert "unet.conv_in.weight" in moved or part == "none"


def test_the_gradient_reaches_the_condition(unet):
    module, (sample, steps, condition) = tiny.modulation(unet), batch()
    condition.requires_grad_()
    denoise_modulated(unet, sample, steps, PROMPT, module, condition).square().mean().backward()
    assert bool((condition.grad.abs().amax((1, 2, 3)) > 0).all())


@torch.no_grad()
@pytest.mark.parametrize("channelwise", [False, True])
def test_modulation_survives_being_saved(unet, tmp_path, channelwise):
    module = FeatureModulation.for_network(unet, tiny.PYRAMID, channelwise)
    torch.nn.init.normal_(module.scales[3].weight)
    module.save_pretrained(tmp_path, safe_serialization=True)
    loaded = FeatureModulation.from_pretrained(tmp_path).eval()
    sample, steps, condition = batch()
    assert loaded.config.channelwise is channelwise
    expected = denoise_modulated(unet, sample, steps, PROMPT, module, condition)
    assert torch.equal(denoise_modulated(unet, sample, steps, PROMPT, loaded, condition), expected)


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_the_prompt_is_held_as_it_came(tmp_path):
    given = draw(1, 5, 8)
    held = PromptEmbedding.of(given)
    assert torch.equal(held(), given) and not any(p.requires_grad for p in held.parameters())
    held.save_pretrained(tmp_path)
    assert torch.equal(PromptEmbedding.from_pretrained(tmp_path)(), given)
    assert PromptEmbedding.of(given.half())().dtype == torch.float16
    assert torch.equal(PromptEmbedding(1, 8)(), PROMPT)
    for wrong in (draw(5, 8), draw(2, 5, 8)):
        with pytest.raises(ImageContractError, match="tokens, width"):
            PromptEmbedding.of(wrong)
