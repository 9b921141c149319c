"""Distances of sets, the moments they rest on, and the Inception network of FID without its download."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refbfr_core import metrics
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.images import write_image
from refbfr_core.metrics import inception, moments
from refbfr_core.metrics.textures import load_textures


class Corner(nn.Module):
    """Four pixels as features: independent normal numbers, if the pictures hold such."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :4].double() * 8 - 4


def normal(count: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    values = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) * scale + shift
    pictures = torch.full((count, 3, 8, 8), 0.5)
    pictures[:, 0, 0, :4] = ((values + 4) / 8).clamp(0, 1)
    return pictures


@pytest.fixture
def corner() -> dict[str, object]:
    return {"extractor": Corner().eval(), "features": "corner"}


# The Fréchet distance ------------------------------------------------------------------------------------------------


def test_fid_of_known_gaussians(corner: dict[str, object]) -> None:
    """|m - n|^2 + sum (s - t)^2 for axes that do not mix: 4 x 0.5^2 + 4 x 0.5^2 = 2."""
    found = metrics.set_distance("fid", normal(5000, 1, 0.5, 0.5), normal(4000, 2), "standard normal", **corner)
    assert found.value == pytest.approx(2.0, abs=0.1)
    assert found.spread is None and (found.n_restored, found.n_reference) == (5000, 4000)


def test_fid_of_a_set_and_itself_is_zero_and_both_ways_alike(corner: dict[str, object]) -> None:
    a, b = normal(200, 1), normal(300, 2, 0.3)
    assert metrics.set_distance("fid", a, a, "itself", **corner).value == pytest.approx(0, abs=1e-6)
    there, back = metrics.set_distance("fid", a, b, "b", **corner), metrics.set_distance("fid", b, a, "a", **corner)
    assert there.value == pytest.approx(back.value, rel=1e-9) and there.value > 0.2


