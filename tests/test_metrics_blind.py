"""NIQE, MUSIQ, face-masked LPIPS and luma PSNR: protocol, mistakes, and that nothing is fetched unasked."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from scipy.io import savemat
from torch import Tensor

from refbfr_core import metrics
from refbfr_core.errors import ConfigError, ImageContractError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.metrics import assets, blind, perceptual


def pictures(count: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME; returns its hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for folder in ("checkpoints", "pyiqa"):
        (tmp_path / "hub" / folder).mkdir(parents=True)
    return tmp_path / "hub"


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asset"),
    [
        ("niqe", "niqe-statistics"), ("musiq", "musiq-koniq"), ("lpips", "lpips-vgg16"), ("flpips", "lpips-vgg16"),
        ("lpips-alex", "lpips-alexnet"), ("lpips-squeeze", "lpips-squeezenet"), ("lmd", "awing-98"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named_with_the_command_that_fetches_it(name: str, asset: str, hub: Path) -> None:
    """No connection is tried: the tests' sockets are blocked, and pyiqa would open one."""
    if name == "lmd" and assets.library_path(asset) is not None and assets.library_path(asset).is_file():
        pytest.skip("facexlib has its landmark network here")
    assert f"refbfr weights get {asset}" in metrics.unavailable(name)
    if name == "lmd":
        return
    a, b = pictures(side=192), pictures(side=192, seed=1)
    keywords = {"mask": torch.ones(2, 1, 192, 192)} if name == "flpips" else {}
    with pytest.raises(WeightsError, match=f"refbfr weights get {asset}"):
        metrics.compute(name, a, b, **keywords)


def test_files_are_looked_for_where_their_library_keeps_them(hub: Path) -> None:
    assert assets.library_path("niqe-statistics") == hub / "pyiqa" / "niqe_modelparameters.mat"
    assert assets.library_path("inception-fid") == hub / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    assert assets.library_path("fid-ffhq-512") is None
    with pytest.raises(UnknownNameError, match="niqe-statistics"):
        assets.library_path("niqe-statistic")


# NIQE ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def statistics(hub: Path) -> dict[str, Tensor]:
    """Statistics of the right form in the place of the authors'."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(36, 36, generator=generator, dtype=torch.float64)
    made = {"mu_prisparam": torch.rand(1, 36, generator=generator, dtype=torch.float64),
            "cov_prisparam": factor @ factor.T / 36 + torch.eye(36)}  # fmt: skip
    savemat(hub / "pyiqa" / "niqe_modelparameters.mat", {key: value.numpy() for key, value in made.items()})
    return made


def test_niqe_is_pyiqas_one_picture_at_a_time(statistics: dict[str, Tensor]) -> None:
    niqe_arch = pytest.importorskip("pyiqa.archs.niqe_arch")
    batch = pictures(3, 200)
    theirs = niqe_arch.calculate_niqe(
        batch, mu_pris_param=statistics["mu_prisparam"][0], cov_pris_param=statistics["cov_prisparam"]
    )
    found = metrics.compute("niqe", batch)
    torch.testing.assert_close(found, theirs.float(), rtol=1e-5, atol=1e-5)
    network = blind.load_niqe()
    alone = torch.cat([metrics.compute("niqe", each[None], network=network) for each in batch])
    torch.testing.assert_close(alone, found)
    # What does not fill a patch of 96 pixels is left out, on the right and at the bottom.
    torch.testing.assert_close(metrics.compute("niqe", batch[..., :192, :192]), found, rtol=1e-5, atol=1e-5)


def test_niqe_needs_two_patches_and_its_statistics(statistics: dict[str, Tensor], hub: Path) -> None:
    with pytest.raises(ImageContractError, match="two patches.*128 x 128.*niqe-toy"):
        metrics.compute("niqe", pictures(1, 128))
    assert metrics.compute("niqe", pictures(1, 192)[..., :100]).isfinite().all()
    file = hub / "pyiqa" / "niqe_modelparameters.mat"
    savemat(file, {"mu_prisparam": torch.zeros(1, 35).numpy(), "cov_prisparam": torch.zeros(35, 35).numpy()})
    with pytest.raises(WeightsError, match="expected 36 features"):
        metrics.compute("niqe", pictures(1, 192))
    for damage in (b"", b"no matlab file" * 50):
        file.write_bytes(damage)
        with pytest.raises(WeightsError, match="no statistics of NIQE.*weights get niqe-statistics"):
            metrics.compute("niqe", pictures(1, 192))
    savemat(file, {"other": 1})
    with pytest.raises(WeightsError, match="mu_prisparam"):
        metrics.compute("niqe", pictures(1, 192))


# MUSIQ ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def musiq_file(hub: Path) -> Path:
    """Weights of the right form, random, where pyiqa keeps the real ones."""
    arch = pytest.importorskip("pyiqa.archs.musiq_arch")
    path = hub / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"
    torch.save(arch.MUSIQ(num_class=1, pretrained=False).state_dict(), path)
    return path


def test_musiq_is_pyiqas(musiq_file: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    theirs = MUSIQ(num_class=1, pretrained_model_path=str(musiq_file)).eval()
    batch = pictures(2, 64)
    with torch.no_grad():
        expected = theirs(batch).flatten()
    with pytest.warns(UserWarning, match="not the file its name promises.*MUSIQ"):
        network = blind.load_musiq()
    found = metrics.compute("musiq", batch, network=network)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (metrics.compute("musiq", batch * 0.5, network=network) - found).abs().max() > 1e-5
    with pytest.raises(ImageContractError, match="at least 32"):
        metrics.compute("musiq", pictures(1, 16), network=network)
    with pytest.raises(ConfigError, match="training mode"):
        metrics.compute("musiq", batch, network=network.train())


def test_musiq_refuses_other_files_and_leaves_the_random_state_alone(musiq_file: Path) -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blind.load_musiq()
    assert torch.equal(torch.get_rng_state(), state)
    for content, said in (
        ({"head.weight": torch.zeros(1)}, "does not fit"),
        ({"model": Path("an object")}, "pickled objects, which are refused"),
    ):
        torch.save(content, musiq_file)
        with pytest.raises(WeightsError, match=said):
            metrics.compute("musiq", pictures())


def test_without_pyiqa(statistics: dict[str, Tensor], musiq_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    for name in ("niqe", "musiq"):
        with pytest.raises(MissingExtraError, match="refbfr_core\\[metrics\\]"):
            metrics.compute(name, pictures(1, 192))


# Faces only ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """LPIPS on a random VGG-16: fLPIPS's arithmetic does not depend on the numbers in it."""
    lpips = pytest.importorskip("lpips")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)


