"""The degradation as people use it: seeds, records, presets, odd sizes and bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from refbfr_core.degradation import (
    PRESETS,
    Degradation,
    DegradationRanges,
    DegradationRecord,
    draw,
    image_seeds,
    replay,
    stage_pictures,
    stages,
)
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError


def _faces(count: int = 3, height: int = 48, width: int = 48) -> torch.Tensor:
    """Smooth coloured pictures with some detail, different for each place in the batch."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [
        torch.stack([0.5 + 0.4 * torch.sin((3 + i + c) * x + (2 + c) * y) for c in range(3)]) for i in range(count)
    ]
    return torch.stack(waves).float()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_contract_and_replays_exactly(name: str) -> None:
    images = _faces(2, 64, 64)
    lq, records = Degradation.preset(name)(images, seed=5)
    assert lq.shape == images.shape and lq.dtype == torch.float32
    assert lq.min() >= 0 and lq.max() <= 1
    assert torch.equal((lq * 255).round() / 255, lq), "the output must lie on whole grey levels"
    stored = [DegradationRecord.from_json(record.to_json()) for record in records]
    assert stored == records
    assert torch.equal(replay(images, stored), lq)
    assert all(record.preset == name for record in records)


def test_same_seed_same_bytes_other_seed_other_picture() -> None:
    degrade = Degradation.preset("toy-refldm-train")
    images = _faces()
    first, second, other = (degrade(images, seed=seed)[0] for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_picture_depends_on_its_own_seed_only() -> None:
    degrade = Degradation.preset("toy-ldbfr-train")
    images = _faces(4)
    seeds = image_seeds(3, 4)
    together, records = degrade(images, seed=3)
    order = [2, 0, 3, 1]
    shuffled, _ = degrade(images[order], seeds=[seeds[i] for i in order])
    assert torch.equal(shuffled, together[order])
    for i in range(4):
        alone, record = degrade(images[i : i + 1], seeds=[seeds[i]])
        assert torch.equal(alone[0], together[i])
        assert record == [records[i]]
    longer = degrade(torch.cat([images, images]), seed=3)[0]
    assert torch.equal(longer[:4], together)


def test_neighbouring_seeds_share_no_draw() -> None:
    assert not set(image_seeds(0, 50)) & set(image_seeds(1, 50))
    assert len(set(image_seeds(0, 1000))) == 1000


def test_the_global_random_states_are_left_alone() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    Degradation.preset("toy-ldbfr-severe")(_faces(), seed=1)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("name", PRESETS)
def test_draws_fill_their_ranges(name: str) -> None:
    ranges = PRESETS[name]
    records = [draw(ranges, seed) for seed in range(400)]
    columns = {
        "blur_sigma": [r.sigma_x for r in records if r.sigma_x is not None],
        "scale": [r.scale for r in records if r.scale is not None],
        "noise_sigma": [r.noise_sigma for r in records if r.noise is not None],
        "jpeg_quality": [r.jpeg_quality_drawn for r in records if r.jpeg_quality_drawn is not None],
    }
    for field, values in columns.items():
        low, high = getattr(ranges, field)
        assert low <= min(values) <= max(values) <= high
        assert max(values) - min(values) >= 0.95 * (high - low)
        assert abs(np.mean(values) - (low + high) / 2) <= 0.09 * (high - low) + 1e-9
        assert abs(len(values) / 400 - ranges.stage_probability) < 0.1
    noisy = [r.noise for r in records if r.noise]
    assert abs(np.mean([kind == "poisson" for kind in noisy]) - ranges.poisson_probability) < 0.12
    assert abs(np.mean([r.isotropic for r in records]) - ranges.isotropic_probability) < 0.1
    for record in records:
        if record.isotropic:
            assert record.sigma_x == record.sigma_y and record.rotation == 0
        if record.jpeg_quality is not None:
            assert record.jpeg_quality == int(record.jpeg_quality_drawn)


def test_toy_twins_differ_from_their_papers_only_where_stated() -> None:
    twins = [name for name in PRESETS if name.startswith("toy-")]
    assert {name.removeprefix("toy-") for name in twins} == set(PRESETS) - set(twins)
    for name in twins:
        toy, paper = PRESETS[name], PRESETS[name.removeprefix("toy-")]
        changed = {f.name for f in dataclasses.fields(toy) if getattr(toy, f.name) != getattr(paper, f.name)}
        assert changed <= {"name", "resolution", "blur_sigma", "scale", "source"}
        assert toy.blur_sigma == tuple(value / 4 for value in paper.blur_sigma)
    assert PRESETS["toy-refldm-severe"].scale == (6, 16)
    assert PRESETS["toy-refldm-severe"].blur_sigma == (2, 4)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 40), (33, 128), (130, 97)])
