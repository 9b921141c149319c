"""Photographs: the geometry of crops (everywhere) and the networks of the shared test kit (where it is present)."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from refbfr_core.errors import ImageContractError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.faces import alignment, photos
from refbfr_core.images import read_image


def _similarity(scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def _smooth_picture(height: int, width: int) -> torch.Tensor:
    """Waves long enough that resampling them there and back loses next to nothing."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = ((1, 0.5, 0), (-0.7, 1.2, 1), (0.3, -1, 2))
    channels = [0.5 + 0.4 * torch.sin(6.3 * (a * x + b * y) + c) for a, b, c in waves]
    return torch.stack(channels)[None].float()


# ---- geometry


@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0.0), (0.25, 0.4), (3.7, -2.9)])
def test_fit_recovers_a_similarity_and_its_inverse_leads_back(scale, angle):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 500, (5, 2))
    truth = _similarity(scale, angle, (-31.0, 12.5))
    matrix = alignment.fit_similarity(points, alignment.move_points(truth, points))
    np.testing.assert_allclose(matrix, truth, atol=1e-9)
    back = alignment.move_points(alignment.invert(matrix), alignment.move_points(matrix, points))
    np.testing.assert_allclose(back, points, atol=1e-8)
    np.testing.assert_allclose(alignment.chain(alignment.invert(matrix), matrix), [[1, 0, 0], [0, 1, 0]], atol=1e-8)
    assert alignment.crop_scale(matrix) == pytest.approx(scale)


def test_fit_is_umeyamas_solution_on_noisy_points():
    rng = np.random.default_rng(1)
    source = rng.uniform(0, 100, (5, 2))
    target = alignment.move_points(_similarity(1.7, 0.6, (4, 9)), source) + rng.normal(0, 3, (5, 2))
    # Umeyama (1991): the same least squares through a singular value decomposition.
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    linear = np.trace(np.diag(d) @ sign) / x.var(0).sum() * (u @ sign @ vt)
    expected = np.column_stack([linear, target.mean(0) - linear @ source.mean(0)])
    np.testing.assert_allclose(alignment.fit_similarity(source, target), expected, atol=1e-9)


def test_fit_never_mirrors():
    source = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.2]])
    matrix = alignment.fit_similarity(source, source * (-1, 1))
    assert np.linalg.det(matrix[:, :2]) >= 0


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (np.zeros((5, 2)), np.ones((5, 2)), "coincide"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), "finite"),
        (np.ones((5, 3)), np.ones((5, 3)), "(N, 2)"),
        (np.eye(2), np.ones((3, 2)), "same N"),
    ],
)
def test_fit_refuses_what_has_no_solution(source, target, said):
    with pytest.raises(ImageContractError, match=said.replace("(", r"\(").replace(")", r"\)")):
        alignment.fit_similarity(source, target)


def test_template_keeps_its_place_at_every_size():
    large, small = alignment.template_points(512), alignment.template_points(128)
    np.testing.assert_allclose(alignment.move_points(alignment.resize_matrix(512, 128), large), small, atol=1e-12)
    mirrored = 511 - large[[1, 0, 2, 4, 3], 0]
    np.testing.assert_allclose(mirrored, large[:, 0], atol=1e-12)
    with pytest.raises(ImageContractError):
        alignment.template_points(0)


@pytest.mark.parametrize(("resolution", "scale"), [(128, 0.5), (128, 1.0), (256, 1.6), (96, 0.21)])
def test_cut_and_paste_back_round_trip(resolution, scale):
    photo = _smooth_picture(420, 640)
    centre = np.array([300.0, 200.0])
    matrix = _similarity(scale, 0.3, (0, 0))
    matrix[:, 2] = (resolution - 1) / 2 - matrix[:, :2] @ centre
    crop = alignment.cut_crop(photo, matrix, resolution)
    assert crop.shape == (1, 3, resolution, resolution)
    assert crop.dtype == torch.float32
    pasted = alignment.paste_back(photo, crop, matrix)
    assert (pasted - photo).abs().max() < 0.02
    inverted = alignment.paste_back(photo, 1 - crop, matrix)
    assert (inverted - photo).abs().amax() > 0.4, "the crop has to arrive in the photo"
    y, x = np.mgrid[:420, :640]
    inside = alignment.move_points(matrix, np.stack([x.ravel(), y.ravel()], 1))
    outside = ((inside < -1.5) | (inside > resolution + 0.5)).any(axis=1).reshape(420, 640)
    assert outside.any()
    assert torch.equal(inverted[0, :, torch.from_numpy(outside)], photo[0, :, torch.from_numpy(outside)])


def test_cut_crop_puts_pixels_where_the_matrix_says():
    photo = torch.zeros(1, 3, 60, 80)
    photo[0, :, 20, 30] = 1.0
    matrix = np.array([[1.0, 0, -22.0], [0, 1.0, -15.0]])
    crop = alignment.cut_crop(photo, matrix, 16)
    assert crop[0, 0].argmax().item() == (20 - 15) * 16 + (30 - 22)
    assert crop.sum().item() == pytest.approx(3.0, abs=1e-3)


