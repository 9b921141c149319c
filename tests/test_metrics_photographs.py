"""The protocol code with real small networks on photographs gives what other tools gave when the test kit was made.

Detection and points are compared in tests/test_photos.py, the recogniser's twin in tests/test_onnx_photographs.py,
PSNR, SSIM and LPIPS with SqueezeNet in tests/test_metrics.py; here are the scores of the registry that rest on them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refbfr_core.faces.alignment import cut_crop, fit_similarity
from refbfr_core.images import read_image
from refbfr_core.metrics import compute
from refbfr_core.models.recognition import ARCFACE_POINTS_112
from refbfr_core.weights import load_onnx_recognition

SAME = ("target", "ref_00", "ref_01", "ref_02", "ref_03")
# The kit's crops went through OpenCV's warp and 8 bits, these through torch's; single cosines move by up to this.
COSINE = 0.02


@pytest.fixture(scope="module")
def kit(shared_dir: Path) -> Path:
    pytest.importorskip("insightface")
    return shared_dir / "faces"


@pytest.fixture(scope="module")
def expected(kit: Path) -> dict[str, Any]:
    return json.loads((kit / "expected" / "baseline.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def person(kit: Path) -> dict[str, Tensor]:
    folder = kit / "photos" / "identities" / "refldm"
    return {name: read_image(folder / f"{name}.png") for name in (*SAME, "lq")}


@pytest.fixture(scope="module")
def crops(kit: Path, person: dict[str, Tensor]) -> dict[str, Tensor]:
    """112-pixel crops whose five points lie where the recogniser was trained to see them."""
    from refbfr_core.faces.photos import PhotoAligner

    aligner = PhotoAligner(kit / "models" / "insightface")
    others = {file.stem: read_image(file) for file in sorted((kit / "photos" / "real_lq").glob("*.png"))}
    found = {}
    for name, picture in (person | others).items():
        points = aligner.find(picture)[0].points
        found[name] = cut_crop(picture, fit_similarity(points, ARCFACE_POINTS_112), 112)
    assert len(found) == 12
    return found


@pytest.fixture(scope="module")
def recogniser(kit: Path) -> torch.nn.Module:
    return load_onnx_recognition(kit / "models/insightface/models/kit/w_mobilefacenet128.onnx")


def cosines(crops: dict[str, Tensor], pairs: list[tuple[str, str]], recogniser: torch.nn.Module) -> np.ndarray:
    mine, truth = (torch.cat([crops[pair[side]] for pair in pairs]) for side in (0, 1))
    return compute("ids", mine, truth, embedder=recogniser).numpy()


def test_identity_of_the_same_person(
    crops: dict[str, Tensor], recogniser: torch.nn.Module, expected: dict[str, Any]
) -> None:
    same = cosines(crops, list(itertools.combinations(SAME, 2)), recogniser)
    assert len(same) == expected["same"]["n"] == 10
    assert same.mean() == pytest.approx(expected["same"]["mean"], abs=COSINE)
    assert same.min() == pytest.approx(expected["same"]["min"], abs=COSINE)
    to_references = cosines(crops, [("target", name) for name in SAME[1:]], recogniser)
    np.testing.assert_allclose(to_references, expected["target_to_references"], atol=COSINE)


def test_identity_of_different_people(
    crops: dict[str, Tensor], recogniser: torch.nn.Module, expected: dict[str, Any]
) -> None:
    """One person against six others. The kit does not list its 81 pairs, whose largest cosine is 0.20; of these 30,
    InsightFace's own code gives the largest 0.25 as well, so the level is what compares."""
    others = sorted(set(crops) - set(SAME) - {"lq"})
    different = cosines(crops, list(itertools.product(SAME, others)), recogniser)
    assert abs(different.mean() - expected["different"]["mean"]) < 0.1
    assert different.max() < expected["different"]["max"] + 0.06 < expected["same"]["min"] - 0.4


def test_identity_that_a_ruined_picture_keeps(
    crops: dict[str, Tensor], person: dict[str, Tensor], recogniser: torch.nn.Module, expected: dict[str, Any]
) -> None:
    kept = cosines(crops, [("lq", "target")], recogniser)[0]
    assert kept == pytest.approx(expected["lq_to_target_cosine"], abs=COSINE)
    angle = compute("deg", crops["lq"], crops["target"], embedder=recogniser).item()
    assert angle == pytest.approx(np.degrees(np.arccos(expected["lq_to_target_cosine"])), abs=1.5)
    # Without the alignment the recogniser sees other crops, and the number is another protocol's.
    unaligned = compute("ids", person["lq"], person["target"], embedder=recogniser).item()
    assert abs(unaligned - expected["lq_to_target_cosine"]) > 2 * COSINE


def test_niqe_of_a_photograph_and_its_ruin(
    kit: Path, person: dict[str, Tensor], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(kit / "models" / "torch_home"))
    scores = compute("niqe", torch.cat([person["lq"], person["target"]])).tolist()
    numbers = expected["refldm_lq_against_target"]
    assert scores == pytest.approx([numbers["niqe"], numbers["niqe_target"]], abs=2e-3)
    blue_first = compute("niqe", person["lq"].flip(1)).item()
    assert abs(blue_first - numbers["niqe"]) > 0.02


def test_lpips_with_squeezenet_notices_the_wrong_order_of_channels(
    kit: Path, person: dict[str, Tensor], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(kit / "models" / "torch_home"))
    with pytest.warns(UserWarning, match="not the file its name promises"):
        right = compute("lpips-squeeze", person["lq"], person["target"]).item()
        wrong = compute("lpips-squeeze", person["lq"].flip(1), person["target"].flip(1)).item()
    official = expected["refldm_lq_against_target"]["lpips_squeeze"]
    assert right == pytest.approx(official, abs=1e-3) and abs(wrong - official) > 5e-3
