"""Metrics: known values, protocols, and what happens when something is missing."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from refbfr_core import metrics
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.images import read_image
from refbfr_core.metrics import perceptual
from refbfr_core.models import FaceEmbedder


def _pictures(count: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def embedder() -> FaceEmbedder:
    return FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=8).eval()


# Known values --------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error() -> None:
    target = torch.full((2, 3, 16, 16), 0.5)
    restored = target + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert metrics.compute("psnr", restored, target).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_psnr_counts_every_channel_alike() -> None:
    target = torch.zeros(1, 3, 16, 16)
    restored = target.clone()
    restored[:, 1] = 0.3
    assert metrics.compute("psnr", restored, target).item() == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-4)


def test_ssim_of_constant_pictures_is_its_luminance_term() -> None:
    dark, bright = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert metrics.compute("ssim", dark, bright).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_against_its_definition() -> None:
    """Window by window, in float64, straight from the formula."""
    a, b = _pictures(1, 14, 1), _pictures(1, 14, 2) * 0.4 + 0.3
    offsets = torch.arange(11, dtype=torch.float64) - 5
    bell = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2
    values = []
    for channel in range(3):
        for top in range(4):
            for left in range(4):
                x, y = (picture[0, channel, top : top + 11, left : left + 11].double() for picture in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
                cov = (window * x * y).sum() - mx * my
                luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (vx + vy + 9e-4))
    assert metrics.compute("ssim", a, b).item() == pytest.approx(torch.stack(values).mean().item(), abs=2e-5)


def test_ssim_y_sees_luma_only() -> None:
    """Two colours of equal luma are the same picture to ssim-y and different pictures to ssim."""
    base = _pictures(1, 24) * 0.3 + 0.4
    shifted = base + torch.tensor([0.114, 0.0, -0.299]).view(1, 3, 1, 1)
    assert metrics.compute("ssim-y", shifted, base).item() > 0.98
    assert metrics.compute("ssim", shifted, base).item() < 0.95


def test_deg_and_ids_of_known_angles() -> None:
    """An embedder that returns chosen directions: 0, 60, 90 and 180 degrees."""
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0])
    directions = torch.stack([torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))], dim=1)

    def embed(crops: torch.Tensor) -> torch.Tensor:
        is_target = crops.mean(dim=(1, 2, 3)) < 0
        return torch.where(is_target[:, None], torch.tensor([1.0, 0.0]), 7.0 * directions)

    bright, dark = torch.full((4, 3, 32, 32), 0.9), torch.full((4, 3, 32, 32), 0.1)
    assert metrics.compute("deg", bright, dark, embedder=embed).tolist() == pytest.approx(angles.tolist(), abs=1e-3)
    assert metrics.compute("ids", bright, dark, embedder=embed).tolist() == pytest.approx([1, 0.5, 0, -1], abs=1e-5)


def test_ids_hands_the_refldm_crop_to_a_plain_function() -> None:
    """1/16 off each side, 112 px, RGB in [-1, 1]."""
    seen = []

    def embed(crops: torch.Tensor) -> torch.Tensor:
        seen.append(crops)
        return torch.ones(len(crops), 2)

    framed = torch.zeros(1, 3, 128, 128)
    framed[:, 0, 8:120, 8:120] = 1.0
    metrics.compute("ids", framed, framed, embedder=embed)
    assert seen[0].shape == (1, 3, 112, 112)
    assert torch.equal(seen[0][:, 0], torch.ones(1, 112, 112)) and seen[0][:, 1:].max() == -1


def test_lmd_of_a_known_shift() -> None:
    truth = torch.rand(2, 98, 2, generator=torch.Generator().manual_seed(0)) * 100
    truth[:, 60], truth[:, 72] = torch.tensor([30.0, 50.0]), torch.tensor([80.0, 50.0])
    moved = truth + torch.tensor([3.0, 4.0])
    pictures = _pictures(2, 128)

    def score(**keywords: object) -> list[float]:
        return metrics.compute("lmd", pictures, target_landmarks=truth, restored_landmarks=moved, **keywords).tolist()

    assert score() == pytest.approx([5.0, 5.0])
    assert score(normalise="frame512") == pytest.approx([20.0, 20.0])
    assert score(normalise="interocular") == pytest.approx([0.1, 0.1])


def test_lmd_with_a_detector() -> None:
    def brightest(images: torch.Tensor) -> torch.Tensor:
        flat = images.mean(1).flatten(1).argmax(1)
        return torch.stack([flat % images.shape[-1], flat // images.shape[-1]], dim=1)[:, None].float()

    restored, target = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    restored[..., 10, 12], target[..., 6, 9] = 1.0, 1.0
    assert metrics.compute("lmd", restored, target, detector=brightest).item() == pytest.approx(5.0)


# Properties every metric shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "best"), [("psnr", math.inf), ("ssim", 1.0), ("ssim-y", 1.0), ("ids", 1.0), ("deg", 0.0)]
)
def test_identical_pictures_get_the_best_score(name: str, best: float, embedder: FaceEmbedder) -> None:
    keywords = {"embedder": embedder} if name in ("ids", "deg") else {}
    pictures = _pictures()
    scores = metrics.compute(name, pictures, pictures.clone(), **keywords)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([best] * 3, abs=1e-6)
    low, high = metrics.REGISTRY[name].range
    assert best == (high if metrics.REGISTRY[name].direction == "higher" else low)


@pytest.mark.parametrize("name", ["psnr", "ssim", "ssim-y", "ids", "deg"])
def test_worse_pictures_score_worse_and_alone_as_in_a_batch(name: str, embedder: FaceEmbedder) -> None:
    keywords = {"embedder": embedder} if name in ("ids", "deg") else {}
    target = _pictures(5, 40)
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(9))
    slightly, badly = 0.9 * target + 0.1 * noise, 0.3 * target + 0.7 * noise
    better = metrics.compute(name, slightly, target, **keywords)
    worse = metrics.compute(name, badly, target, **keywords)
    gain = better - worse if metrics.REGISTRY[name].direction == "higher" else worse - better
    assert (gain > 0).all()
    alone = torch.cat([metrics.compute(name, slightly[i : i + 1], target[i : i + 1], **keywords) for i in range(5)])
    torch.testing.assert_close(alone, better, rtol=1e-4, atol=1e-5)


def test_scores_carry_no_gradient(embedder: FaceEmbedder) -> None:
    pictures = _pictures().requires_grad_()
    assert not metrics.compute("ids", pictures, _pictures(seed=1), embedder=embedder).requires_grad


def test_the_registry_says_what_a_table_needs() -> None:
    assert {"psnr", "ssim", "lpips", "ids", "deg", "lmd"} <= set(metrics.REGISTRY)
    for name, metric in metrics.REGISTRY.items():
        assert metric.name == name and metric.direction in ("higher", "lower", "zero")
        assert metric.range[0] < metric.range[1] and metric.protocol and metric.needs
        assert name in metrics.describe()
    with pytest.raises(TypeError):
        metrics.REGISTRY["mine"] = metrics.REGISTRY["psnr"]  # type: ignore[index]


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lpips'"):
        metrics.compute("lpisp", _pictures(), _pictures())
    with pytest.raises(UnknownNameError, match="Did you mean 'embedder'"):
        metrics.compute("ids", _pictures(), _pictures(), embeder=None)
    with pytest.raises(UnknownNameError, match="'interocular'"):
        metrics.compute("lmd", _pictures(), normalise="interoccular")


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(ImageContractError, match="no target"):
        metrics.compute("psnr", _pictures())


def test_a_target_of_another_size_is_refused() -> None:
    with pytest.raises(ImageContractError, match="one size"):
        metrics.compute("psnr", _pictures(3), _pictures(2))
    with pytest.raises(ImageContractError, match="one size"):
        metrics.compute("psnr", _pictures(3, 32), _pictures(3, 16))


@pytest.mark.parametrize("broken", [_pictures() * 255, _pictures() * 2 - 1, _pictures()[0], _pictures()[:0]])
def test_the_image_contract_holds_at_this_door(broken: torch.Tensor) -> None:
    with pytest.raises(ImageContractError, match="restored"):
        metrics.compute("psnr", broken, broken)
    with pytest.raises(ImageContractError, match="target"):
        metrics.compute("psnr", _pictures(), broken)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ImageContractError, match="11 x 11"):
        metrics.compute("ssim", _pictures(side=10), _pictures(side=10))


def test_an_embedder_in_training_mode_is_refused(embedder: FaceEmbedder) -> None:
    with pytest.raises(ConfigError, match="eval"):
        metrics.compute("ids", _pictures(), _pictures(), embedder=embedder.train())


def test_embedders_that_break_their_promise_are_refused() -> None:
    with pytest.raises(ConfigError, match="\\(3, D\\)"):
        metrics.compute("ids", _pictures(), _pictures(), embedder=lambda crops: crops)
    with pytest.raises(ConfigError, match="not a number.*\\[0, 1, 2\\]"):
        metrics.compute("deg", _pictures(), _pictures(), embedder=lambda crops: crops.mean((2, 3)) * float("nan"))


def test_the_judge_is_the_default_embedder(embedder: FaceEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, **keywords: object) -> FaceEmbedder:
        asked.append(name)
        return embedder

    monkeypatch.setattr("refbfr_core.weights.load_network", load, raising=False)
    a, b = _pictures(), _pictures(seed=1)
    assert torch.equal(metrics.compute("ids", a, b), metrics.compute("ids", a, b, embedder=embedder))
    assert asked == ["judge"]


def test_lmd_without_landmarks_says_what_to_fetch() -> None:
    with pytest.raises(ConfigError, match="alignment_WFLW_4HG"):
        metrics.compute("lmd", _pictures(), _pictures())
    with pytest.raises(ConfigError, match="restored_landmarks are missing"):
        metrics.compute("lmd", _pictures(), target_landmarks=torch.rand(3, 98, 2))
    with pytest.raises(ConfigError, match="\\(B, K, 2\\)"):
        metrics.compute(
            "lmd", _pictures(), target_landmarks=torch.rand(3, 98, 2), restored_landmarks=torch.rand(3, 68, 2)
        )
    assert "rendering.landmarks" in metrics.unavailable("lmd")


# LPIPS ---------------------------------------------------------------------------------------------------------------


def test_lpips_without_its_trunk_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="vgg16-397923af.pth.*Fetch it once"):
        metrics.compute("lpips", _pictures(), _pictures())
    assert "squeezenet1_1" in metrics.unavailable("lpips-squeeze")
    with pytest.raises(UnknownNameError, match="'squeeze'"):
        metrics.compute("lpips", _pictures(), _pictures(), net="sqeeze")


@pytest.mark.parametrize("content", ["empty", "noise", "other", "truncated"])
def test_lpips_refuses_a_damaged_trunk(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = perceptual.trunk_path("squeeze")
    path.parent.mkdir(parents=True)
    if content == "empty":
        path.touch()
    elif content == "noise":
        path.write_bytes(b"not a checkpoint" * 100)
    else:
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="fetch"):
        metrics.compute("lpips", _pictures(), _pictures(), net="squeeze")


def test_lpips_leaves_the_random_state_alone_and_warns_about_a_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a made-up trunk the whole path runs on every machine, and the file is not passed off as the official one."""
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = perceptual.trunk_path("squeeze")
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    a, b = _pictures(3, 40), _pictures(3, 40, seed=1)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="not the file its name promises"):
        network = perceptual.load_lpips("squeeze")
    assert torch.equal(torch.get_rng_state(), state)
    scores = metrics.compute("lpips", a, b, network=network)
    assert (scores > 0).all()
    assert metrics.compute("lpips-squeeze", a, a, network=network).tolist() == [0.0, 0.0, 0.0]
    with pytest.warns(UserWarning, match="not the file"):
        torch.testing.assert_close(metrics.compute("lpips", a, b, net="squeeze"), scores)
    with pytest.raises(ImageContractError, match="17 x 17"):
        metrics.compute("lpips", _pictures(1, 16), _pictures(1, 16), network=network)
    with pytest.raises(ConfigError, match="training mode"):
        metrics.compute("lpips", a, b, network=network.train())


def test_scores_of_a_real_photograph(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The degraded photograph of the test kit against its target, as measured with other tools when it was made."""
    expected = json.loads((shared_dir / "faces" / "expected" / "baseline.json").read_text())["refldm_lq_against_target"]
    folder = shared_dir / "faces" / "photos" / "identities" / "refldm"
    lq, target = read_image(folder / "lq.png"), read_image(folder / "target.png")
    monkeypatch.setenv("TORCH_HOME", str(shared_dir / "faces" / "models" / "torch_home"))
    assert metrics.compute("psnr", lq, target).item() == pytest.approx(expected["psnr"], abs=1e-3)
    assert metrics.compute("ssim-y", lq, target).item() == pytest.approx(expected["ssim"], abs=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not the file its name promises")
        assert metrics.compute("lpips", lq, target, net="squeeze").item() == pytest.approx(
            expected["lpips_squeeze"], abs=1e-3
        )