def test_any_resolution(size: tuple[int, int]) -> None:
    images = _faces(1, *size)
    lq, _ = Degradation.preset("refldm-severe")(images, seed=0)
    assert lq.shape == images.shape
    assert torch.isfinite(lq).all()


def test_severity_is_ordered() -> None:
    images = torch.rand(8, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    losses = []
    for name in ("toy-refldm-moderate", "toy-refldm-severe"):
        lq, _ = Degradation.preset(name)(images, seed=0)
        losses.append((torch.nn.functional.avg_pool2d(lq - images, 2) ** 2).mean())
    assert losses[0] < losses[1]


def test_nothing_drawn_leaves_the_picture_as_it_is() -> None:
    ranges = dataclasses.replace(PRESETS["diffmac"], name="nothing", stage_probability=0.0)
    images = (_faces() * 255).round() / 255
    lq, records = Degradation(ranges)(images, seed=0)
    assert torch.equal(lq, images)
    assert records[0].describe().endswith("left as it is")


def test_channels_keep_their_places_through_jpeg() -> None:
    red = np.zeros((16, 16, 3))
    red[..., 0] = 1.0
    coded = stages.jpeg(red, 95)
    assert coded[..., 0].min() > 0.95 and coded[..., 1:].max() < 0.05


def test_zero_blur_is_no_blur_and_kernels_sum_to_one() -> None:
    kernel = stages.gaussian_kernel(0.0, 0.0)
    assert kernel[20, 20] == 1.0 and kernel.sum() == 1.0
    for parameters in [(3.0, 1.0, 0.7), (0.0, 5.0, 0.0), (200.0, 200.0, 0.0)]:
        assert abs(stages.gaussian_kernel(*parameters).sum() - 1) < 1e-12
    long_in_x = stages.gaussian_kernel(6.0, 1.0)
    assert long_in_x[20, 25] > 100 * long_in_x[25, 20]


def test_noise_statistics() -> None:
    noise = stages.gaussian_noise(200, 200, sigma=10.0, seed=1)
    assert noise.dtype == np.float32
    assert abs(noise.std() * 255 - 10) < 0.1 and abs(noise.mean() * 255) < 0.1
    for level in (0.25, 1.0):
        shot = stages.poisson_noise(np.full((200, 200, 3), level), sigma=10.0, seed=1)
        assert abs(shot.std() * 255 - 10 * np.sqrt(level)) < 0.15 and abs(shot.mean() * 255) < 0.1
    assert stages.poisson_noise(np.zeros((9, 9, 3)), 10.0, 1).max() == 0
    assert stages.poisson_noise(np.ones((9, 9, 3)), 0.0, 1).max() == 0
    assert stages.poisson_noise(np.ones((9, 9, 3)), 1e-12, 1).max() == 0


def test_the_noise_stream_never_changes() -> None:
    """Stored records must give the same noise years later, so the stream is pinned."""
    expected = np.array([1.6243454, -0.6117564, -0.5281718], dtype=np.float32)
    np.testing.assert_allclose(stages.gaussian_noise(1, 1, 255.0, seed=1)[0, 0], expected, rtol=1e-6)


def test_a_stored_draw_never_changes() -> None:
    """Seeds written down in results must mean the same degradation years later."""
    assert draw(PRESETS["refldm-train"], 12345).to_dict() == {
        "preset": "refldm-train",
        "seed": 12345,
        "kernel_size": 41,
        "sigma_x": 2.4596210661820876,
        "sigma_y": 13.50645037814885,
        "rotation": 0.7813574149021032,
        "isotropic": False,
        "scale": 5.158476762100589,
        "down_interpolation": "bilinear",
        "up_interpolation": "bilinear",
        "noise": "gaussian",
        "noise_sigma": 0.5600112121177836,
        "noise_seed": 3004074749,
        "jpeg_quality_drawn": 55.8585456223675,
        "jpeg_quality": 55,
    }


def test_stage_pictures_follow_the_order() -> None:
    image = _faces(1)
    degrade = Degradation.preset("toy-refldm-severe")
    lq, (record,) = degrade(image, seed=2)
    pictures = stage_pictures(image, record)
    assert list(pictures) == ["input", "blur", "downsample", "noise", "jpeg", "upsample", "output"]
    low = stages.low_resolution_size(48, 48, record.scale)
    assert tuple(pictures["jpeg"].shape[-2:]) == tuple(pictures["noise"].shape[-2:]) == low
    assert torch.equal(pictures["output"], lq)
    with pytest.raises(ConfigError, match="one picture"):
        stage_pictures(_faces(2), record)


def test_descriptions_name_what_a_reader_needs() -> None:
    text = Degradation.preset("pdgrad").describe()
    for part in ("24-40", "0.1-15", "30-100", "12-21 px wide", "eq. 27", "bilinear"):
        assert part in text
    record = draw(PRESETS["toy-ldbfr-severe"], 0)
    line = record.describe()
    assert f"JPEG {record.jpeg_quality}" in line and "down 8.00x" in line and str(record.seed) in line


@pytest.mark.parametrize(
    ("images", "cure"),
    [
        (torch.rand(2, 3, 8, 8) * 255, "divide by 255"),
        (torch.rand(2, 3, 8, 8) * 2 - 1, "from_network"),
        ((torch.rand(2, 3, 8, 8) * 255).to(torch.uint8), "from_uint8"),
        (torch.rand(3, 8, 8), "x\\[None\\]"),
        (torch.rand(0, 3, 8, 8), "at least one"),
        (torch.rand(2, 8, 8, 3), "permute"),
    ],
)
def test_broken_images_are_refused(images: torch.Tensor, cure: str) -> None:
    degrade = Degradation.preset("toy-refldm-train")
    with pytest.raises(ImageContractError, match=cure):
        degrade(images, seed=0)
    with pytest.raises(ImageContractError, match=cure):
        replay(images, [])


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'toy-refldm-severe'"):
        Degradation.preset("toy-refldm-sever")


@pytest.mark.parametrize("seed", [-1, 1.5, "3", True, None])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match="integer"):
        Degradation.preset("toy-refldm-train")(_faces(), seed=seed)


