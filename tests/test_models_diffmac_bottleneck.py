"""DiffMAC's bottleneck: the divergence, what lambda keeps, what fills the rest, and the second stage around it."""

from __future__ import annotations

import formulas_diffmac as formulas
import pytest
import tiny_diffmac as tiny
import torch
from formulas_diffmac import draw
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.models.bottleneck import COMPENSATIONS, ManifoldBottleneck, kl_exact, kl_printed
from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import RunningMoments, latents_of
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.weights import load_network, save_network

TABLE = [
    # lambda, r, Monte Carlo with 4 million draws, exact, as printed (nats)
    (0.05, 0.5, 0.0029, 0.0029, 0.0541),
    (0.30, -2.0, 0.2818, 0.2817, 0.6383),
    (0.30, 0.5, 0.1131, 0.1129, 0.4696),
    (0.70, -2.0, 1.7289, 1.7290, 2.9329),
    (0.95, 0.5, 2.6096, 2.6098, 5.6055),
]
DRAWS = 200_000


def bottleneck(compensation: str = "identity", **options: object) -> ManifoldBottleneck:
    """With statistics that are not 0 and 1, away from its initial values."""
    return tiny.tiny_second(compensation, **options).bottleneck


def noise(*shape: int) -> Tensor:
    return draw(*shape, seed=9)


# --- the divergence ---------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_gaussians():
    formulas.compare_kl()


