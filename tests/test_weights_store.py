"""The weight store: round trip, atomic writing, and a clear error for every way a folder of weights can be wrong."""

import json

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from safetensors.torch import load_file, save_file

from refbfr_core.errors import ConfigError, DiskFullError, OutputError, UnknownNameError, WeightsError
from refbfr_core.weights import load_network, save_network, store, verify_network

CARD = {
    "summary": "a test network | with a bar",
    "training_data": "nothing",
    "recipe": {"steps": 3},
    "results": {"psnr": 30.12345},
}


def tiny_vq(seed=0, width=8):
    torch.manual_seed(seed)
    return VQModel(
        block_out_channels=(width, width),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=1.0,
    )


@pytest.fixture
def saved(tmp_path):
    return save_network(tiny_vq(), "refldm-vq", tmp_path, CARD)


def test_round_trip_gives_the_half_precision_values_as_float32(saved, tmp_path):
    loaded = load_network("refldm-vq", device="cpu", root=tmp_path)
    expected = {key: value.half().float() for key, value in tiny_vq().state_dict().items()}
    assert loaded.state_dict().keys() == expected.keys()
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[key])
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_leaves_the_module_alone_and_loading_leaves_the_random_state_alone(tmp_path):
    network = tiny_vq().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    save_network(network, "refldm-vq", tmp_path, CARD)
    assert network.training
    assert all(
        torch.equal(value, before[key]) and value.dtype == before[key].dtype
        for key, value in network.state_dict().items()
    )
    state = torch.random.get_rng_state()
    load_network("refldm-vq", device="cpu", root=tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())


def test_where_a_network_came_from_is_not_written_down(saved, tmp_path):
    again = VQModel.from_pretrained(saved)
    assert str(again.config["_name_or_path"]) == str(saved)
    folder = save_network(again, "refldm-vq", tmp_path / "copy", CARD)
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert (folder / "config.json").read_text() == (saved / "config.json").read_text()


def test_library_reader_agrees(saved, tmp_path):
    ours = load_network("refldm-vq", device="cpu", root=tmp_path).state_dict()
    theirs = VQModel.from_pretrained(saved, torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_large_network_is_sharded_below_the_limit(tmp_path):
    network = UNet2DModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(128, 256),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )
    folder = save_network(network, "refldm-unet", tmp_path, CARD)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < store.MAX_FILE_BYTES for path in shards)
    loaded = load_network("refldm-unet", device="cpu", root=tmp_path)
    assert torch.equal(loaded.conv_in.weight, network.conv_in.weight.half().float())


def test_card_is_rendered_for_people(saved):
    text = (saved / "CARD.md").read_text()
    assert text.startswith("# refldm-vq\n")
    assert "a test network \\| with a bar" in text and "| psnr | 30.12 |" in text
    for item in json.loads((saved / "card.json").read_text())["files"]:
        assert item["sha256"] in text