def test_shrinking_averages_instead_of_aliasing():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64).contiguous()
    crop = alignment.cut_crop(checkers, alignment.resize_matrix(64, 16), 16)
    assert (crop - 0.5).abs().max() < 0.1
    pasted = alignment.paste_back(torch.full((1, 3, 16, 16), 0.5), checkers, alignment.resize_matrix(16, 64))
    assert (pasted - 0.5).abs().max() < 0.1


def test_an_aligned_crop_is_only_resized():
    picture = _smooth_picture(96, 96)
    kept = photos.keep_crop(picture, 96)
    assert torch.equal(kept.image, picture)
    np.testing.assert_array_equal(kept.matrix, [[1, 0, 0], [0, 1, 0]])
    assert kept.points is None
    assert photos.keep_crop(picture, 48).image.shape == (1, 3, 48, 48)
    assert photos.keep_crop(picture, 200).image.shape == (1, 3, 200, 200)
    with pytest.raises(ImageContractError, match="80x60"):
        photos.keep_crop(_smooth_picture(60, 80), 64)


def test_geometry_refuses_batches_and_wrong_feathers():
    with pytest.raises(ImageContractError, match="one picture"):
        alignment.cut_crop(torch.zeros(2, 3, 8, 8), alignment.resize_matrix(8, 8), 8)
    with pytest.raises(ImageContractError, match="feather"):
        alignment.paste_back(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), alignment.resize_matrix(8, 8), feather=0)


