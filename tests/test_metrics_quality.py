"""Quality without a true picture, amount of detail, and distances of sets: known values, and that they see damage."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refbfr_core import metrics
from refbfr_core.benchmark import quality as study
from refbfr_core.benchmark import recorded
from refbfr_core.errors import ConfigError, ImageContractError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.faces import ToyFaces
from refbfr_core.metrics import pristine, textures
from refbfr_core.metrics.distances import FEATURES, LEAST, SetDistance, kernel_distance
from refbfr_core.metrics.shipped import read_statistics, write_statistics
from refbfr_core.models import FaceEmbedder


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Eight clean drawn faces of people whom no network and no statistic has seen."""
    drawn = ToyFaces(128)
    people = drawn.identities(8, 5, "val")
    return drawn.render(people, drawn.views(people, 1, 5)).images[:, 0].clone()


@pytest.fixture(scope="module")
def extractor() -> textures.TextureFeatures:
    return textures.load_textures("cpu")


def niqe(images: Tensor, **keywords: object) -> Tensor:
    return metrics.compute("niqe-toy", images, **keywords)


# NIQE on drawn faces -------------------------------------------------------------------------------------------------


def test_scores_of_known_faces(faces: Tensor) -> None:
    assert niqe(faces[:4]).tolist() == pytest.approx([2.7255, 2.5082, 2.0384, 2.3326], abs=0.02)


def test_the_distance_is_that_of_pyiqa(faces: Tensor) -> None:
    """With every patch described, the score is pyiqa's own `niqe` with other statistics and smaller blocks."""
    niqe_arch = pytest.importorskip("pyiqa.archs.niqe_arch")
    from pyiqa.utils.color_util import to_y_channel

    shipped = pristine.load_pristine()
    complete = faces[pristine.describe_patches(faces).described.all(dim=1)]
    assert len(complete) >= 4
    luma = to_y_channel(complete, 255, "yiq").round().double()
    mean, covariance = shipped.mean.repeat(len(luma), 1), shipped.covariance.repeat(len(luma), 1, 1)
    theirs = niqe_arch.niqe(luma, mean, covariance, shipped.patch, shipped.patch)
    assert niqe(complete).tolist() == pytest.approx(theirs.tolist(), abs=1e-4)


def test_features_of_white_noise_are_those_of_a_gaussian() -> None:
    """Normalised white noise is Gaussian again, whose generalised Gaussian has the shape parameter 2."""
    pytest.importorskip("pyiqa")
    noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.12 + 0.5
    described = pristine.describe_patches(noise.clamp(0, 1).repeat(1, 3, 1, 1), patch=128)
    assert described.features.shape == (1, 1, pristine.FEATURES)
    # The window around a pixel holds the pixel itself, which cuts the tails: a little above 2.
    assert 2.0 < described.features[0, 0, 0].item() < 3.2
    assert described.sharpness.item() == pytest.approx(0.12 * 255, rel=0.1)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("blur", (0.8, 1.2, 3.0)),
        ("noise", (2.0, 10.0, 40.0)),
        ("jpeg", (50, 15, 5)),
        ("checkerboard", (2.0, 4.0, 16.0)),
        ("oversharpening", (1.0, 2.0, 4.0)),
    ],
)
def test_scores_rise_with_every_distortion(name: str, levels: tuple[float, ...], faces: Tensor) -> None:
    change, strengths = study.DISTORTIONS[name]
    assert set(levels) <= set(strengths)
    means = [niqe(faces).mean().item(), *(niqe(change(faces, level)).mean().item() for level in levels)]
    assert means == sorted(means) and means[-1] > 1.3 * means[0]
    assert (niqe(change(faces, levels[-1])) > niqe(faces)).all()