def test_counts_must_agree() -> None:
    degrade = Degradation.preset("toy-refldm-train")
    with pytest.raises(ConfigError, match="one integer for each picture"):
        degrade(_faces(3), seeds=[1, 2])
    _, records = degrade(_faces(2), seed=0)
    with pytest.raises(ConfigError, match="one record for each picture"):
        replay(_faces(3), records)


@pytest.mark.parametrize(
    "change",
    [
        {"blur_sigma": (3, 1)},
        {"blur_sigma": (-1, 1)},
        {"scale": (0, 4)},
        {"noise_sigma": (0, float("nan"))},
        {"jpeg_quality": (30, 101)},
        {"stage_probability": 1.5},
        {"kernel_size": 20},
    ],
)
def test_impossible_ranges_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(PRESETS["refldm-train"], **change)


def test_unknown_interpolation_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'bicubic'"):
        dataclasses.replace(PRESETS["refldm-train"], down_interpolation="bicubc")


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"sigma_y": None},
        {"noise": "salt"},
        {"jpeg_quality": 400},
        {"noise_sigma": "much"},
        {"seed": float("nan")},
    ],
)
def test_impossible_records_are_refused(change: dict[str, object]) -> None:
    values = draw(PRESETS["refldm-train"], 0).to_dict() | change
    with pytest.raises(ConfigError):
        DegradationRecord.from_dict(values)


def test_incomplete_records_are_refused() -> None:
    values = draw(PRESETS["refldm-train"], 0).to_dict()
    values["jpg"] = values.pop("jpeg_quality")
    with pytest.raises(ConfigError, match="missing.*jpeg_quality.*unknown.*jpg"):
        DegradationRecord.from_dict(values)
    for text in ("{", "[1]", ""):
        with pytest.raises(ConfigError, match="not a degradation record"):
            DegradationRecord.from_json(text)


def test_presets_are_read_only() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["pdgrad"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["pdgrad"].scale = (1, 2)  # type: ignore[misc]
    assert isinstance(PRESETS["pdgrad"], DegradationRanges)