# ---- packs


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _fake_pack(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for file in files or ("det.onnx",):
        (folder / file).write_bytes(b"not a network")
    return folder


def test_missing_pack_says_what_to_fetch_and_touches_nothing(tmp_path, no_network):
    with pytest.raises(WeightsError) as caught:
        photos.PhotoAligner(tmp_path / "nowhere")
    said = str(caught.value)
    for word in ("nowhere", "models", "buffalo_l", photos.ROOT_VARIABLE, "--models", "non-commercial"):
        assert word in said
    assert not any(tmp_path.iterdir())


def test_root_comes_from_the_argument_then_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(photos.ROOT_VARIABLE, raising=False)
    assert photos.models_root().name == ".insightface"
    monkeypatch.setenv(photos.ROOT_VARIABLE, str(tmp_path / "env"))
    assert photos.models_root() == tmp_path / "env"
    assert photos.models_root(tmp_path) == tmp_path


def test_packs_are_found_under_a_root_a_models_folder_or_as_themselves(tmp_path):
    one = _fake_pack(tmp_path / "models" / "one")
    _fake_pack(tmp_path / "models" / "nested" / "nested")
    (tmp_path / "models" / "empty").mkdir()
    assert set(photos.find_packs(tmp_path)) == {"one", "nested"}
    assert set(photos.find_packs(tmp_path / "models")) >= {"one"}
    assert photos.choose_pack(one) == one
    with pytest.raises(WeightsError, match="several"):
        photos.choose_pack(tmp_path)
    with pytest.raises(UnknownNameError, match="'one'"):
        photos.choose_pack(tmp_path, "onee")
    _fake_pack(tmp_path / "models" / "buffalo_l")
    assert photos.choose_pack(tmp_path).name == "buffalo_l"


def test_damaged_pack_is_reported_by_file(tmp_path, no_network):
    pytest.importorskip("insightface")
    _fake_pack(tmp_path / "models" / "broken", "det_10g.onnx")
    with pytest.raises(WeightsError, match=r"det_10g\.onnx cannot be read"):
        photos.PhotoAligner(tmp_path)


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    _fake_pack(tmp_path / "models" / "pack")
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(MissingExtraError, match="photos"):
        photos.PhotoAligner(tmp_path)


# ---- with the kit's networks


@pytest.fixture(scope="module")
def kit(shared_dir) -> Path:
    pytest.importorskip("insightface")
    return shared_dir / "faces"


@pytest.fixture(scope="module")
def aligner(kit) -> photos.PhotoAligner:
    return photos.PhotoAligner(kit / "models" / "insightface")


def test_kit_pack_is_complete_and_offline(kit, no_network):
    aligner = photos.PhotoAligner(kit / "models" / "insightface")
    assert aligner.has_identity
    assert "kit" in repr(aligner)


def test_a_pack_without_a_detector_or_a_recogniser_is_refused_where_it_matters(kit, tmp_path):
    pack = kit / "models" / "insightface" / "models" / "kit"
    for task, file in (("rec", "w_mobilefacenet128.onnx"), ("det", "det_retinaface_mnet025.onnx")):
        (tmp_path / task).mkdir()
        shutil.copy(pack / file, tmp_path / task)
    with pytest.raises(WeightsError, match="no face detector"):
        photos.PhotoAligner(tmp_path / "rec")
    only_detector = photos.PhotoAligner(tmp_path / "det")
    assert not only_detector.has_identity
    with pytest.raises(WeightsError, match="no recognition"):
        only_detector.embed(torch.zeros(1, 3, 64, 64))


def test_points_agree_with_the_recorded_ones(kit, aligner):
    with (kit / "expected" / "faces5.csv").open() as stream:
        rows = list(csv.reader(stream))[1:]
    assert rows
    for path, *numbers in rows:
        score, *rest = map(float, numbers)
        face = aligner.find(read_image(kit / path))[0]
        np.testing.assert_allclose(face.box, rest[:4], atol=1.0, err_msg=path)
        np.testing.assert_allclose(face.points.ravel(), rest[4:], atol=0.5, err_msg=path)
        assert face.score == pytest.approx(score, abs=0.01)


def test_alignment_lands_on_the_template_and_leaves_ffhq_crops_nearly_alone(kit, aligner):
    image = read_image(kit / "photos/identities/refldm/target.png")
    aligned = aligner.align(image, 256)
    assert aligned.image.shape == (1, 3, 256, 256)
    again = aligner.find(aligned.image)[0]
    # One similarity cannot fit everybody's face: the mean over the points lands, single points keep the person's shape.
    assert np.abs(again.points - alignment.template_points(256)).mean() < 5
    np.testing.assert_allclose(aligned.matrix, alignment.resize_matrix(512, 256), atol=8, rtol=0)
    assert alignment.crop_scale(aligned.matrix) == pytest.approx(0.5, rel=0.08)
    moved = alignment.move_points(aligned.matrix, aligned.points)
    assert np.abs(moved - again.points).max() < 3


def test_same_person_and_different_people_score_as_recorded(kit, aligner):
    baseline = json.loads((kit / "expected" / "baseline.json").read_text())
    folder = kit / "photos" / "identities" / "refldm"
    names = ("target", "lq", *(f"ref_{i:02d}" for i in range(4)))
    people = {name: read_image(folder / f"{name}.png") for name in names}
    vectors = {name: aligner.embed(image) for name, image in people.items()}
    assert vectors["target"].shape == (128,)
    assert vectors["target"].norm().item() == pytest.approx(1, abs=1e-5)
    to_references = [float(vectors["target"] @ vectors[f"ref_{i:02d}"]) for i in range(4)]
    np.testing.assert_allclose(to_references, baseline["target_to_references"], atol=0.01)
    assert float(vectors["lq"] @ vectors["target"]) == pytest.approx(baseline["lq_to_target_cosine"], abs=0.01)
    others = [aligner.embed(read_image(path)) for path in sorted((kit / "photos" / "real_lq").glob("*.png"))[:4]]
    different = [float(vectors["target"] @ other) for other in others]
    assert max(different) < min(to_references) - 0.2
    given = aligner.embed(people["lq"], points=aligner.find(people["target"])[0].points)
    assert not torch.equal(given, vectors["lq"])


def test_several_faces_warn_and_are_listed(kit, aligner):
    photo = read_image(kit / "photos/whole/codeformer_02.png")
    with pytest.warns(photos.SeveralFacesWarning, match="4 faces found, took number 0"):
        aligned = aligner.align(photo, 128)
    assert len(aligned.faces) == 4
    assert aligned.faces[0].area == max(face.area for face in aligned.faces)
    with pytest.warns(photos.SeveralFacesWarning):
        central = aligner.align(photo, 128, choose="central")
    offsets = [abs((face.box[0] + face.box[2]) / 2 - photo.shape[-1] / 2) for face in central.faces]
    assert offsets[0] == min(offsets)
    with pytest.warns(photos.SeveralFacesWarning):
        third = aligner.align(photo, 128, choose=2)
    np.testing.assert_array_equal(third.points, aligned.faces[2].points)
    with pytest.raises(ImageContractError, match="face number 9"):
        aligner.align(photo, 128, choose=9)
    with pytest.raises(UnknownNameError, match="central"):
        aligner.align(photo, 128, choose="centre")


def test_one_face_does_not_warn_and_no_face_is_an_error(kit, aligner):
    with warnings.catch_warnings():
        warnings.simplefilter("error", photos.SeveralFacesWarning)
        aligner.align(read_image(kit / "photos/identities/refldm/ref_00.png"), 64)
    empty = _smooth_picture(200, 300)
    with pytest.raises(photos.NoFaceError, match="300x200.*--no-align"):
        aligner.align(empty)
    with pytest.raises(photos.NoFaceError):
        aligner.embed(empty)
    with pytest.raises(ImageContractError):
        aligner.align(empty * 255)


def test_a_real_photo_takes_its_own_crop_back(kit, aligner):
    photo = read_image(kit / "photos/whole/codeformer_03.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", photos.SeveralFacesWarning)
        aligned = aligner.align(photo, 512)
    pasted = alignment.paste_back(photo, aligned.image, aligned.matrix)
    assert (pasted - photo).abs().mean() < 0.005