def test_alone_as_in_a_batch_and_unmoved_by_what_stands_beside(faces: Tensor) -> None:
    together = niqe(faces[:5])
    alone = torch.cat([niqe(faces[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    torch.testing.assert_close(niqe(faces[:5], target=torch.rand(5, 3, 128, 128)), together, rtol=0, atol=0)


def test_statistics_decide_what_is_good(faces: Tensor) -> None:
    """Fitted to blurred faces, the same distance prefers blurred faces: nothing about sharpness is built in."""
    soft = study.blurred(faces, 2.0)
    fitted = pristine.fit_pristine(soft, patch=16, sharpness=0.0, about={"summary": "soft"})
    assert fitted.about["pictures"] == 8 and fitted.about["summary"] == "soft" and fitted.side == 128
    assert (niqe(soft, pristine=fitted) < niqe(faces, pristine=fitted)).all()


def test_patches_without_structure_do_not_count(faces: Tensor) -> None:
    """pyiqa averages what its fits leave of an empty patch; one such face got 7.2 instead of 1.6."""
    half = faces[:1].clone()
    half[..., :64] = 0.5
    described = pristine.describe_patches(half).described
    assert 0 < described.sum() < 16
    assert niqe(half).isfinite().all() and niqe(half).item() < 10
    blank = torch.cat([faces[:1], torch.full((1, 3, 128, 128), 0.5)])
    with pytest.raises(ImageContractError, match="\\[1\\] have no structure"):
        niqe(blank)


def test_bad_input_to_niqe(faces: Tensor) -> None:
    with pytest.raises(ImageContractError, match="128 x 128"):
        niqe(faces[..., :64])
    with pytest.raises(ImageContractError, match="lies in"):
        niqe(faces * 255)
    with pytest.raises(UnknownNameError, match="'pristine'"):
        niqe(faces, pristin=None)
    with pytest.raises(ConfigError, match="even number"):
        pristine.describe_patches(faces, patch=33)
    with pytest.raises(ImageContractError, match="smaller than one patch"):
        pristine.describe_patches(faces[..., :16, :16])
    with pytest.raises(ConfigError, match="too few"):
        pristine.fit_pristine(faces[:1])
    with pytest.raises(ConfigError, match="sharpness"):
        pristine.fit_pristine(faces, sharpness=1.0)
    with pytest.raises(ImageContractError, match="squares"):
        pristine.fit_pristine(faces[..., :64])


def test_without_pyiqa(faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.unavailable("niqe-toy") is None
    for name in [each for each in sys.modules if each.split(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(MissingExtraError, match="refbfr_core\\[metrics\\]"):
        niqe(faces)
    assert "pyiqa" in metrics.unavailable("niqe-toy")


def test_the_registry_says_that_it_is_a_stand_in() -> None:
    text = metrics.describe("niqe-toy")
    assert "lower is better" in text and "stand-in" in text and "drawn faces, not of natural photographs" in text
    assert not metrics.REGISTRY["niqe-toy"].target_required


# Shipped statistics --------------------------------------------------------------------------------------------------


def test_shipped_statistics_say_where_they_come_from() -> None:
    for about in (pristine.load_pristine().about, read_statistics(None, textures.NAME, ("mean", "projection"), "")[1]):
        assert about["split"] == "train" and about["people"] >= 200 and about["command"].startswith("python -m")
        assert {"seed", "views", "versions", "summary", "limits"} <= set(about)
    shipped = pristine.load_pristine()
    assert shipped.mean.shape == (36,) and shipped.patch == pristine.PATCH
    assert (torch.linalg.eigvalsh(shipped.covariance) > 0).all()


def test_statistics_are_read_back_and_damage_is_found(tmp_path: Path) -> None:
    original = pristine.load_pristine()
    path = pristine.save_pristine(original, tmp_path, "mine")
    again = pristine.load_pristine(tmp_path, "mine")
    assert torch.equal(again.covariance, original.covariance) and (again.side, again.patch) == (128, 32)
    with pytest.raises(WeightsError, match="cannot be read.*metrics.pristine"):
        pristine.load_pristine(tmp_path, "other")
    with pytest.raises(WeightsError, match="expected \\['projection'\\]"):
        read_statistics(tmp_path, "mine", ("projection",), "Fit it again.")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="altered"):
        pristine.load_pristine(tmp_path, "mine")
    path.with_suffix(".json").write_text("[]", encoding="utf-8")
    with pytest.raises(WeightsError, match="format 1"):
        pristine.load_pristine(tmp_path, "mine")


def test_a_whitening_of_another_judge_is_refused(tmp_path: Path) -> None:
    tensors, about = read_statistics(None, textures.NAME, ("mean", "projection"), "")
    write_statistics(tmp_path, textures.NAME, tensors, about | {"judge": "0" * 64})
    with pytest.raises(WeightsError, match="another judge"):
        textures.load_textures("cpu", tmp_path)


# Amount of detail ----------------------------------------------------------------------------------------------------


def test_detail_in_decibels_of_amplitude() -> None:
    """A pattern of twice the amplitude has 6.02 dB more, of half the amplitude 6.02 dB less."""
    plain = torch.full((1, 3, 128, 128), 0.5)
    weak, strong = (study.checkered(plain, amplitude) for amplitude in (16.0, 32.0))
    assert metrics.compute("detail", strong, weak).item() == pytest.approx(20 * math.log10(2), abs=0.01)
    assert metrics.compute("detail", weak, strong).item() == pytest.approx(-20 * math.log10(2), abs=0.01)
    assert metrics.compute("detail", plain, plain).item() == 0.0
    assert metrics.compute("detail", plain, strong).item() < -30


def test_detail_tells_too_soft_from_too_busy(faces: Tensor) -> None:
    def mean(pictures: Tensor) -> float:
        return metrics.compute("detail", pictures, faces).mean().item()

    assert metrics.compute("detail", faces, faces).tolist() == [0.0] * 8
    softer = [mean(study.blurred(faces, sigma)) for sigma in (0.5, 0.8, 2.0)]
    assert softer[2] < softer[1] < softer[0] < -1
    assert mean(study.noisy(faces, 10.0)) > 1 and mean(study.oversharpened(faces, 1.0)) > 3
    assert "nearer to 0 is better" in metrics.describe("detail")


def test_detail_counts_the_face_only(faces: Tensor) -> None:
    busy_border = faces.clone()
    busy_border[..., :8, :] = study.checkered(faces, 40.0)[..., :8, :]
    assert metrics.compute("detail", busy_border, faces).abs().max() == 0
    mask = torch.zeros(8, 1, 128, 128)
    mask[..., :8, :] = 1
    assert (metrics.compute("detail", busy_border, faces, mask=mask) > 10).all()


def test_bad_input_to_detail(faces: Tensor) -> None:
    with pytest.raises(ImageContractError, match="no target"):
        metrics.compute("detail", faces)
    with pytest.raises(ImageContractError, match="32 x 32"):
        metrics.compute("detail", faces[..., :16, :16], faces[..., :16, :16])
    mask = torch.ones(8, 1, 128, 128)
    for wrong, message in ((mask[:4], "expected \\(8, 1"), (mask * 255, "outside"), (mask * 0, "empty")):
        with pytest.raises(ConfigError, match=message):
            metrics.compute("detail", faces, faces, mask=wrong)


# Distances of sets ---------------------------------------------------------------------------------------------------


class _Corner(nn.Module):
    """Four pixels as features: independent normal numbers, if the pictures hold such."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :4].double() * 8 - 4


def _normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    values = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + shift
    pictures = torch.full((count, 3, 8, 8), 0.5)
    pictures[:, 0, 0, :4] = ((values + 4) / 8).clamp(0, 1)
    return pictures


def test_the_kernel_distance_is_unbiased_at_small_numbers() -> None:
    """Two samples of one distribution: 0 on average, whatever their size; a shifted one is far from it."""
    settings = {"extractor": _Corner().eval(), "features": "corner", "allow_small": True, "subsets": 1}
    for count in (8, 32):
        pairs = [(_normal(count, 2 * i), _normal(count, 2 * i + 1)) for i in range(150)]
        values = torch.tensor([kernel_distance(a, b, "same", subset_size=count, **settings).value for a, b in pairs])
        assert values.mean().abs() < 3 * values.std() / 150**0.5
        assert (values < 0).any()
    assert kernel_distance(_normal(64, 1, 1.0), _normal(64, 2), "unshifted", **settings).value > 0.5


def test_textures_see_softness_and_artefacts(faces: Tensor, extractor: textures.TextureFeatures) -> None:
    settings = {"extractor": extractor, "allow_small": True}
    others = torch.cat([faces[4:], faces[4:].flip(-1)])
    mine = torch.cat([faces[:4], faces[:4].flip(-1)])
    clean = kernel_distance(mine, others, "other people", **settings)
    for worse in (study.blurred(mine, 2.0), study.checkered(mine, 8.0), study.oversharpened(mine, 2.0)):
        assert kernel_distance(worse, others, "other people", **settings).value > clean.value + 1


def test_a_distance_says_what_it_is_of(faces: Tensor, extractor: textures.TextureFeatures) -> None:
    settings = {"extractor": extractor, "allow_small": True, "subsets": 5}
    state = torch.get_rng_state()
    one = kernel_distance(faces, faces[:6], "themselves", seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, SetDistance) and (one.n_restored, one.n_reference, one.subset_size) == (8, 6, 3)
    assert one == kernel_distance(faces, faces[:6], "themselves", seed=3, **settings)
    assert one != kernel_distance(faces, faces[:6], "themselves", seed=4, **settings)
    assert "themselves" in str(one) and FEATURES in str(one) and one.spread > 0


def test_bad_input_to_the_kernel_distance(faces: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = _Corner().eval()
    with pytest.raises(ConfigError, match=f"below {LEAST}.*allow_small"):
        kernel_distance(faces, faces, "others")
    with pytest.raises(ConfigError, match="reference_name"):
        kernel_distance(faces, faces, " ", allow_small=True)
    with pytest.raises(ConfigError, match="subsets of 9"):
        kernel_distance(faces, faces, "others", allow_small=True, subset_size=9)
    with pytest.raises(ConfigError, match="another extractor"):
        kernel_distance(faces, faces, "others", allow_small=True, extractor=corner)
    with pytest.raises(ConfigError, match="training mode"):
        kernel_distance(faces, faces, "others", allow_small=True, extractor=_Corner(), features="corner")
    with pytest.raises(ImageContractError, match="reference"):
        kernel_distance(faces, faces * 255, "others", allow_small=True)
    embedder = FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=8).eval()
    with pytest.raises(ConfigError, match="at least 48 pictures"):
        textures.fit_textures(faces, embedder, components=4)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.kid", None)
    with pytest.raises(MissingExtraError, match="torchmetrics"):
        kernel_distance(faces, faces, "others", allow_small=True, extractor=corner, features="corner")


def test_whitened_features_are_uncorrelated_with_unit_variance() -> None:
    embedder = FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=8).eval()
    pictures = torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = (pictures * torch.linspace(0.2, 1, 60).view(-1, 1, 1, 1)).clamp(0, 1)
    rows = textures.fit_textures(pictures, embedder, components=6)(pictures)
    assert rows.shape == (60, 6)
    torch.testing.assert_close(rows.T.cov(), torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


# The study -----------------------------------------------------------------------------------------------------------


def test_the_study_puts_every_set_into_one_table(faces: Tensor, extractor: textures.TextureFeatures) -> None:
    sets = {("blur", 2.0): study.blurred(faces[:4], 2.0)}
    rows = study.quality_rows(faces[:4], sets, faces[4:], extractor=extractor, allow_small=True)
    assert rows.distortion.tolist() == ["clean", "blur"] and rows.n.tolist() == [4, 4]
    clean, soft = rows.iloc[0], rows.iloc[1]
    assert clean.rise == clean.detail_db == clean.worse == 0
    assert soft.niqe_toy - clean.niqe_toy == pytest.approx(soft.rise, abs=1e-6) and soft.rise_low > 0
    assert soft.worse == 1 and soft.detail_db < -5 and soft.kid > clean.kid
    assert json.loads(rows.to_json(orient="records"))
    with pytest.raises(ConfigError, match="clean pictures"):
        study.quality_rows(faces[:4], {("blur", 2.0): faces}, faces[4:], extractor=extractor, allow_small=True)


def test_the_recorded_study_found_every_score_rising() -> None:
    """64 unseen faces: clean ones score best, and every stronger distortion scores worse than the weaker one."""
    recording = recorded("quality-scores")
    rows = recording.rows.set_index("distortion")
    clean = rows.loc["clean", "niqe_toy"]
    assert rows.niqe_toy.min() == clean and recording.about["settings"]["split"] == "val"
    for name, (_, levels) in study.DISTORTIONS.items():
        strength = rows.loc[name, "strength"].tolist()
        assert strength == list(levels)
        assert rows.loc[name, "niqe_toy"].is_monotonic_increasing and rows.loc[name, "rise_low"].iloc[0] > 0
    assert rows.loc["blur", "detail_db"].is_monotonic_decreasing and rows.loc["blur", "kid"].is_monotonic_increasing
