"""The real recogniser of the test kit as a differentiable twin, on photographs: detection, alignment, identity."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import parity_arcface as parity
import pytest
import torch
import torch.nn.functional as F

from refbfr_core.faces.alignment import cut_crop, fit_similarity, template_points
from refbfr_core.images import read_image, to_network
from refbfr_core.metrics import compute
from refbfr_core.models import onnx_twin
from refbfr_core.models.recognition import ALIGNMENTS, ARCFACE_POINTS_112, align_faces
from refbfr_core.weights import load_onnx_recognition
from refbfr_core.weights.onnx_recognition import TOLERANCE, compare_with_runtime


@pytest.fixture(scope="module")
def kit(shared_dir) -> Path:
    pytest.importorskip("insightface")
    return shared_dir / "faces"


@pytest.fixture(scope="module")
def kit_file(kit) -> Path:
    return kit / "models/insightface/models/kit/w_mobilefacenet128.onnx"


@pytest.fixture(scope="module")
def mobile(kit_file) -> onnx_twin.OnnxTwin:
    return load_onnx_recognition(kit_file)


@pytest.fixture(scope="module")
def people(kit):
    """Pictures, five points found in them, InsightFace's own vectors, and who they show: 5 of one person, 15 others."""
    from refbfr_core.faces.photos import PhotoAligner

    aligner = PhotoAligner(kit / "models/insightface")
    one = kit / "photos/identities/refldm"
    files = [one / f"{name}.png" for name in ("target", *(f"ref_{i:02d}" for i in range(4)))]
    files += sorted((kit / "photos/real_lq").glob("*")) + sorted((kit / "photos/whole").glob("*"))
    found = []
    for file in files:
        picture = read_image(file)
        # 0.8, as when the kit's own numbers were measured.
        for number, face in enumerate(face for face in aligner.find(picture) if face.score >= 0.8):
            who = "refldm" if file.parent == one else f"{file.stem} {number}"
            found.append((picture, face.points, aligner.embed(picture, face.points), who))
    assert len(found) == 20
    return found


def scores(vectors: torch.Tensor, who: list[str]) -> tuple[list[float], list[float]]:
    """Cosines of all pairs of the one person, and of that person with others."""
    cosines = vectors @ vectors.T
    same = [float(cosines[i, j]) for i, j in itertools.combinations(range(5), 2)]
    assert who[:5] == ["refldm"] * 5
    return same, cosines[:5, 5:].flatten().tolist()


def test_mobilefacenet_equals_onnx_runtime(kit_file, mobile):
    assert mobile.pixels  # ImageNet's scaling is part of this graph
    assert compare_with_runtime(mobile, kit_file) < 1e-5 < TOLERANCE
    shapes = [tuple(part.shape[1:]) for part in mobile.guidance_features(torch.zeros(1, 3, 256, 256))]
    assert shapes == [(64, 56, 56), (64, 28, 28), (128, 14, 14), (128,)]


def test_the_same_crops_give_insightfaces_vectors(mobile, people):
    import cv2
    from insightface.utils.face_align import arcface_dst

    np.testing.assert_allclose(ARCFACE_POINTS_112, arcface_dst, atol=1e-5)
    for picture, points, vector, _ in people[::4]:
        pixels = np.ascontiguousarray((picture[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        crop = cv2.warpAffine(pixels, fit_similarity(points, arcface_dst), (112, 112), borderValue=0.0)
        with torch.no_grad():
            ours = mobile.embed(to_network(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255))[0]
        torch.testing.assert_close(ours, vector, atol=1e-5, rtol=0)


@torch.no_grad()
def test_same_and_different_people_on_photographs(kit, mobile, people):
    baseline = json.loads((kit / "expected/baseline.json").read_text())
    who = [each[3] for each in people]
    crops = [cut_crop(picture, fit_similarity(points, ARCFACE_POINTS_112), 112) for picture, points, _, _ in people]
    same, different = scores(mobile.embed(to_network(torch.cat(crops))), who)
    assert np.mean(same) == pytest.approx(baseline["same"]["mean"], abs=0.02)
    assert min(same) == pytest.approx(baseline["same"]["min"], abs=0.02)
    assert same[:4] == pytest.approx(baseline["target_to_references"], abs=0.03)
    assert abs(np.mean(different) - baseline["different"]["mean"]) < 0.05
    assert max(different) < baseline["different"]["max"] + 0.05 < min(same) - 0.4


@torch.no_grad()
def test_the_fixed_warp_sees_nearly_what_a_detector_would(mobile, people):
    # Pictures framed like FFHQ, as restoration has them; no point is looked for.
    framed = [cut_crop(picture, fit_similarity(points, template_points(512)), 512) for picture, points, _, _ in people]
    detected = torch.stack([vector for _, _, vector, _ in people])
    agreement = {}
    for alignment in ALIGNMENTS:
        vectors = F.normalize(mobile(align_faces(to_network(torch.cat(framed)), alignment)))
        same, different = scores(vectors, [each[3] for each in people])
        assert min(same) > max(different) + 0.1, alignment
        agreement[alignment] = float((vectors * detected).sum(1).mean())
    assert agreement["ffhq"] > 0.98
    assert agreement["ffhq"] > agreement["crop"] > agreement["resize"]


def test_gradients_agree_with_finite_differences(kit_file, people):
    twin = load_onnx_recognition(kit_file).double()
    first, second = (to_network(people[index][0]).double() for index in (0, 6))
    with torch.no_grad():
        others = twin.guidance_features(second)
    first.requires_grad_()
    direction = torch.randn(first.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    distances = parity.arc_distances(twin.guidance_features(first), others)
    for level, distance in zip(("high", "low"), distances, strict=True):
        (gradient,) = torch.autograd.grad(distance, first, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs() > 0).float().mean() > 0.99
        with torch.no_grad():
            step = 1e-6 * direction
            ends = [parity.arc_distances(twin.guidance_features(first + sign * step), others) for sign in (1, -1)]
        slope = (ends[0][level == "low"] - ends[1][level == "low"]) / 2e-6
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_metrics_take_a_twin_for_photographs(kit_file, people):
    twin = load_onnx_recognition(kit_file, alignment="ffhq")
    pictures = torch.cat([people[index][0] for index in (0, 1, 6)])
    target = people[0][0].expand(3, -1, -1, -1)
    similarity = compute("ids", pictures, target, embedder=twin)
    angles = compute("deg", pictures, target, embedder=twin)
    assert similarity[0] == pytest.approx(1, abs=1e-6)
    assert similarity[1] > similarity[2] + 0.4
    torch.testing.assert_close(torch.rad2deg(similarity[1:].acos()), angles[1:], atol=1e-3, rtol=0)
