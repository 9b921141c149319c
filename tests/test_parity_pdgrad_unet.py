"""The guided-diffusion U-Net: conversion, outputs and gradients against the recorded networks, and DifFace's file.

The recorded networks are small and random, every parameter of them; "updown" resamples by residual blocks, "perlevel"
has another number of blocks at every level.
"""

from __future__ import annotations

import math
from pathlib import Path

import parity_pdgrad as parity
import pytest
import torch
from parity_pdgrad import LAYOUTS, Arrays

from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.weights import import_published, imported_from, load_network, network_entry, read_card
from refbfr_core.weights.convert import convert_adm_unet
from refbfr_core.weights.convert_adm import adm_unet_shapes
from refbfr_core.weights.places import how_to_get
from refbfr_core.weights.published_adm import DIFFACE_UNET, looks_like_adm, read_adm
from refbfr_core.weights.published_files import file_digest
from refbfr_core.weights.published_ldm import looks_like_refldm, looks_like_vqgan
from refbfr_core.weights.published_sample import sample_adm

# DifFace's layout in small: convolutions resample, every level has its own number of blocks.
SMALL = {
    "image_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": (1, 2),
    "attention_sizes": (8,),
    "num_head_channels": 16,
    "resblock_updown": False,
}


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "pdgrad"


def io(folder: Path, layout: str) -> Arrays:
    return parity.arrays(folder / f"unet_{layout}_io.npz")


def accept(published: object) -> bool:
    return True