def test_fid_toy_of_faces_and_themselves_is_zero() -> None:
    pictures = torch.rand(12, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = metrics.set_distance("fid-toy", pictures, pictures, "themselves", allow_small=True)
    assert 0 <= found.value < 1e-4  # 12 pictures leave the covariance of 32 features without full rank
    assert found.features == "judge-textures-128"


def test_fid_is_too_large_for_small_sets_and_kid_is_not(corner: dict[str, object]) -> None:
    """Why small n is refused: two samples of one distribution, 20 pictures each."""
    settings = {**corner, "allow_small": True}
    pairs = [(normal(20, 2 * i), normal(20, 2 * i + 1)) for i in range(40)]
    frechet = [metrics.set_distance("fid", a, b, "same", **settings).value for a, b in pairs]
    kernel = [metrics.set_distance("kid", a, b, "same", subsets=1, subset_size=20, **settings).value for a, b in pairs]
    assert min(frechet) > 0 and np.mean(frechet) > 0.2
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / 40**0.5


def test_batches_give_what_the_whole_set_gives(corner: dict[str, object]) -> None:
    a, b = normal(150, 1), normal(130, 2, 0.3)

    def stream(pictures: Tensor) -> Iterator[Tensor]:
        yield from pictures.split(37)

    for name in ("fid", "kid"):
        whole = metrics.set_distance(name, a, b, "b", **corner)
        parts = metrics.set_distance(name, stream(a), stream(b), "b", **corner)
        assert parts.value == pytest.approx(whole.value, rel=1e-9) and parts.n_restored == 150


def test_the_column_says_everything(corner: dict[str, object]) -> None:
    fid = metrics.set_distance("fid", normal(80, 1), normal(70, 2), "val people", **corner)
    assert fid.column == "fid, n=80 against 70 of val people (corner)"
    assert fid.column in str(fid)
    kid = metrics.set_distance("kid", normal(80, 1), normal(70, 2), "val people", subsets=7, **corner)
    assert kid.column == "kid, n=80 against 70 of val people (corner; 7 subsets of 35)"
    standard = metrics.Moments(torch.zeros(4), torch.eye(4), None)
    given = metrics.set_distance("fid", normal(80, 1), standard, "N", **corner)
    assert given.column == "fid, n=80 against N (corner)" and given.n_reference is None


def test_small_sets_are_refused_unless_asked_for(corner: dict[str, object]) -> None:
    few, many = normal(40, 1), normal(100, 2)
    for name in ("fid", "kid"):
        for pair in ((few, many), (many, few)):
            with pytest.raises(ConfigError, match="40 .*allow_small"):
                metrics.set_distance(name, *pair, "others", **corner)
            assert metrics.set_distance(name, *pair, "others", allow_small=True, **corner).n_restored == len(pair[0])
    wide = metrics.Moments(torch.zeros(200), torch.eye(200), 150)
    with pytest.raises(ConfigError, match="below 201 the covariance of 200 features has no full rank"):
        metrics.set_distance("fid", normal(150, 1), wide, "wide", extractor=Wide().eval(), features="wide")


class Wide(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :192].repeat(1, 2)[:, :200]


def test_bad_input(corner: dict[str, object]) -> None:
    a, b = normal(70, 1), normal(70, 2)
    with pytest.raises(UnknownNameError, match="Did you mean 'fid'"):
        metrics.set_distance("fdi", a, b, "b")
    with pytest.raises(UnknownNameError, match="'bilinear'"):
        metrics.set_distance("fid", a, b, "b", resizing="bilinaer")
    with pytest.raises(ConfigError, match="reference_name"):
        metrics.set_distance("fid", a, b, " ", **corner)
    with pytest.raises(ConfigError, match="features="):
        metrics.set_distance("fid", a, b, "b", extractor=Corner().eval())
    with pytest.raises(ConfigError, match="training mode"):
        metrics.set_distance("fid", a, b, "b", extractor=Corner(), features="corner")
    with pytest.raises(ConfigError, match="compares pictures"):
        metrics.set_distance("kid", a, metrics.Moments(torch.zeros(4), torch.eye(4), 99), "N", **corner)
    with pytest.raises(ConfigError, match="5 features.*another network"):
        metrics.set_distance("fid", a, metrics.Moments(torch.zeros(5), torch.eye(5), 99), "N", **corner)
    with pytest.raises(ImageContractError, match="reference"):
        metrics.set_distance("fid", a, iter([b * 255]), "b", **corner)
    with pytest.raises(ConfigError, match="restored: 0 pictures"):
        metrics.set_distance("fid", iter(()), b, "b", **corner)
    with pytest.raises(ConfigError, match="batches of such, got str"):
        metrics.set_distance("fid", "folder", b, "b", **corner)


def test_the_judges_textures_serve_two_distances(corner: dict[str, object]) -> None:
    extractor = load_textures("cpu")
    pictures = torch.rand(10, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    settings = {"extractor": extractor, "allow_small": True, "subsets": 3}
    kid = metrics.set_distance("kid-toy", pictures[:6], pictures[4:], "others", **settings)
    again = metrics.kernel_distance(pictures[:6], pictures[4:], "others", **settings)
    assert kid == again and kid.name == "kid-toy"
    state = torch.get_rng_state()
    metrics.set_distance("kid-toy", pictures[:6], pictures[4:], "others", **settings)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_registry_of_sets_says_what_a_table_needs() -> None:
    assert set(metrics.SET_REGISTRY) == {"fid", "kid", "fid-toy", "kid-toy"}
    for name, metric in metrics.SET_REGISTRY.items():
        assert metric.name == name and metric.direction == "lower" and metric.protocol and metric.needs
        assert ("stand-in" in metric.protocol) == (metric.pictures == "drawn") == name.endswith("-toy")
        assert metric.range[0] == (0 if metric.kind == "frechet" else -math.inf)
    assert metrics.SET_REGISTRY["fid-toy"].missing() is None


# Moments -------------------------------------------------------------------------------------------------------------


def test_moments_are_numpys(corner: dict[str, object]) -> None:
    pictures = normal(90, 3, 0.2)
    found = metrics.fit_moments(pictures.split(40), corner["extractor"])
    rows = corner["extractor"](pictures).numpy()
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(rows.T), atol=1e-12)
    assert found.count == 90


def test_moments_come_back_from_every_kind_of_file(tmp_path: Path, corner: dict[str, object]) -> None:
    original = metrics.fit_moments(normal(90, 3, 0.2), corner["extractor"])
    mean, covariance = original.mean.numpy(), original.covariance.numpy()
    np.savez(tmp_path / "clean-fid.npz", mu=mean, sigma=covariance)
    # As BasicSR saves them: NumPy arrays in a file of torch's, by the names of NumPy 2 and of NumPy 1.
    torch.save({"name": "FFHQ", "size": 512, "mean": mean, "cov": covariance}, tmp_path / "vqfr.pth")
    with zipfile.ZipFile(tmp_path / "vqfr.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for entry in new.namelist():
            old.writestr(entry, new.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    torch.save({"mean": original.mean, "cov": original.covariance}, tmp_path / "tensors.pth")
    files = [original.save(tmp_path / "own.npz"), *(tmp_path / name for name in ("clean-fid.npz", "vqfr.pth"))]
    a = normal(100, 5)
    values = {metrics.set_distance("fid", a, original, "FFHQ", **corner).value}
    for file in (*files, tmp_path / "old.pth", tmp_path / "tensors.pth"):
        again = metrics.read_moments(file)
        assert torch.equal(again.covariance, original.covariance), file
        assert again.count == (90 if file.name == "own.npz" else None)
        values.add(round(metrics.set_distance("fid", a, file, "FFHQ", **corner).value, 9))
    assert max(values) - min(values) < 1e-9
    with pytest.raises(ConfigError, match="npz"):
        original.save(tmp_path / "own.pth")


def test_files_that_hold_no_moments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no statistics at"):
        metrics.read_moments(tmp_path / "none.npz")
    contents = {
        "object.npz": {"mu": np.array([{}], dtype=object), "sigma": np.eye(1)},
        "names.npz": {"average": np.zeros(3), "sigma": np.eye(3)},
        "shapes.npz": {"mu": np.zeros(3), "sigma": np.eye(4)},
        "nan.npz": {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
        "text.npz": {"mu": np.array(["a"]), "sigma": np.eye(1)},
    }
    said = ["cannot be read", "no mean and covariance", "mean \\(3,\\) and cov", "not finite", "holds no numbers"]
    for (name, arrays), message in zip(contents.items(), said, strict=True):
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(WeightsError, match=message):
            metrics.read_moments(tmp_path / name)
    (tmp_path / "short.npz").write_bytes(b"PK")
    torch.save({"mean": Path("an object"), "cov": torch.eye(3)}, tmp_path / "pickle.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name, message in (("short.npz", "cannot be read"), ("pickle.pth", "pickled objects, which are refused"),
                          ("tensor.pth", "holds a Tensor")):  # fmt: skip
        with pytest.raises(WeightsError, match=message):
            metrics.read_moments(tmp_path / name)


# Inception -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the right form with random numbers that leave the features alive."""
    pytest.importorskip("pyiqa")
    network = inception.build_inception()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            width = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / width) ** 0.5
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_network_is_pyiqas(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same keys as pytorch-fid's file, and the same features as pyiqa computes with these weights."""
    theirs = pytest.importorskip("pyiqa.archs.inception")
    state = torch.load(weights, weights_only=True)
    assert state["fc.weight"].shape == (1008, 2048) and "Mixed_7c.branch_pool.conv.weight" in state
    monkeypatch.setattr(theirs, "load_pretrained_network", lambda network, url: network.load_state_dict(state))
    with torch.random.fork_rng():
        oracle = theirs.InceptionV3().eval()
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    pixels = (pictures * 255).round() / 255
    extractor = inception.load_inception(weights)
    with torch.no_grad():
        expected = oracle(pixels, True, True)[0].flatten(1)
        found = extractor(pictures)
    assert found.shape == (2, 2048) and found.dtype == torch.float64 and found.std() > 0.01
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-4)
    assert "unknown weights" in extractor.space and extractor.space.endswith("bilinear 299 px")


def test_clean_resizing_is_pyiqas(tmp_path: Path) -> None:
    fid_arch = pytest.importorskip("pyiqa.archs.fid_arch")
    picture = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    write_image(tmp_path / "one.png", picture)
    theirs = (fid_arch.ResizeDataset([tmp_path / "one.png"], "clean")[0] - 128) / 128
    torch.testing.assert_close(inception._resize_clean(picture)[0], theirs, atol=1e-6, rtol=0)
    aliased = inception._resize_bilinear(picture)[0]
    assert (aliased - theirs).abs().mean() > 0.1


def test_inception_is_found_in_torch_hub_and_refused_when_damaged(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    a = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with pytest.raises(WeightsError, match="pt_inception.*refbfr weights get inception-fid"):
        metrics.set_distance("fid", a, a, "itself", allow_small=True)
    assert "refbfr weights get inception-fid" in metrics.SET_REGISTRY["fid"].missing()
    place = tmp_path / "hub" / "checkpoints" / weights.name
    place.parent.mkdir(parents=True)
    place.symlink_to(weights)
    kid = metrics.set_distance("kid", a, a.flip(0), "itself", allow_small=True, resizing="clean", subsets=2)
    assert "unknown weights" in kid.column and "clean 299 px" in kid.column
    assert metrics.SET_REGISTRY["fid"].missing() is None
    place.unlink()
    for content, said in (({"conv.weight": torch.zeros(1)}, "does not fit"), ([1], "no plain set of tensors")):
        torch.save(content, place)
        with pytest.raises(WeightsError, match=said):
            inception.load_inception()
    place.write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="cannot be read.*weights get inception-fid"):
        inception.load_inception()
    with pytest.raises(UnknownNameError, match="'clean'"):
        inception.load_inception(weights, resizing="claen")


def test_chunks_do_not_change_moments() -> None:
    assert [len(batch) for batch in moments.split_batches(normal(70, 1), "pictures")] == [32, 32, 6]