def test_flpips_sees_nothing_outside_the_face(vgg: torch.nn.Module) -> None:
    truth = pictures()
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 16:48, 16:48] = 0.7
    outside = torch.where(mask > 0, truth, pictures(seed=3))
    assert metrics.compute("flpips", outside, truth, mask=mask, network=vgg).tolist() == [0.0, 0.0]
    assert (metrics.compute("lpips", outside, truth, network=vgg) > 0.01).all()
    inside = torch.where(mask > 0, pictures(seed=3), truth)
    found = metrics.compute("flpips", inside, truth, mask=mask, network=vgg)
    face = (mask >= 0.5).float()
    with torch.no_grad():
        expected = vgg(inside * face * 2 - 1, truth * face * 2 - 1).flatten()
    torch.testing.assert_close(found, expected)
    # The same face in half of the frame's sides: the mean runs over the whole frame.
    assert (metrics.compute("lpips", inside[..., 16:48, 16:48], truth[..., 16:48, 16:48], network=vgg) > found).all()


@pytest.mark.parametrize("name", ["flpips", "flpips-toy"])
def test_flpips_needs_a_mask_of_the_face(name: str, vgg: torch.nn.Module) -> None:
    keywords = {"network": vgg} if name == "flpips" else {}
    truth = pictures()
    with pytest.raises(ConfigError, match=f"{name} looks at the face only.*mask="):
        metrics.compute(name, truth, truth, **keywords)
    mask = torch.ones(2, 1, 64, 64)
    broken = ((mask[:1], "expected \\(2, 1"), (mask * 255, "outside"), (mask * 0.4, "\\[0, 1\\] are empty"))
    for wrong, message in broken:
        with pytest.raises(ConfigError, match=message):
            metrics.compute(name, truth, truth, mask=wrong, **keywords)
    assert metrics.compute(name, truth, truth, mask=mask, **keywords).tolist() == [0.0, 0.0]
    assert metrics.REGISTRY[name].mask_required and "mask" in metrics.REGISTRY[name].keywords


# Luma PSNR, means by protocol ----------------------------------------------------------------------------------------


def test_psnr_y_is_pyiqas() -> None:
    psnr_arch = pytest.importorskip("pyiqa.archs.psnr_arch")
    a, b = pictures(3), pictures(3, seed=1)
    theirs = psnr_arch.psnr(a, b, test_y_channel=True)
    torch.testing.assert_close(metrics.compute("psnr-y", a, b), theirs, atol=1e-4, rtol=0)
    green = torch.zeros(1, 3, 16, 16)
    green[:, 1] = 0.1
    found = metrics.compute("psnr-y", green, torch.zeros(1, 3, 16, 16)).item()
    assert found == pytest.approx(-20 * math.log10(0.0587), abs=1e-4)
    assert metrics.compute("psnr-y", a, a).tolist() == [math.inf] * 3


def test_deg_has_two_protocols_that_a_table_can_name() -> None:
    angles = [0.0, 0.99, 1.0, 39.0, 80.0]
    every, vqfr = metrics.mean_score("deg", angles), metrics.mean_score("deg-over-1", angles)
    assert (every.value, every.counted, every.left_out) == (pytest.approx(24.198), 5, 0)
    assert (vqfr.value, vqfr.counted, vqfr.left_out) == (pytest.approx(40.0), 3, 2)
    assert vqfr.value == pytest.approx(metrics.mean_deg(torch.tensor(angles), "vqfr").value)
    a, b = pictures(2), pictures(2, seed=1)
    assert torch.equal(metrics.compute("deg", a, b), metrics.compute("deg-over-1", a, b))
    nothing = metrics.mean_score("deg-over-1", [0.1])
    assert math.isnan(nothing.value) and nothing.left_out == 1
    assert metrics.mean_score("psnr", [20.0, math.inf]).value == math.inf
    with pytest.raises(ConfigError, match="not numbers"):
        metrics.mean_score("psnr", [20.0, math.nan])


def test_trunks_name_files_that_can_be_fetched() -> None:
    for net, trunk in perceptual.TRUNKS.items():
        assert trunk.asset.startswith("lpips-") and perceptual.trunk_path(net).name.endswith(".pth")
