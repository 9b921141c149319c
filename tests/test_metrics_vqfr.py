"""Deg and LMD as VQFR's scripts compute them."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refbfr_core import metrics
from refbfr_core.errors import ConfigError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import to_network
from refbfr_core.metrics.vqfr import AWING_FILE, AWingDetector, find_peaks


@pytest.fixture(scope="module")
def drawn():
    faces = ToyFaces(128)
    people = faces.identities(2, 3, "test")
    rendering = faces.render(people, faces.views(people, 1, 4))
    return rendering.images[:, 0], rendering.landmarks[:, 0]


# ---- Deg


def test_vqfr_leaves_out_almost_identical_pairs():
    angles = torch.tensor([0.0, 0.99, 1.0, 39.0, 80.0])
    every, vqfr = metrics.mean_deg(angles), metrics.mean_deg(angles, "vqfr")
    assert (every.value, every.counted, every.left_out) == (pytest.approx(24.198), 5, 0)
    assert (vqfr.value, vqfr.counted, vqfr.left_out) == (pytest.approx(40.0), 3, 2)
    with pytest.raises(ConfigError, match="none of 2 pairs"):
        metrics.mean_deg(angles[:2], "vqfr")
    with pytest.raises(ConfigError, match="finite degrees"):
        metrics.mean_deg(torch.tensor([1.0, float("nan")]))
    with pytest.raises(UnknownNameError, match="Did you mean 'vqfr'"):
        metrics.mean_deg(angles, "vqgr")
    assert "vqfr" in metrics.describe("deg") and set(metrics.DEG_PROTOCOLS) == {"all", "vqfr"}


def test_the_grey_door_is_opencvs(drawn, tmp_path):
    images, _ = drawn
    seen = []

    def network(grey: Tensor) -> Tensor:
        seen.append(grey)
        return grey.flatten(1)[:, ::64]

    metrics.compute("deg", images, images.flip(0), embedder=metrics.GreyEmbedder(network))
    pixels = (images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    large = cv2.resize(pixels, (300, 300), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "face.png"), large[..., ::-1])
    read = cv2.resize(cv2.imread(str(tmp_path / "face.png"), 0), (128, 128), interpolation=cv2.INTER_LINEAR)
    expected = (read.astype(np.float32) - 127.5) / 127.5
    door = metrics.GreyEmbedder(network)
    found = door.preprocess(to_network(torch.from_numpy(large).permute(2, 0, 1)[None].float() / 255))
    assert found.shape == (1, 1, 128, 128)
    # Reading PNG straight to grey cuts the luma off instead of rounding it: one level before resizing, so two after.
    assert np.abs(found[0, 0].numpy() - expected).max() <= 2.01 / 127.5
    blue_first = door.preprocess(to_network(torch.from_numpy(large[..., ::-1].copy()).permute(2, 0, 1)[None] / 255))
    assert np.abs(blue_first[0, 0].numpy() - expected).max() > 10 / 127.5
    assert seen[0].shape == (2, 1, 128, 128)
    with pytest.raises(ConfigError, match="training mode"):
        metrics.GreyEmbedder(nn.Conv2d(1, 1, 1))


# ---- LMD


def maps_at(points: Tensor) -> Tensor:
    """Heat maps (1, K, 64, 64) with a soft peak at each of the points, in cells from the outer edge of the first."""
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    squared = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return torch.exp(-squared / 4)[None].float()


class Drawer(nn.Module):
    """Stands where the landmark network stands: heat maps at points that it is told in pixels of 128."""

    def __init__(self, landmarks: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.waiting = [each / 2 for each in landmarks]
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[list[Tensor], list]:
        self.given.append(x)
        maps = maps_at(self.waiting.pop(0))
        return [torch.zeros(1, 99, 64, 64), torch.cat([maps, 9 * torch.ones(1, 1, 64, 64)], 1)], []


def test_landmarks_of_drawn_faces_come_back_through_the_maps(drawn):
    images, landmarks = drawn
    landmarks = landmarks.double().clamp(2, 126)
    network = Drawer(landmarks)
    found = AWingDetector(network)(images)
    # A quarter of a cell of 2 pixels is what the decoding can tell.
    assert float((found - landmarks).abs().max()) <= 0.5 + 1e-6
    assert network.given[0].shape == (1, 3, 256, 256)
    assert 0 <= float(network.given[0].min()) < float(network.given[0].max()) <= 1
    moved = Drawer(torch.cat([landmarks, landmarks + torch.tensor([6.0, 8.0])]).clamp(0, 128))
    detector = AWingDetector(moved)
    score = metrics.compute("lmd", images, images, detector=detector)
    # Restored first, so that its points are the unmoved ones; the edges of the frame stop a few points.
    assert score.tolist() == pytest.approx([10.0, 10.0], abs=0.6)


def test_peaks_are_facexlibs_inside_the_frame(monkeypatch):
    awing = pytest.importorskip("facexlib.alignment.awing_arch")
    # Its decoding names a type that NumPy dropped; give it back for the comparison.
    monkeypatch.setattr(np, "float", float, raising=False)
    maps = maps_at(3 + 58 * torch.rand(98, 2, generator=torch.Generator().manual_seed(0)))
    maps = torch.cat([maps, maps + 0.1 * torch.rand(1, 98, 64, 64, generator=torch.Generator().manual_seed(1))])
    assert torch.equal(find_peaks(maps), torch.from_numpy(awing.calculate_points(maps.numpy())))


def test_peaks_on_the_frame_stay_on_it():
    corners = maps_at(torch.tensor([[0.5, 0.5], [63.5, 63.5], [0.5, 30.7], [30.2, 63.5]]))
    expected = torch.tensor([[0.5, 0.5], [63.5, 63.5], [0.5, 30.75], [30.25, 63.5]]).double()
    assert torch.equal(find_peaks(corners)[0], expected)


@pytest.fixture(scope="module")
def awing_state() -> dict[str, Tensor]:
    alignment = pytest.importorskip("facexlib.alignment")
    torch.manual_seed(0)
    return alignment.FAN(num_modules=4, num_landmarks=98, device="cpu").state_dict()


def test_the_network_loads_from_its_file(awing_state, tmp_path, drawn, monkeypatch):
    from facexlib.alignment import awing_arch

    torch.save({"state_dict": awing_state}, tmp_path / AWING_FILE)
    detector = metrics.load_awing(tmp_path / AWING_FILE)
    images = drawn[0][:1]
    found = detector(images)
    assert found.shape == (1, 98, 2)
    # facexlib's way to its maps, with this package's peaks: its own decoding stops at points on the frame.
    monkeypatch.setattr(awing_arch, "calculate_points", lambda maps: find_peaks(torch.from_numpy(maps)).numpy())
    bgr = np.ascontiguousarray((images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)[..., ::-1])
    theirs = detector.network.get_landmarks(bgr)
    assert isinstance(detector.network, awing_arch.FAN) and not detector.network.training
    assert len(np.unique(theirs, axis=0)) > 10
    np.testing.assert_allclose(found[0].numpy(), theirs, atol=1e-6)


def test_files_that_are_not_the_network_are_refused(awing_state, tmp_path, monkeypatch):
    pytest.importorskip("facexlib")
    with pytest.raises(WeightsError, match=rf"not at .*{AWING_FILE}\. Fetch"):
        metrics.load_awing(tmp_path / AWING_FILE)
    file = tmp_path / AWING_FILE
    for content, said in (
        ({"state_dict": {"conv1.conv.weight": torch.zeros(1)}}, "does not hold the 98-point AWing network"),
        ({"weights": 1}, "no 'state_dict'"),
        (Path("a pickled object"), "cannot be read"),
    ):
        torch.save(content, file)
        with pytest.raises(WeightsError, match=said):
            metrics.load_awing(file)
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be read"):
        metrics.load_awing(file)
    monkeypatch.setitem(sys.modules, "facexlib", None)
    with pytest.raises(MissingExtraError, match="facexlib.*metrics"):
        metrics.load_awing(file)
