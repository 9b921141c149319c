"""ReF-LDM's training loss: scales, identity term, condition dropout, and the fine-tuning built on them."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor, nn

from refbfr_core.diffusion import predict_v, refldm_schedule
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.models import decode_latents
from refbfr_core.training import identity, recipe
from refbfr_core.training.identity import SCALES, drop_conditions, identity_loss, identity_targets, refldm_loss
from refbfr_core.training.recipes import IDENTITY_SCALES
from refbfr_core.training.refldm_identity import RefLDMIdentityTask
from refbfr_core.training.refldm_live import draw_live_data, fine_tune_live

SCHEDULE = refldm_schedule()


def mean_colour(crops: Tensor) -> Tensor:
    """An embedder whose embedding is the mean colour of the inner picture."""
    return crops.mean((2, 3))


@pytest.fixture(scope="module")
def networks() -> tuple[UNet2DModel, VQModel]:
    torch.manual_seed(3)
    unet = UNet2DModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, norm_num_groups=4,
    )  # fmt: skip
    vq = VQModel(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=16, vq_embed_dim=4, norm_num_groups=4, scaling_factor=1.0,
    )  # fmt: skip
    return unet.train(), vq.eval().requires_grad_(False)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(5)
    names = ("clean", "lq", "noise")
    tensors = {name: torch.randn(4, 4, 8, 8, generator=draws) for name in names}
    return tensors | {
        "references": torch.randn(2, 2, 4, 8, 8, generator=draws),
        "timesteps": torch.tensor([20, 120, 550, 980]),
    }


def loss(networks, batch, **options):
    unet, vq = networks
    settings = {"vq": vq, "embedder": mean_colour, "schedule": SCHEDULE, **options}
    return refldm_loss(unet, **batch, **settings)


# --- scales -----------------------------------------------------------------------------------------------------------


def test_scales_at_their_edges():
    t = torch.tensor([0, 99, 100, 499, 500, 999])
    values = {name: scale(t, SCHEDULE) for name, scale in SCALES.items()}
    abar = SCHEDULE.alphas_cumprod[t]
    assert values["sqrt_alpha_bar"].tolist() == pytest.approx(abar.sqrt().tolist(), rel=1e-6)
    assert float(values["sqrt_alpha_bar"][0]) == pytest.approx(0.99925, abs=1e-5)
    assert float(values["sqrt_alpha_bar"][-1]) == pytest.approx(0.02586, abs=1e-5)
    assert values["constant"].tolist() == [1] * 6
    assert values["below_100"].tolist() == [1, 1, 0, 0, 0, 0]
    assert values["below_500"].tolist() == [1, 1, 1, 1, 0, 0]


def test_the_table_of_scales_is_read_only_and_named_like_the_recipes_options():
    with pytest.raises(TypeError):
        SCALES["mine"] = SCALES["constant"]
    assert set(IDENTITY_SCALES) == {"none", *SCALES}
    with pytest.raises(UnknownNameError, match="below_100"):
        identity.scale_function("below_10")


# --- identity ---------------------------------------------------------------------------------------------------------


def test_identity_loss_is_one_minus_the_cosine():
    pictures = torch.rand(3, 3, 32, 32) * 2 - 1
    targets = torch.stack([pictures[0], -pictures[1], pictures[2]])
    losses = identity_loss(pictures, targets, mean_colour)
    assert losses[:2].tolist() == pytest.approx([0, 2], abs=1e-5)
    embeddings = mean_colour(targets[..., 2:30, 2:30])
    assert torch.allclose(identity_loss(pictures, embeddings, mean_colour), losses, atol=1e-5)


def test_identity_loss_ignores_the_border_and_trains_the_picture_only():
    pictures = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    targets = torch.rand(2, 3, 32, 32).requires_grad_()
    identity_loss(pictures, targets, mean_colour).sum().backward()
    assert targets.grad is None
    assert float(pictures.grad[..., :2, :].abs().max()) == 0
    assert float(pictures.grad[..., 2:30, 2:30].abs().min()) > 0


def test_identity_loss_refuses_what_cannot_be_meant():
    pictures = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ConfigError, match="eval"):
        identity_loss(pictures, pictures, nn.Sequential(nn.Flatten()).train())
    with pytest.raises(ConfigError, match="as many"):
        identity_loss(pictures, pictures[:1], lambda x: x.flatten(1))
    with pytest.raises(ConfigError, match="as many"):
        identity_loss(pictures, pictures[0], lambda x: x.flatten(1))


# --- the whole loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_parts_add_up(networks, batch, prediction):
    parts = loss(networks, batch, prediction=prediction, weight=0.3)
    weights = SCALES["sqrt_alpha_bar"](batch["timesteps"], SCHEDULE)
    assert float(parts.identity) == pytest.approx(float((weights * parts.identity_each).mean()), rel=1e-5)
    assert float(parts.total.detach()) == pytest.approx(float(parts.denoising + 0.3 * parts.identity), rel=1e-6)
    aim = batch["noise"]
    if prediction == "v_prediction":
        aim = predict_v(batch["clean"], batch["noise"], batch["timesteps"], SCHEDULE)
    assert float(parts.denoising) == pytest.approx(float((parts.output - aim).square().mean()), rel=1e-5)


def test_only_what_counts_is_decoded(networks, batch, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        identity, "decode_latents", lambda vq, z, p=1: decoded.append(len(z)) or decode_latents(vq, z, p)
    )
    parts = loss(networks, batch, scale="below_100")
    assert decoded == [1, 1]  # the target and the prediction of the one sample with t < 100
    assert parts.identity_each.isnan().tolist() == [False, True, True, True]
    assert float(parts.identity) == pytest.approx(float(parts.identity_each[0]) / 4, rel=1e-6)
    unweighted = loss(networks, batch, scale="constant")
    assert float(unweighted.identity_each[0]) == pytest.approx(float(parts.identity_each[0]), abs=1e-5)


@pytest.mark.parametrize("options", [{"scale": None}, {"weight": 0.0}])
def test_without_identity_nothing_is_needed_for_it(networks, batch, options):
    parts = loss(networks, batch, vq=None, embedder=None, **options)
    assert float(parts.total.detach()) == float(parts.denoising)
    assert parts.decoded is None
    assert bool(parts.identity_each.isnan().all())
    with pytest.raises(ConfigError, match="vq="):
        loss(networks, batch, vq=None)


def test_given_targets_equal_computed_ones(networks, batch):
    unet, vq = networks
    targets = identity_targets(vq, batch["clean"], mean_colour)
    assert float(loss(networks, batch, targets=targets).total.detach()) == pytest.approx(
        float(loss(networks, batch).total.detach())
    )
    pictures = decode_latents(vq, batch["clean"])
    assert float(loss(networks, batch, targets=pictures).total.detach()) == pytest.approx(
        float(loss(networks, batch).total.detach())
    )


def test_shared_references_equal_repeated_ones(networks, batch):
    shared = loss(networks, batch, scale=None)
    repeated = loss(networks, batch | {"references": batch["references"].repeat_interleave(2, 0)}, scale=None)
    assert torch.allclose(shared.output, repeated.output, atol=1e-5)
    none = loss(networks, batch | {"references": batch["references"][:, :0]}, scale=None)
    assert float((none.output - shared.output).abs().max()) > 1e-4
    with pytest.raises(ConfigError, match="evenly"):
        loss(networks, batch | {"references": batch["references"][[0, 0, 1]]}, scale=None)


def test_gradients_reach_the_denoiser_and_nothing_else(networks, batch):
    unet, vq = networks
    unet.zero_grad(set_to_none=True)
    loss(networks, batch, weight=1.0, denoising_weights=torch.zeros(4)).total.backward()
    assert all(float(layer.weight.grad.abs().max()) > 0 for layer in (unet.conv_in, unet.conv_out))
    assert all(p.grad is None for p in vq.parameters())


# --- condition dropout ------------------------------------------------------------------------------------------------


def test_dropout_is_for_each_sample_and_condition_by_itself():
    lq, references = torch.ones(4000, 1, 1, 1), torch.ones(1000, 3, 1, 1, 1)
    draws = torch.Generator().manual_seed(1)
    dropped_lq, dropped = drop_conditions(lq, references, 0.1, generator=draws)
    assert set(dropped_lq.unique().tolist()) == set(dropped.unique().tolist()) == {0.0, 1.0}
    assert float(dropped_lq.mean()) == pytest.approx(0.9, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(0.9, abs=0.04)
    # All references of a sample go together, and their number stays.
    assert dropped.shape == references.shape
    assert bool((dropped.flatten(1).std(1) == 0).all())
    both = (dropped_lq[:1000].flatten() == 0) & (dropped[:, 0].flatten() == 0)
    assert float(both.float().mean()) == pytest.approx(0.01, abs=0.01)
    assert bool((lq == 1).all()), "the input is left alone"


def test_dropout_at_its_limits():
    lq, references = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 2, 4, 4)

    def drop(probability, refs=references):
        return drop_conditions(lq, refs, probability, generator=torch.Generator().manual_seed(0))

    assert all(torch.equal(a, b) for a, b in zip(drop(0.0), (lq, references), strict=True))
    assert all(float(part.abs().max()) == 0 for part in drop(1.0))
    only_references = drop((0.0, 1.0))
    assert torch.equal(only_references[0], lq)
    assert float(only_references[1].abs().max()) == 0
    assert drop(0.5, None)[1] is None
    assert torch.equal(drop(0.5)[0], drop(0.5)[0])
    with pytest.raises(ConfigError, match="0 to 1"):
        drop(1.5)


# --- fine-tuning ------------------------------------------------------------------------------------------------------

TINY = {"people": 1, "batch": 4, "targets": 4, "views": 4, "resolution": 64}


@pytest.fixture(scope="module")
def drawn():
    return draw_live_data(recipe("refldm-identity", **TINY))


def test_every_arm_sees_the_same_batches(drawn):
    latents, targets = drawn
    arms = {
        scale: RefLDMIdentityTask(recipe("refldm-identity", scale=scale, **TINY), latents, latents, targets)
        for scale in ("none", "constant", "below_100")
    }
    batches = {scale: arm.batch(3, 0, 1) for scale, arm in arms.items()}
    expected = batches["constant"]
    for scale, own in batches.items():
        assert set(own) == set(expected) - ({"targets"} if scale == "none" else set())
        assert all(torch.equal(value, expected[key]) for key, value in own.items())
    # A target is the embedding of the very picture that is to be restored.
    task = arms["constant"]
    computed = identity_targets(task.vq, expected["clean"], task.embedder, 2)
    assert torch.allclose(expected["targets"], computed, atol=1e-4)


def test_live_fine_tuning_reports_and_repeats(drawn):
    seen = []
    options = {"steps": 2, "people": 1, "batch": 4, "data": drawn, "identity_weight": 1.0}
    one = fine_tune_live("constant", on_step=lambda *step: seen.append(step), **options)
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert seen[0][2]["identity"] > 0
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())
    again, other = fine_tune_live("constant", **options), fine_tune_live("none", **options)
    assert torch.equal(one.conv_out.weight, again.conv_out.weight)
    assert not torch.equal(one.conv_out.weight, other.conv_out.weight)


def test_impossible_recipes():
    with pytest.raises(UnknownNameError, match="sqrt_alpha_bar"):
        recipe("refldm-identity", scale="sqrt_alpha_ba")
    with pytest.raises(ConfigError, match="guide"):
        recipe("refldm-identity", embedder="judge")
    with pytest.raises(ConfigError, match="draw more"):
        draw_live_data(people=1)