@pytest.mark.parametrize(("share", "r", "published", "exact", "printed"), TABLE)
def test_the_table_of_values_and_a_monte_carlo_estimate(share, r, published, exact, printed):
    """E[log p(Z) - log q(Z)] over draws of Z; five standard errors."""
    lambda_, normal = torch.tensor(share, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    assert float(kl_exact(lambda_, normal)) == pytest.approx(exact, abs=5.1e-5)
    assert float(kl_printed(lambda_, normal)) == pytest.approx(printed, abs=5.1e-5)
    posterior = torch.distributions.Normal(lambda_ * normal, 1 - lambda_)
    z = posterior.mean + posterior.stddev * draw(DRAWS, seed=3).double()
    gains = posterior.log_prob(z) - torch.distributions.Normal(normal.new_zeros(()), 1.0).log_prob(z)
    error = float(gains.std()) / DRAWS**0.5
    assert error < 0.003
    assert float(gains.mean()) == pytest.approx(float(kl_exact(lambda_, normal)), abs=5 * error)
    assert abs(float(gains.mean()) - float(kl_printed(lambda_, normal))) > 15 * error
    assert published == pytest.approx(exact, abs=5 * error * (DRAWS / 4e6) ** 0.5 + 1e-4)


def test_nothing_kept_costs_nothing_and_more_costs_more():
    share = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    for r in (0.0, 0.5, -3.0):
        for cost in (kl_exact, kl_printed):
            costs = cost(share, torch.tensor(r, dtype=torch.float64))
            assert float(costs[0]) == 0 and bool((costs.diff() > 0).all())
    assert bool(torch.isinf(kl_exact(torch.ones(()), torch.zeros(()))))


def test_the_slope_at_nothing_kept_is_zero_for_the_exact_form_and_one_for_the_printed():
    for cost, slope in ((kl_exact, 0.0), (kl_printed, 1.0)):
        share = torch.zeros((), dtype=torch.float64, requires_grad=True)
        cost(share, torch.tensor(1.3, dtype=torch.float64)).backward()
        assert float(share.grad) == pytest.approx(slope, abs=1e-12)


@torch.no_grad()
def test_the_clamped_logit_keeps_the_price_finite():
    module = bottleneck()
    module.conv.bias.fill_(1000.0)
    made = module(draw(1, 8, 3, 3), draw(1, 16))
    assert float(made.share.max()) == pytest.approx(0.99331, abs=1e-5)
    assert bool(torch.isfinite(made.information).all())
    assert float(-torch.log1p(-made.share).min()) == pytest.approx(5.0067, abs=1e-3)


# --- equations 7 to 9 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("side", [0, 3], ids=["per channel", "per place"])
def test_equations_seven_to_nine(compensation, side):
    formulas.compare_bottleneck(compensation, side=side)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_a_share_set_by_hand_goes_the_same_way(compensation):
    formulas.compare_bottleneck(compensation, share=0.3)


@torch.no_grad()
def test_all_kept_gives_the_input_and_nothing_kept_the_compensation():
    module, first, identity = bottleneck(), draw(2, 8, 4, 4), draw(2, 16, seed=1)
    assert torch.equal(module(first, identity, share=1.0).moments, first)
    none = module(first, identity, share=0.0)
    assert torch.equal(none.moments, none.compensation) and not bool(none.information.any())
    scale, shift = module.scale(identity), module.shift(identity)
    by_hand = scale[:, :, None, None] * module.normalise(first) + shift[:, :, None, None]
    torch.testing.assert_close(none.compensation, by_hand)


@torch.no_grad()
def test_the_right_scale_and_shift_rebuild_the_input_for_any_share():
    """gamma = sigma_QC and beta = mu_QC undo the normalisation, if sigma_QC is at least o."""
    module, first, identity = bottleneck(), draw(2, 8, 4, 4), draw(2, 16, seed=1)
    for layer in (module.scale, module.shift):
        layer.weight.zero_()
    module.set_statistics(module.mean, module.std)
    for share in (None, 0.0, 0.37, 1.0):
        torch.testing.assert_close(module(first, identity, share=share).moments, first, rtol=1e-4, atol=1e-5)
    module.std[3] = module.config.min_std / 10
    off = (module(first, identity, share=0.5).moments - first).abs().amax((0, 2, 3))
    assert float(off[3]) > 0.1 and float(off[[0, 1, 2, 4, 5, 6, 7]].max()) < 1e-5


@torch.no_grad()
def test_it_starts_close_to_passing_everything_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ManifoldBottleneck(identity_dim=512, statistics_side=0)
    mean, std = torch.linspace(-20, 1, 8).view(8, 1, 1), torch.linspace(0.5, 6, 8).view(8, 1, 1)
    module.set_statistics(mean, std)
    first = mean + std * draw(2, 8, 16, 16)
    identity = torch.nn.functional.normalize(draw(2, 512), dim=1)
    made = module(first, identity)
    assert float(made.share.mean()) == pytest.approx(0.8808, abs=0.002)  # sigmoid(2)
    assert float(((made.compensation - first) / std).abs().max()) < 0.05
    assert float(((made.moments - first) / std).abs().max()) < 0.01


@torch.no_grad()
def test_noise_has_the_mean_and_variance_of_the_posterior():
    module, first, share = bottleneck("noise"), draw(1, 8, 2, 2), 0.4
    count = 20_000
    draws = module(first.expand(count, -1, -1, -1), noise=noise(count, 8, 2, 2), share=share).moments
    std = module.floor_std.expand_as(first[0])
    mean = share * first[0] + (1 - share) * module.mean
    spread = (1 - share) * std
    assert float(((draws.mean(0) - mean) / spread).abs().max()) < 5 / count**0.5
    assert float((draws.var(0) / spread.square() - 1).abs().max()) < 5 * (2 / count) ** 0.5


@torch.no_grad()
def test_another_identity_changes_only_what_is_not_kept():
    module, first = bottleneck(), draw(1, 8, 4, 4)
    mine, other = (module(first, draw(1, 16, seed=seed)) for seed in (1, 2))
    assert torch.equal(mine.share, other.share) and torch.equal(mine.information, other.information)
    assert torch.equal(mine.normalised, other.normalised)
    expected = (1 - mine.share) * (other.compensation - mine.compensation)
    torch.testing.assert_close(other.moments - mine.moments, expected, rtol=1e-4, atol=1e-5)
    assert float(expected.abs().max()) > 0.1
    kept = module(first, draw(1, 16, seed=2), share=1.0)
    assert torch.equal(kept.moments, first)


@torch.no_grad()
def test_one_scale_and_one_shift_for_all_places():
    module, identity = bottleneck(), draw(1, 16)
    first = module.mean.expand(1, -1, 4, 4).clone()
    made = module(first, identity, share=0.0).moments
    torch.testing.assert_close(made, module.shift(identity)[:, :, None, None].expand_as(made))
    assert float(made.std((2, 3)).max()) == 0


@torch.no_grad()
def test_statistics_are_fixed_whatever_comes():
    module, first = bottleneck(), draw(2, 8, 4, 4)
    alone = module.normalise(first[:1])
    beside = module.normalise(torch.cat([first[:1], 100 * first[1:]]))[:1]
    assert torch.equal(alone, beside)
    shifted = module.normalise(first + 3)
    torch.testing.assert_close(shifted - module.normalise(first), (3 / module.floor_std).expand_as(first))


@torch.no_grad()
def test_per_place_statistics_come_from_running_moments():
    running = RunningMoments(per_channel=False)
    running.update(draw(50, 8, 4, 4) * 2 + 1)
    module = ManifoldBottleneck(identity_dim=4, statistics_side=4)
    module.set_statistics(running.mean, running.std)
    assert torch.equal(module.mean, running.mean) and torch.equal(module.std, running.std)
    torch.testing.assert_close(module.shift.bias.detach(), running.mean.mean((1, 2)))
    torch.testing.assert_close(module.scale.bias.detach(), running.std.mean((1, 2)))


def test_only_the_identity_has_layers_for_it():
    for compensation in COMPENSATIONS:
        module = ManifoldBottleneck(compensation=compensation)
        counts = [sum(p.numel() for p in part.parameters()) for part in module.children()]
        assert counts == ([584, 4104, 4104] if compensation == "identity" else [584])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: ManifoldBottleneck(compensation="noises"), UnknownNameError, "noise"),
        (lambda m: ManifoldBottleneck(kl="exakt"), UnknownNameError, "exact"),
        (lambda m: m(draw(1, 4, 4, 4), draw(1, 16)), ImageContractError, r"\(B, 8, h, w\)"),
        (lambda m: m(draw(8, 4, 4), draw(1, 16)), ImageContractError, r"\(B, 8, h, w\)"),
        (lambda m: m(draw(1, 8, 4, 4)), ConfigError, "injects an identity; pass an embedding .1, 16., not None"),
        (lambda m: m(draw(2, 8, 4, 4), draw(1, 16)), ConfigError, r"not \(1, 16\)"),
        (lambda m: m(draw(1, 8, 4, 4), draw(1, 15)), ConfigError, r"not \(1, 15\)"),
        (lambda m: m(draw(1, 8, 4, 4), draw(1, 16), share=1.2), ConfigError, r"lambda must lie in \[0, 1\]"),
        (lambda m: m(draw(1, 8, 4, 4), draw(1, 16), share=-0.1), ConfigError, r"lambda must lie in \[0, 1\]"),
        (lambda m: m(draw(1, 8, 4, 4), draw(1, 16), share=float("nan")), ConfigError, "lambda must lie"),
        (lambda m: bottleneck("noise")(draw(1, 8, 4, 4)), ConfigError, r"pass noise of \(1, 8, 4, 4\)"),
        (lambda m: bottleneck("noise")(draw(1, 8, 4, 4), noise=noise(1, 4, 4, 4)), ConfigError, "pass noise"),
        (lambda m: m.set_statistics(torch.zeros(8, 2, 2), m.std), ConfigError, "same per_channel"),
        (lambda m: m.set_statistics(m.mean, m.std * float("nan")), ConfigError, "finite"),
        (lambda m: m.set_statistics(m.mean, -m.std), ConfigError, "0 or more"),
        (lambda m: bottleneck(statistics_side=4)(draw(1, 8, 4, 8), draw(1, 16)), ImageContractError, "8, 4, 4"),
        (lambda m: bottleneck(statistics_side=4)(draw(1, 8, 8, 4), draw(1, 16)), ImageContractError, "8, 4, 4"),
    ],
)  # fmt: skip
def test_the_bottleneck_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call(bottleneck())