# --- against the recorded networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_match(folder, layout):
    parity.compare_output(parity.load(folder, layout), io(folder, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_match(folder, layout):
    parity.compare_gradient(parity.load(folder, layout), io(folder, layout))


def test_files_of_multi_gpu_trainings_convert_too(folder):
    wrapped = {f"module.{name}": tensor for name, tensor in parity.state(folder, "perlevel").items()}
    network = convert_adm_unet(wrapped, **parity.keywords(folder, "perlevel"))
    parity.compare_output(network, io(folder, "perlevel"))


def test_a_converted_network_survives_saving(folder, tmp_path):
    network = parity.load(folder, "updown")
    network.save_pretrained(tmp_path)
    parity.compare_output(ADMUNet.from_pretrained(tmp_path), io(folder, "updown"))


def test_uniform_counts_may_be_one_number():
    one, many = (adm_unet_shapes(**SMALL | {"num_res_blocks": count}) for count in (2, (2, 2)))
    assert one == many


# --- on every machine: rows of the joint projection -------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [True, False])
def test_query_key_and_value_rows(legacy):
    state = sample_adm(SMALL)
    network = convert_adm_unet(state, **SMALL, legacy_qkv=legacy)
    rows = state["module.middle_block.1.qkv.weight"][..., 0]  # 64 channels, heads of 16
    keys = network.mid_block.attentions[0].to_k.weight
    # Second head, third channel of it: after the first head's 48 rows and 16 query rows, or after 64 query rows.
    assert torch.equal(keys[18], rows[48 + 16 + 2] if legacy else rows[64 + 18])


def test_a_first_multiplier_below_one_keeps_the_width_of_the_timestep():
    shapes = adm_unet_shapes(**SMALL | {"model_channels": 64, "channel_mult": (0.5, 1)})
    assert shapes["time_embed.0.weight"] == (256, 64)
    assert shapes["input_blocks.0.0.weight"] == (32, 3, 3, 3)


# --- what does not fit is refused -------------------------------------------------------------------------------------


def _changed(change: str) -> dict[str, torch.Tensor]:
    state = sample_adm(SMALL)
    name = "module.middle_block.1.qkv.weight"
    if change == "truncated":
        return dict(list(state.items())[:-3])
    if change == "extra":
        return state | {"module.label_emb.weight": torch.zeros(10, 128)}
    if change == "shape":
        return state | {name: state[name][:-1]}
    if change == "prefix":
        return {key.replace("module.", "network."): tensor for key, tensor in state.items()}
    if change == "half a prefix":
        return {key.removeprefix("module.") if "out." in key else key: tensor for key, tensor in state.items()}
    if change == "integer":
        return state | {name: state[name].long()}
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", r"3 missing \(.*out\.2"),
        ("extra", r"1 superfluous \(label_emb\.weight\)"),
        ("shape", r"middle_block\.1\.qkv\.weight is \(191, 64, 1\), not \(192, 64, 1\)"),
        ("prefix", r"missing \(time_embed\.0\.weight"),
        ("half a prefix", r"superfluous \(module\.time_embed\.0\.weight"),
        ("integer", r"not floating \(middle_block\.1\.qkv\.weight\)"),
        ("empty", r"missing \(time_embed\.0\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    with pytest.raises(WeightsError, match=message):
        convert_adm_unet(_changed(change), **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": (1, 2, 1)}, "3 numbers for 2 levels"),
        ({"attention_sizes": (2,)}, r"image_size // factor"),
        ({"model_channels": 48}, "multiples of both"),
        ({"num_head_channels": 24}, "multiples of both"),
        ({"channel_mult": ()}, "2 numbers for 0 levels"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        adm_unet_shapes(**SMALL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"resblock_updown": True},
        {"num_res_blocks": 1},
        {"out_channels": 3},
        {"attention_sizes": ()},
        {"attention_sizes": (16, 8)},
    ],
)
def test_another_configuration_than_the_files_is_noticed(change):
    with pytest.raises(WeightsError, match="do not fit the ADM U-Net"):
        convert_adm_unet(sample_adm(SMALL), **SMALL | change)


# --- DifFace's file ---------------------------------------------------------------------------------------------------


def test_the_release_has_the_right_size():
    state = sample_adm(device="meta")
    network = convert_adm_unet(state, **DIFFACE_UNET)
    assert len(state) == 630
    assert sum(math.prod(tensor.shape) for tensor in state.values()) == 159_788_454
    assert sum(parameter.numel() for parameter in network.parameters()) == 159_788_454
    assert network.config.channels == (32, 64, 128, 256, 256, 512, 512)
    assert network.config.attention_levels == (4, 5, 6)
    assert next(network.parameters()).is_meta


def test_a_file_is_recognised_by_what_is_in_it():
    names = sample_adm(SMALL)
    assert looks_like_adm(names) and looks_like_adm({name.removeprefix("module."): 0 for name in names})
    assert not looks_like_refldm(names) and not looks_like_vqgan(names)
    assert not looks_like_adm({"model.diffusion_model.input_blocks.0.0.weight": 0, "encoder.conv_in.weight": 0})


def test_an_imported_file_is_the_converted_network(tmp_path, monkeypatch):
    path = tmp_path / "downloaded.pth"
    state = sample_adm(SMALL)
    torch.save(state, path)
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    (one,) = import_published([path], accept=accept, pixel_unet=SMALL)
    assert (one.name, one.fresh, one.folder) == ("pdgrad-unet", True, tmp_path / "paper" / "pdgrad-unet")
    loaded = load_network("pdgrad-unet", profile="paper", device="cpu")
    assert isinstance(loaded, ADMUNet)
    expected = convert_adm_unet(state, **SMALL).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    source = imported_from("pdgrad-unet")
    assert source["sha256"] == file_digest(path)
    assert source["url"].endswith("/DifFace/releases/download/V1.0/iddpm_ffhq512_ema500000.pth")
    assert "S-Lab" in read_card(one.folder)["card"]["licence"]
    (again,) = import_published([path], accept=accept, pixel_unet=SMALL)
    assert not again.fresh


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: dict(list(state.items())[:20]), "missing"),
        (lambda state: state | {"module.out.2.bias": torch.full((6,), math.nan)}, r"NaN.*module\.out\.2\.bias"),
        (lambda state: state | {"module.extra": torch.zeros(1)}, r"superfluous \(extra\)"),
    ],
)
def test_a_damaged_file_leaves_nothing_behind(tmp_path, damage, message):
    torch.save(damage(sample_adm(SMALL)), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=message):
        import_published([tmp_path / "file.pth"], accept=accept, root=tmp_path / "paper", pixel_unet=SMALL)
    assert [path.name for path in (tmp_path / "paper").iterdir()] == [".import.lock"]


def test_a_file_of_another_size_is_not_the_release():
    with pytest.raises(WeightsError, match="do not fit the ADM U-Net"):
        read_adm(sample_adm(SMALL))


def test_the_paper_profile_says_what_to_download():
    entry = network_entry("pdgrad-unet")
    with pytest.raises(WeightsError, match=r"iddpm_ffhq512_ema500000\.pth, which does not come with this package"):
        load_network("pdgrad-unet", profile="paper")
    # The other papers' files are not asked for.
    assert how_to_get(entry, "paper").count("refbfr weights import iddpm_ffhq512_ema500000.pth.") == 1
    assert "refldm.ckpt" not in how_to_get(entry, "paper")
