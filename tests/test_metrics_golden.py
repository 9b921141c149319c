"""Golden values on committed drawn faces, each from a route of its own, and mistakes that must not go unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import golden_faces as golden
import pytest
import torch
from torch import Tensor

from refbfr_core import metrics
from refbfr_core.images import from_uint8, read_image

VALUES: dict[str, list[float]] = json.loads((golden.FOLDER / "values.json").read_text(encoding="utf-8"))
PAIRED = [name for name in VALUES if name in metrics.REGISTRY]


@pytest.fixture(scope="module")
def faces() -> tuple[Tensor, Tensor]:
    """Ruined and true, through the package's own reader of files."""
    folder = golden.FOLDER
    return tuple(
        torch.cat([read_image(folder / f"{name}-{index}.png") for index in range(golden.COUNT)])
        for name in ("ruined", "truth")
    )


def scores(name: str, ruined: Tensor, truth: Tensor) -> list[float]:
    keywords: dict[str, Tensor] = {}
    if metrics.REGISTRY[name].mask_required:
        keywords["mask"] = torch.from_numpy(golden.read("mask"))[:, None].float() / 255
    if name == "lmd":
        points = torch.from_numpy(golden.landmarks())
        keywords = {"target_landmarks": points, "restored_landmarks": points.roll(-1, dims=0)}
    return metrics.compute(name, ruined, truth, **keywords).tolist()


def off(name: str, found: list[float]) -> float:
    """Largest difference to the golden values, in tolerances."""
    return max(abs(a - b) for a, b in zip(found, VALUES[name], strict=True)) / golden.TOLERANCES[name]


def test_every_score_that_needs_no_download_has_a_golden_value() -> None:
    elsewhere = {"lpips", "lpips-alex", "lpips-squeeze", "flpips", "niqe", "musiq"}
    assert set(PAIRED) == set(metrics.REGISTRY) - elsewhere
    assert set(VALUES) - set(PAIRED) == {name for name in metrics.SET_REGISTRY if name.endswith("-toy")}
    assert set(golden.TOLERANCES) == set(VALUES)


@pytest.mark.parametrize("name", PAIRED)
def test_scores_have_their_golden_values(name: str, faces: tuple[Tensor, Tensor]) -> None:
    assert off(name, scores(name, *faces)) <= 1


@pytest.mark.parametrize("name", ["fid-toy", "kid-toy"])
def test_distances_of_sets_have_their_golden_values(name: str, faces: tuple[Tensor, Tensor]) -> None:
    found = metrics.set_distance(name, *faces, "golden truths", allow_small=True, subsets=1, subset_size=golden.COUNT)
    assert found.value == pytest.approx(VALUES[name][0], rel=golden.TOLERANCES[name])
    assert abs(VALUES[name][0]) > 0.5


def test_golden_values_are_those_of_their_routes() -> None:
    """What is committed is what tests/golden_faces.py computes; an altered picture or network shows here."""
    again = golden.values()
    for name, numbers in VALUES.items():
        assert again[name] == pytest.approx(numbers, abs=golden.TOLERANCES[name] / 2, rel=1e-6), name


def test_the_pictures_are_read_as_they_were_written(faces: tuple[Tensor, Tensor]) -> None:
    for name, pictures in zip(("ruined", "truth"), faces, strict=True):
        assert torch.equal(pictures, from_uint8(golden.read(name)))


# Mistakes that evaluation scripts make -------------------------------------------------------------------------------


def _halved(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def wrong(*pictures: Tensor, sigma: float, **keywords: object) -> tuple[Tensor, Tensor]:
        return function(*pictures, sigma=0.5 * sigma, **keywords)

    return wrong


SEES_COLOUR = [
    "psnr-y", "ssim-y", "ids", "deg", "deg-over-1", "niqe-toy", "detail", "lpips-toy", "flpips-toy", "textures",
    "bias-red", "bias-blue",
]  # fmt: skip


@pytest.mark.parametrize("name", SEES_COLOUR)
def test_blue_first_is_noticed(name: str, faces: tuple[Tensor, Tensor]) -> None:
    assert off(name, scores(name, *(pictures.flip(1) for pictures in faces))) > 5


def test_blue_first_cannot_be_noticed_by_scores_that_treat_channels_alike(faces: tuple[Tensor, Tensor]) -> None:
    for name in set(PAIRED) - set(SEES_COLOUR) - {"lmd"}:
        assert off(name, scores(name, *(pictures.flip(1) for pictures in faces))) <= 1, name


@pytest.mark.parametrize(
    ("name", "module"),
    [("lpips-toy", "features"), ("flpips-toy", "features"), ("ids", "identity"), ("deg", "identity")],
)
def test_the_wrong_range_is_noticed(
    name: str, module: str, faces: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that are given [0, 1] where they were trained on [-1, 1]."""
    monkeypatch.setattr(f"refbfr_core.metrics.{module}.to_network", lambda images: images)
    assert off(name, scores(name, *faces)) > 5


@pytest.mark.parametrize("name", ["ssim", "ssim-y"])
def test_another_window_is_noticed(name: str, faces: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    window = "structural_similarity_index_measure"
    monkeypatch.setattr(functional, window, _halved(getattr(functional, window)))
    assert off(name, scores(name, *faces)) > 5


@pytest.mark.parametrize("name", ["psnr-y", "ssim-y"])
def test_another_luma_is_noticed(name: str, faces: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refbfr_core.metrics.pixels._LUMA", (65.481 / 255, 128.553 / 255, 24.966 / 255))
    found = scores(name, *faces)
    assert off(name, found) > 5
    if name == "psnr-y":  # MATLAB's luma, as the registry says
        gains = [a - b for a, b in zip(found, VALUES[name], strict=True)]
        assert gains == pytest.approx([20 * math.log10(255 / 219)] * golden.COUNT, abs=0.01)


def test_a_mask_left_out_or_put_on_one_picture_is_noticed(faces: tuple[Tensor, Tensor]) -> None:
    ruined, truth = faces
    mask = (torch.from_numpy(golden.read("mask"))[:, None].float() / 255 >= 0.5).float()
    assert off("flpips-toy", scores("lpips-toy", *faces)) > 5
    assert off("flpips-toy", scores("lpips-toy", ruined * mask, truth)) > 5
    assert off("flpips-toy", scores("lpips-toy", ruined * mask, truth * mask)) <= 1