def test_a_map_of_shares_may_be_given():
    module, first, identity = bottleneck(), draw(2, 8, 4, 4), draw(2, 16, seed=1)
    share = torch.zeros(2, 1, 4, 4)
    share[:, :, :2] = 1
    made = module(first, identity, share=share)
    assert torch.equal(made.moments[:, :, :2], first[:, :, :2])
    assert torch.equal(made.moments[:, :, 2:], made.compensation[:, :, 2:])


# --- the second stage -------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_diffusion_reaches_the_bottleneck_through_its_draw():
    second, unet = tiny.tiny_second(), tiny.unet()
    unet.requires_grad_(False)
    first, identity = draw(1, *tiny.MOMENTS), draw(1, 16, seed=1)
    z = second(first, identity).moments
    condition = latents_of(z, 0.5, draw(1, 4, 16, 16, seed=2))
    prompt = torch.zeros(1, 1, 8)
    denoise_modulated(unet, draw(1, 4, 16, 16, seed=3), 500, prompt, second.modulation, condition).square().mean(
    ).backward()  # fmt: skip
    sizes = {name: float(p.grad.abs().max()) for name, p in second.named_parameters()}
    assert all(size > 0 for size in sizes.values()), sizes
    # The log-variances are reached as well, through the draw.
    assert bool((second.bottleneck.shift.bias.grad != 0).all())