def test_replacing_keeps_only_the_new_folder(saved, tmp_path):
    save_network(tiny_vq(seed=1), "refldm-vq", tmp_path, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["refldm-vq"]
    loaded = load_network("refldm-vq", device="cpu", root=tmp_path)
    assert torch.equal(loaded.encoder.conv_in.weight, tiny_vq(seed=1).encoder.conv_in.weight.half().float())


def test_a_failed_save_leaves_the_old_folder_and_nothing_else(saved, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VQModel, "save_pretrained", full_disk)
    with pytest.raises(DiskFullError, match="No space"):
        save_network(tiny_vq(seed=1), "refldm-vq", tmp_path, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["refldm-vq"]
    verify_network(saved)


def test_missing_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*card\.json is missing"):
        load_network("refldm-vq", root=tmp_path)


def test_missing_shard(saved, tmp_path):
    next(saved.glob("*.safetensors")).unlink()
    with pytest.raises(WeightsError, match=r"safetensors is missing"):
        load_network("refldm-vq", root=tmp_path)


def test_truncated_shard(saved, tmp_path):
    path = next(saved.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated"):
        load_network("refldm-vq", root=tmp_path)


def test_one_flipped_bit(saved, tmp_path):
    path = next(saved.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="altered"):
        load_network("refldm-vq", root=tmp_path)


def test_altered_config(saved, tmp_path):
    path = saved / "config.json"
    path.write_text(path.read_text().replace('"scaling_factor": 1.0', '"scaling_factor": 2.0'))
    with pytest.raises(WeightsError, match="altered"):
        load_network("refldm-vq", root=tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}'])
def test_corrupt_card(saved, tmp_path, content):
    (saved / "card.json").write_text(content)
    with pytest.raises(WeightsError, match=r"card"):
        load_network("refldm-vq", root=tmp_path)


def _reseal(folder):
    """Makes the card agree with the files again, so that only the keys or values are wrong."""
    record = json.loads((folder / "card.json").read_text())
    record["files"] = [store._describe(folder / item["name"]) for item in record["files"]]
    (folder / "card.json").write_text(json.dumps(record))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "nan"])
def test_keys_and_values_must_fit(saved, tmp_path, change):
    path = next(saved.glob("*.safetensors"))
    state = load_file(path)
    if change == "missing":
        del state["encoder.conv_in.weight"]
    elif change == "unexpected":
        state["extra"] = torch.zeros(1)
    elif change == "shape":
        state["encoder.conv_in.weight"] = torch.zeros(1)
    else:
        state["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, path)
    _reseal(saved)
    with pytest.raises(WeightsError, match="not finite" if change == "nan" else "do not fit"):
        load_network("refldm-vq", root=tmp_path)


def test_not_safetensors_at_all(saved, tmp_path):
    next(saved.glob("*.safetensors")).write_bytes(b"not weights")
    _reseal(saved)
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_network("refldm-vq", root=tmp_path)


def test_folder_of_another_kind(saved, tmp_path):
    saved.rename(tmp_path / "refldm-unet")
    with pytest.raises(WeightsError, match="VQModel.*UNet2DModel"):
        load_network("refldm-unet", root=tmp_path)


def test_unknown_names_say_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="refldm-vq"):
        load_network("refldm_vq")
    with pytest.raises(UnknownNameError, match="toy"):
        load_network("judge", profile="toyy")
    with pytest.raises(UnknownNameError, match="refldm-vq"):
        save_network(tiny_vq(), "refldm-vk", tmp_path, CARD)


def test_paper_profile_says_what_to_fetch():
    with pytest.raises(WeightsError, match=r"vqgan\.ckpt.*non-commercial"):
        load_network("refldm-vq", profile="paper")


def test_save_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(ConfigError, match="UNet2DModel"):
        save_network(tiny_vq(), "refldm-unet", tmp_path, CARD)
    with pytest.raises(ConfigError, match="training_data"):
        save_network(tiny_vq(), "refldm-vq", tmp_path, {"summary": "x", "recipe": {"steps": 1}})
    with pytest.raises(ConfigError, match="JSON"):
        save_network(tiny_vq(), "refldm-vq", tmp_path, {**CARD, "results": {"psnr": float("nan")}})
    overflowing = tiny_vq()
    with torch.no_grad():
        overflowing.encoder.conv_in.weight[0] = 1e6
    with pytest.raises(WeightsError, match="overflows"):
        save_network(overflowing, "refldm-vq", tmp_path, CARD)
    assert list(tmp_path.iterdir()) == []
    assert save_network(overflowing, "refldm-vq", tmp_path, CARD, dtype=torch.float32).is_dir()


def test_a_tensor_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_FILE_BYTES", 1000)
    with pytest.raises(WeightsError, match="1000"):
        save_network(tiny_vq(), "refldm-vq", tmp_path, CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="out"):
        save_network(tiny_vq(), "refldm-vq", tmp_path / "out", CARD)
