"""Every stage of the degradation against arrays recorded from the released ReF-LDM code (which works in BGR)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from refbfr_core.degradation import PRESETS, DegradationRecord, run_stages, stages

FIXTURE = Path(__file__).parent / "fixtures" / "refldm_degradation.npz"
CARRIED = ("train_iso_a", "train_aniso_b", "train_mixed_nonsquare")
ONLY_SHARED = ("moderate", "severe", "no_noise")
# The JPEG coder belongs to the library, so two versions of it may disagree by this much.
JPEG_SLACK = 2.001 / 255


def _rgb(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[..., ::-1])


def _load(path: Path, case: str) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {key.split("__", 1)[1]: archive[key] for key in archive if key.startswith(f"{case}__")}


def _case(name: str, request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    if name in CARRIED:
        return _load(FIXTURE, name)
    return _load(request.getfixturevalue("shared_dir") / "parity" / "refldm" / "degradation.npz", name)


@pytest.fixture(params=[*CARRIED, *ONLY_SHARED])
def case(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """One recorded degradation; three travel with the repository, three need the shared folder."""
    return _case(request.param, request)


@pytest.fixture(params=[*CARRIED, "moderate", "severe"])
def noisy_case(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """The same without the one that was recorded with the noise turned off."""
    return _case(request.param, request)


def _record(case: dict[str, np.ndarray]) -> DegradationRecord:
    sigma_x, sigma_y, rotation, isotropic = (float(value) for value in case["kernel_params"])
    noisy = "noise" in case
    return DegradationRecord(
        preset="recorded",
        seed=0,
        kernel_size=41,
        sigma_x=sigma_x,
        sigma_y=sigma_y,
        rotation=rotation,
        isotropic=bool(isotropic),
        scale=float(case["downsample_scale"]),
        down_interpolation="bilinear",
        up_interpolation="bilinear",
        noise="gaussian" if noisy else None,
        noise_sigma=float(case["noise_sigma"]) if noisy else 0.0,
        noise_seed=0,
        jpeg_quality_drawn=float(case["jpeg_quality_float"]),
        jpeg_quality=int(case["jpeg_quality_int"]),
    )


def test_kernel(case: dict[str, np.ndarray]) -> None:
    sigma_x, sigma_y, rotation, _ = case["kernel_params"]
    assert np.abs(stages.gaussian_kernel(sigma_x, sigma_y, rotation, 41) - case["kernel"]).max() < 1e-12


def test_blur(case: dict[str, np.ndarray]) -> None:
    blurred = stages.blur(case["image_u8_rgb"] / 255.0, case["kernel"])
    assert blurred.dtype == np.float64
    assert np.abs(blurred - _rgb(case["after_blur"])).max() < 1e-6


def test_downsample(case: dict[str, np.ndarray]) -> None:
    height, width = stages.low_resolution_size(*case["image_u8_rgb"].shape[:2], float(case["downsample_scale"]))
    assert [width, height] == case["downsample_size_wh"].tolist()
    small = stages.resize(_rgb(case["after_blur"]).astype(np.float64), height, width, "bilinear")
    assert np.abs(small - _rgb(case["after_downsample"])).max() < 1e-6


def test_noise(noisy_case: dict[str, np.ndarray]) -> None:
    before = _rgb(noisy_case["after_downsample"]).astype(np.float64)
    noisy = stages.add_noise(before, _rgb(noisy_case["noise"]))
    assert noisy.dtype == np.float64
    assert np.abs(noisy - _rgb(noisy_case["after_noise"])).max() < 1e-6


def test_jpeg(case: dict[str, np.ndarray]) -> None:
    assert int(case["jpeg_quality_float"]) == case["jpeg_quality_int"]
    before = case.get("after_noise", case["after_downsample"])
    coded = stages.jpeg(_rgb(before).astype(np.float64), int(case["jpeg_quality_int"]))
    assert coded.dtype == np.float32
    assert np.abs(coded - _rgb(case["jpeg_decoded_u8_bgr"]).astype(np.float32) / 255).max() <= JPEG_SLACK


def test_upsample_and_rounding(case: dict[str, np.ndarray]) -> None:
    height, width = case["image_u8_rgb"].shape[:2]
    decoded = _rgb(case["jpeg_decoded_u8_bgr"]).astype(np.float32) / np.float32(255)
    large = stages.resize(decoded, height, width, "bilinear")
    assert large.dtype == np.float32
    assert np.abs(large - _rgb(case["after_upsample_bgr"])).max() < 1e-6
    rounded = stages.round_to_grey_levels(_rgb(case["after_upsample_bgr"]))
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded * 255, case["out_rgb"], atol=1e-4)


def test_whole_chain_from_the_recorded_parameters(case: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain as the package runs it, in its order and precision; only the noise array is the recorded one."""
    if "noise" in case:
        monkeypatch.setattr(stages, "gaussian_noise", lambda height, width, sigma, seed: _rgb(case["noise"]))
    pictures = dict(run_stages((case["image_u8_rgb"] / 255.0).astype(np.float32), _record(case)))
    assert [pictures[name].dtype for name in ("blur", "downsample", "noise")] == [np.float64] * 3
    assert np.abs(pictures["blur"] - _rgb(case["after_blur"])).max() < 1e-6
    assert np.abs(pictures["downsample"] - _rgb(case["after_downsample"])).max() < 1e-6
    assert np.abs(pictures["noise"] - _rgb(case.get("after_noise", case["after_downsample"]))).max() < 1e-6
    assert np.abs(pictures["output"] * 255 - case["out_rgb"]).max() <= JPEG_SLACK * 255


def test_noise_array_is_scaled_like_the_recorded_one() -> None:
    """Divided by sigma/255 the recorded noise is a unit normal, and so is ours."""
    case = _load(FIXTURE, "train_iso_a")
    sigma = float(case["noise_sigma"])
    recorded = case["noise"].std() * 255 / sigma
    ours = stages.gaussian_noise(*case["noise"].shape[:2], sigma, seed=3).std() * 255 / sigma
    assert abs(recorded - 1) < 0.05 and abs(ours - 1) < 0.05


PUBLISHED = {
    "refldm-train": ("refldm.csv", "training"),
    "refldm-moderate": ("refldm.csv", "FFHQ-Ref-Moderate"),
    "refldm-severe": ("refldm.csv", "FFHQ-Ref-Severe"),
    "pdgrad": ("pdgrad.csv", "CelebRef-HQ test"),
    "ldbfr-train": ("ldbfr.csv", "training"),
    "ldbfr-mild": ("ldbfr.csv", "CelebA-Test mild"),
    "ldbfr-medium": ("ldbfr.csv", "CelebA-Test medium"),
    "ldbfr-severe": ("ldbfr.csv", "CelebA-Test severe"),
    "diffmac": ("diffmac.csv", "training"),
}
FIELDS = {
    "sigma": "blur_sigma",
    "G (blur)": "blur_sigma",
    "r": "scale",
    "delta": "noise_sigma",
    "sigma (noise)": "noise_sigma",
    "q": "jpeg_quality",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_hold_the_published_ranges(name: str, shared_dir: Path) -> None:
    file, dataset = PUBLISHED[name]
    with (shared_dir / "published" / file).open(newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["method"] == "LQ synthesis" and row["dataset"] == dataset and "released" not in row["table"]
        ]
    compared = 0
    for row in rows:
        quantity, end = row["metric"].rsplit(" ", 1)
        if quantity in FIELDS and end in ("min", "max"):
            assert getattr(PRESETS[name], FIELDS[quantity])[end == "max"] == float(row["value"]), row
            compared += 1
    assert compared == 8