def test_rows_of_the_table():
    assert {kind: tiny.tiny_second(kind).compensation for kind in (*COMPENSATIONS, "off")} == {
        "identity": "identity", "noise": "noise", "none": "none", "off": "off"
    }  # fmt: skip
    off = tiny.tiny_second("off", label="2AdaIN")
    assert off.config.label == "2AdaIN" and off(draw(1, *tiny.MOMENTS)) is None
    with pytest.raises(ConfigError, match="no bottleneck"):
        off(draw(1, *tiny.MOMENTS), share=0.5)
    with pytest.raises(ConfigError, match="'stage-one' or from the 'input'"):
        tiny.tiny_second(source="stage one")


@torch.no_grad()
def test_none_multiplies_by_the_share_alone():
    second, first = tiny.tiny_second("none"), draw(2, *tiny.MOMENTS)
    made = second(first)
    torch.testing.assert_close(made.moments, made.share * first)
    assert not bool(made.compensation.any())


@torch.no_grad()
@pytest.mark.parametrize("kind", [*COMPENSATIONS, "off"])
@pytest.mark.parametrize("side", [0, 16])
def test_a_second_stage_survives_the_store(tmp_path, kind, side):
    """Loading builds the network without memory first, where nothing may look at a number."""
    second = tiny.tiny_second(kind, "input", "a row", statistics_side=side)
    second.save_pretrained(tmp_path / "plain", safe_serialization=True)
    card = {"summary": "test", "training_data": "nothing", "recipe": {"steps": 0}}
    save_network(second, "diffmac-two-id-0.001", tmp_path, card, torch.float32)
    stored = load_network("diffmac-two-id-0.001", device="cpu", root=tmp_path)
    first, identity, filling = draw(1, *tiny.MOMENTS), draw(1, 16), noise(1, *tiny.MOMENTS)
    for loaded in (SecondStage.from_pretrained(tmp_path / "plain").eval(), stored):
        assert (loaded.config.source, loaded.config.label, loaded.compensation) == ("input", "a row", kind)
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())
        if kind != "off":
            came, expected = (each(first, identity, filling) for each in (loaded, second))
            torch.testing.assert_close(came.moments, expected.moments)


def test_everything_can_be_built_without_memory():
    with torch.device("meta"):
        module = ManifoldBottleneck()
        assert FeatureModulation().config.pyramid == (320, 640, 1280, 1280)
    assert module.mean.shape == (8, 64, 64) and module.mean.is_meta
