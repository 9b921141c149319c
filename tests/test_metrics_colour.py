"""Colour bias and the distances in features of shipped networks: known values, and that they rank damage well."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from refbfr_core import metrics
from refbfr_core.benchmark.quality import blurred, checkered, noisy, oversharpened
from refbfr_core.benchmark.scoring import Scorer
from refbfr_core.errors import ImageContractError
from refbfr_core.faces import ToyFaces
from refbfr_core.metrics import channel_bias
from refbfr_core.metrics.textures import load_textures
from refbfr_core.models import FaceEmbedder, PerceptualFeatures

SIGNED = ("bias-red", "bias-green", "bias-blue")


def pictures(count: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, 3, side, side, generator=draws)


def cast(images: Tensor, *grey_levels: float) -> Tensor:
    return images + torch.tensor(grey_levels).view(1, 3, 1, 1) / 255


# Colour ---------------------------------------------------------------------------------------------------------------


def test_a_known_cast_is_found_in_its_channels() -> None:
    truth = pictures()
    shifted = cast(truth, 6.0, -2.0, 3.0)
    assert channel_bias(shifted, truth).shape == (3, 3)
    expected = torch.tensor([[6.0, -2.0, 3.0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(channel_bias(shifted, truth), expected, atol=1e-4, rtol=0)
    assert metrics.compute("colour-bias", shifted, truth).tolist() == pytest.approx([7.0] * 3, abs=1e-4)
    signed = [metrics.compute(name, shifted, truth)[0].item() for name in SIGNED]
    assert signed == pytest.approx([6.0, -2.0, 3.0], abs=1e-4)


def test_the_sign_says_who_is_brighter_and_the_length_does_not() -> None:
    dark, bright = pictures(), cast(pictures(), 5.0, 5.0, 5.0)
    torch.testing.assert_close(channel_bias(dark, bright), -channel_bias(bright, dark))
    both = [metrics.compute("colour-bias", *pair)[0].item() for pair in ((dark, bright), (bright, dark))]
    assert both == pytest.approx([5 * math.sqrt(3)] * 2, abs=1e-4)


def test_errors_that_cancel_within_a_picture_are_no_bias() -> None:
    truth = pictures()
    mixed = truth.clone()
    mixed[..., :8] += 0.1
    mixed[..., 8:] -= 0.1
    assert metrics.compute("psnr", mixed, truth).max() < 21
    assert metrics.compute("colour-bias", mixed, truth).max() < 1e-4


def test_every_picture_has_its_own_bias() -> None:
    truth = pictures()
    mixed = torch.cat([truth[:1], cast(truth[1:2], 8.0, 0.0, 0.0), cast(truth[2:], 0.0, 0.0, -4.0)])
    assert metrics.compute("colour-bias", mixed, truth).tolist() == pytest.approx([0.0, 8.0, 4.0], abs=1e-4)


def test_the_extremes_are_the_ends_of_the_range() -> None:
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert metrics.compute("colour-bias", white, black).item() == pytest.approx(255 * math.sqrt(3))
    assert metrics.REGISTRY["colour-bias"].range == (0, 255 * math.sqrt(3))
    for name in SIGNED:
        ends = [metrics.compute(name, *pair).item() for pair in ((black, white), (white, black))]
        assert tuple(ends) == metrics.REGISTRY[name].range and metrics.REGISTRY[name].direction == "zero"


def test_pictures_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ImageContractError, match="one shape"):
        channel_bias(pictures(3), pictures(2))
    with pytest.raises(ImageContractError, match="target"):
        channel_bias(pictures(), pictures() * 255)
    with pytest.raises(ImageContractError, match="no target came"):
        metrics.compute("colour-bias", pictures())


def test_the_protocols_say_what_counts() -> None:
    text = metrics.describe("colour-bias")
    assert "lower is better" in text and "grey levels" in text and "restored - true" in text
    assert "nearer to 0" in metrics.describe("bias-red") and "cancel" in metrics.describe("bias-red")


# Features of shipped networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces() -> Tensor:
    drawn = ToyFaces(128)
    people = drawn.identities(6, 5, "val")
    return drawn.render(people, drawn.views(people, 1, 5)).images[:, 0].clone()


@pytest.fixture(scope="module")
def keywords() -> dict[str, dict[str, object]]:
    from refbfr_core.weights import load_network

    return {"textures": {"features": load_textures("cpu")}, "lpips-toy": {"network": load_network("perceptual")}}


@pytest.mark.parametrize("name", ["textures", "lpips-toy"])
def test_more_damage_is_a_larger_distance(name: str, faces: Tensor, keywords) -> None:
    def score(changed: Tensor) -> Tensor:
        return metrics.compute(name, changed, faces, **keywords[name])

    assert score(faces.clone()).abs().max() < 1e-6
    for change, levels in (
        (blurred, (0.8, 2.0, 5.0)), (noisy, (5.0, 20.0)), (checkered, (4.0, 16.0)), (oversharpened, (1.0, 4.0))
    ):  # fmt: skip
        means = [score(change(faces, level)) for level in levels]
        assert all((more > less).all() for less, more in zip(means, means[1:], strict=False)), change.__name__


@pytest.mark.parametrize("name", ["textures", "lpips-toy"])
def test_what_hardly_shows_counts_less_than_a_blur(name: str, faces: Tensor, keywords) -> None:
    """A shift by one pixel and a slight brightening cost more decibels than a blur of 1.2 pixels, but are less seen."""

    def score(changed: Tensor, metric: str = name, **options: object) -> float:
        return metrics.compute(metric, changed, faces, **options).mean().item()

    blur, shifted, bright = blurred(faces, 1.2), faces.roll(1, -1), (faces + 0.05).clamp(0, 1)
    for calm in (shifted, bright):
        assert score(calm, "psnr") < score(blur, "psnr")
        assert score(calm, **keywords[name]) < score(blur, **keywords[name])


@pytest.mark.parametrize("name", ["textures", "lpips-toy"])
def test_a_score_alone_is_that_in_a_batch_and_from_the_shipped_networks(name: str, faces: Tensor, keywords) -> None:
    damaged = blurred(faces, 2.0)
    together = metrics.compute(name, damaged, faces, **keywords[name])
    alone = metrics.compute(name, damaged[2:3], faces[2:3])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-4, atol=1e-5)
    assert metrics.unavailable(name) is None


def test_a_study_loads_the_shipped_networks_itself(faces: Tensor, keywords) -> None:
    """Not the embedder of the identity scores, which a caller may replace."""
    judge = FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=8).eval()
    scores = Scorer(("textures", "lpips-toy", "bias-blue"), judge)(blurred(faces, 2.0), faces)
    for name in ("textures", "lpips-toy"):
        expected = metrics.compute(name, blurred(faces, 2.0), faces, **keywords[name])
        assert [each[name] for each in scores] == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(scores) == 6 and all(abs(each["bias-blue"]) < 2 for each in scores)


def test_another_network_and_another_size(faces: Tensor) -> None:
    with pytest.raises(ImageContractError, match="128 x 128"):
        metrics.compute("textures", faces[..., :64, :64], faces[..., :64, :64])
    small = PerceptualFeatures((4, 4, 8, 8, 8), first_stride=1).eval()
    with pytest.raises(ImageContractError, match="at least 16 x 16"):
        metrics.compute("lpips-toy", pictures(side=8), pictures(side=8), network=small)
    assert metrics.compute("lpips-toy", pictures(seed=1), pictures(), network=small).shape == (3,)


def test_the_protocols_say_who_was_trained_against_what() -> None:
    assert "loss of both of LD-BFR's VQGANs" in metrics.describe("lpips-toy")
    assert "no training and no guidance" in metrics.describe("textures")
