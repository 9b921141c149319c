"""ReF-LDM's released files: every variant that can be read, and a clear refusal of every one that cannot."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from released_files import SMALL, write_released

from refbfr_core.errors import WeightsError
from refbfr_core.weights.convert import convert_ldm_unet, convert_ldm_vq
from refbfr_core.weights.published_files import read_checkpoint, tensors_digest, tensors_of
from refbfr_core.weights.published_ldm import (
    AVERAGE,
    CONDITIONS,
    FIRST_STAGE,
    LIVE,
    REFLDM_LAYOUT,
    average_name,
    read_refldm,
    read_vqgan,
    schedule_buffers,
)
from refbfr_core.weights.published_sample import sample_refldm, sample_vqgan

# SHA-256 of the names and shapes that the authors' own full-size model has, without the prefixes of its parts.
FULL_SIZE = {
    "unet": "963b17eec8c6706191948b25c8fa357ef2df4bb38ed333b3341749d7239cb5a9",
    "first_stage": "1cc6983aa9d05e189030bee4f94840fe798ba58f29fa56859796f0225f58cebd",
}
SOME_AVERAGE = average_name("input_blocks.0.0.weight")


def load(path, layout=SMALL):
    return read_refldm(tensors_of(read_checkpoint(path), path), layout)


def under(state, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def same_weights(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def state():
    return sample_refldm(SMALL)


# ---- the full size: names and shapes


def digest_of_shapes(shapes):
    lines = sorted(f"{name} {list(shape)}\n" for name, shape in shapes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("part", FULL_SIZE)
def test_full_size_names_and_shapes_are_the_authors(part):
    shapes = REFLDM_LAYOUT.unet_shapes() if part == "unet" else REFLDM_LAYOUT.vq_shapes()
    assert digest_of_shapes(shapes) == FULL_SIZE[part]


def test_full_size_names_and_shapes_in_the_recorded_list(shared_dir):
    listed = json.loads((shared_dir / "parity" / "refldm" / "full_config_keys.json").read_text())
    state = sample_refldm(device="meta")
    assert len(state) == 1493
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith(LIVE)} == listed["unet"]
    assert {name: shape for name, shape in shapes.items() if name.startswith(FIRST_STAGE)} == listed["first_stage"]
    rest = {name: shape for name, shape in shapes.items() if "." not in name}
    assert rest == listed["schedule_buffers"]
    short = [AVERAGE + "diffusion_model" + name.removeprefix(LIVE).replace(".", "") for name in listed["unet"]]
    assert {name for name in shapes if name.startswith(AVERAGE)} == {*short, AVERAGE + "decay", AVERAGE + "num_updates"}
    for part in FULL_SIZE:
        prefix = LIVE if part == "unet" else FIRST_STAGE
        assert (
            digest_of_shapes({name.removeprefix(prefix): shape for name, shape in listed[part].items()})
            == (FULL_SIZE[part])
        )


def test_full_size_is_read_strictly():
    refldm, vqgan = sample_refldm(device="meta"), sample_vqgan(device="meta")
    assert sum(parameter.numel() for parameter in read_refldm(refldm).network.parameters()) == 117_759_368
    assert sum(parameter.numel() for parameter in read_vqgan(vqgan).network.parameters()) == 57_183_515
    for name in (LIVE + "out.2.bias", average_name("out.2.bias"), CONDITIONS[1] + "quant_conv.bias", "betas"):
        with pytest.raises(WeightsError, match="1 missing"):
            read_refldm({key: tensor for key, tensor in refldm.items() if key != name})
    more = torch.empty(3, device="meta")
    with pytest.raises(WeightsError, match=r"1 wrong shape \(diffusion_modelout2bias is \(3,\), not \(8,\)\)"):
        read_refldm(refldm | {average_name("out.2.bias"): more})
    with pytest.raises(WeightsError, match=r"1 superfluous \(encoder\.more\)"):
        read_refldm(refldm | {FIRST_STAGE + "encoder.more": more})
    with pytest.raises(WeightsError, match="1 missing"):
        read_vqgan({key: tensor for key, tensor in vqgan.items() if key != "quantize.embedding.weight"})


def test_schedule_buffers_are_the_recorded_ones(shared_dir):
    import numpy as np

    with np.load(shared_dir / "parity" / "refldm" / "schedule.npz") as recorded:
        shared = schedule_buffers().keys() & set(recorded.files)
        assert len(shared) == 7
        for name in shared:
            torch.testing.assert_close(
                schedule_buffers()[name].float(), torch.from_numpy(recorded[name]), rtol=1e-6, atol=0
            )


# ---- what is taken from a file


@pytest.mark.parametrize("nested", [False, True])
def test_averaged_weights_are_the_ones_taken(tmp_path, state, nested):
    refldm, _ = write_released(tmp_path, refldm=state, nested=nested)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = load(refldm)
    average = {name: state[average_name(name)] for name in SMALL.unet_shapes()}
    expected, live = (convert_ldm_unet(part, SMALL.unet) for part in (average, under(state, LIVE)))
    assert found.averaged is True
    assert "decay 0.9999, num_updates 150000" in found.remarks[0]
    sample = torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        out = found.network(sample, 300).sample
        assert torch.equal(out, expected(sample, 300).sample)
        assert not torch.allclose(out, live(sample, 300).sample, atol=1e-2)


def test_without_an_average_the_last_weights_are_used_with_a_warning(state):
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(AVERAGE)}
    with pytest.warns(UserWarning, match="no averaged weights"):
        found = read_refldm(plain, SMALL)
    assert found.averaged is False
    assert same_weights(found.network, convert_ldm_unet(under(state, LIVE), SMALL.unet))


def test_the_first_stage_is_read_and_its_training_left_out(tmp_path):
    _, path = write_released(tmp_path)
    found = read_vqgan(tensors_of(read_checkpoint(path), path), SMALL)
    state = sample_vqgan(SMALL)
    expected = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
    assert same_weights(found.network, convert_ldm_vq(expected, SMALL.vq, SMALL.n_embed, SMALL.embed_dim))
    assert found.remarks == ("2 tensors of its training (loss.) were left out",)
    flat = read_vqgan(expected, SMALL)
    assert (flat.remarks, flat.first_stage) == ((), found.first_stage)
    assert load(write_released(tmp_path / "again")[0]).first_stage == found.first_stage


def test_parts_that_the_release_can_do_without_may_be_absent(state):
    for absent in ((LIVE,), (FIRST_STAGE, *CONDITIONS), CONDITIONS, tuple(schedule_buffers())):
        found = read_refldm({name: x for name, x in state.items() if not name.startswith(absent)}, SMALL)
        assert found.averaged is True
        assert (found.first_stage is None) == (FIRST_STAGE in absent)
        assert len(found.remarks) == (1 if absent in ((LIVE,), CONDITIONS) else 2)
    uncounted = {name: x for name, x in state.items() if name not in (AVERAGE + "decay", AVERAGE + "num_updates")}
    assert read_refldm(uncounted, SMALL).remarks == ("exponential moving average",)


def test_the_loss_network_is_left_out_and_mentioned(state):
    found = read_refldm(state | {"perceptual_loss.layer1.weight": torch.ones(2)}, SMALL)
    assert "1 tensors of the loss network (perceptual_loss.) were left out" in found.remarks


def test_half_precision_files_give_float32_networks(state):
    halves = {name: x.half() if x.is_floating_point() and "." in name else x for name, x in state.items()}
    found = read_refldm(halves, SMALL)
    assert {parameter.dtype for parameter in found.network.parameters()} == {torch.float32}


def test_digest_sees_names_shapes_and_values_but_not_order():
    a, b = torch.arange(6.0), torch.ones(2)
    assert tensors_digest({"a": a, "b": b}) == tensors_digest({"b": b, "a": a})
    for other in ({"a": a, "c": b}, {"a": a.view(2, 3), "b": b}, {"a": a + 1, "b": b}, {"a": a}):
        assert tensors_digest(other) != tensors_digest({"a": a, "b": b})


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(SOME_AVERAGE), r"model_ema\. is not as in .* 1 missing \(diffusion_modelinput_blocks00weight"),
        (lambda s: s.pop(LIVE + "out.2.bias"), r"model\.diffusion_model\. .* 1 missing \(out\.2\.bias\)"),
        (lambda s: s.update({AVERAGE + "more": torch.ones(1)}), r"1 superfluous \(more\)"),
        (lambda s: s.update(logvar=torch.ones(1000)), r"1 names that no released file has \(logvar\)"),
        (lambda s: s.update({"optimizer.x": torch.ones(1)}), r"no released file has \(optimizer\.x\)"),
        (lambda s: s.update({SOME_AVERAGE: torch.ones(3)}), r"wrong shape .*is \(3,\), not \(32, 16, 3, 3\)"),
        (lambda s: s.update({SOME_AVERAGE: s[SOME_AVERAGE].int()}), "1 not floating"),
        (lambda s: s.pop("posterior_variance"), r"the schedule is not as .* 1 missing \(posterior_variance\)"),
        (lambda s: s.update(betas=s["betas"] * 1.01), r"betas\[999\] is 0\.015655, not 0\.0155"),
        (lambda s: s.pop(CONDITIONS[0] + "quant_conv.bias"), r"cond_stage_model\.lq_image\. .* 1 missing"),
        (
            lambda s: s.update({CONDITIONS[1] + "quant_conv.bias": s[FIRST_STAGE + "quant_conv.bias"] + 1e-3}),
            r"two different VQGANs: 1 tensors under cond_stage_model\.ref_image\. .*\(quant_conv\.bias\)",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith((LIVE, AVERAGE))],
            "holds no denoiser",
        ),
    ],
)
def test_a_state_that_is_not_the_released_one_is_refused(state, change, message):
    change(state)
    with pytest.raises(WeightsError, match=message):
        read_refldm(state, SMALL)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(state, value):
    for name in (SOME_AVERAGE, FIRST_STAGE + "quant_conv.bias"):
        broken = {key: tensor.clone() for key, tensor in state.items()}
        broken[name].view(-1)[0] = value
        with pytest.raises(WeightsError, match=f"NaN or infinity .*{name}"):
            read_refldm(broken, SMALL)
    stage = sample_vqgan(SMALL)
    stage["quantize.embedding.weight"][3, 3] = value
    with pytest.raises(WeightsError, match=r"NaN or infinity .*quantize\.embedding"):
        read_vqgan(stage, SMALL)


def test_another_configuration_is_refused(state):
    with pytest.raises(WeightsError, match="missing"):
        read_refldm(state, REFLDM_LAYOUT)
    with pytest.raises(WeightsError, match=r"vqgan\.ckpt is not as in ReF-LDM's release"):
        read_vqgan(sample_vqgan(SMALL), REFLDM_LAYOUT)


# ---- the file itself


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_truncated_files(tmp_path, kept):
    path, _ = write_released(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=r"truncated or damaged.*Download it again"):
        load(path)


def test_a_flipped_bit_in_the_values(tmp_path, state):
    path, _ = write_released(tmp_path, refldm=state)
    content = bytearray(path.read_bytes())
    place = content.find(state[SOME_AVERAGE].numpy().tobytes()[:64])
    content[place + 8] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(WeightsError, match="checksum"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes of something else"),
        (b"\n<!DOCTYPE html><html>Not Found</html>", "a web page"),
        (pickle.dumps({"a": 1}), "not a PyTorch checkpoint"),
        (os.urandom(1000), "not a PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    (tmp_path / "refldm.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(tmp_path / "refldm.ckpt")


def test_no_file_and_another_archive(tmp_path):
    with pytest.raises(WeightsError, match="is not there"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(WeightsError, match="a folder"):
        read_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(WeightsError, match=r"zip archive \(a\.txt\)"):
        read_checkpoint(tmp_path / "photos.zip")


class Runs:
    """Unpickled the ordinary way, it calls a function of the attacker's choice."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _payloads(target):
    yield Runs(os.system, f"echo gotcha > {target}")
    yield Runs(exec, f"open({str(target)!r}, 'w').write('gotcha')")
    yield Runs(open, str(target), "w")
    yield Runs(getattr, "text", "upper")


@pytest.mark.parametrize("which", range(4))
def test_a_malicious_pickle_is_never_executed(tmp_path, state, which):
    target = tmp_path / "written-by-the-pickle"
    payload = list(_payloads(target))[which]
    with pytest.raises(WeightsError, match=r"refused: besides tensors it asks for .* Nothing was run"):
        load(write_released(tmp_path, refldm=state | {SOME_AVERAGE: payload})[0])
    with pytest.raises(WeightsError, match="refused"):
        load(write_released(tmp_path / "outside", refldm={"state_dict": state, "epoch": payload})[0])
    assert not target.exists()
    if which < 3:  # the same file does write when it is unpickled the ordinary way
        torch.load(tmp_path / "refldm.ckpt", weights_only=False)
        assert target.exists()


def test_a_pickle_that_hides_behind_a_library_is_not_executed_either(tmp_path, state):
    from numpy.testing._private.utils import runstring

    target = tmp_path / "written-by-the-pickle"
    payload = Runs(runstring, f"open({str(target)!r}, 'w').write('gotcha')", {})
    path, _ = write_released(tmp_path, refldm=state | {SOME_AVERAGE: payload})
    with pytest.raises(WeightsError, match="no dense tensors"):
        load(path)
    assert not target.exists()


def test_a_pickle_of_another_protocol_or_without_end_is_refused(tmp_path):
    for name, content in (("short", b"\x80\x02}q"), ("protocol", pickle.dumps({"a": 1}, protocol=4)), ("none", b"")):
        path = tmp_path / f"{name}.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
        with pytest.raises(WeightsError, match="Nothing in it was run"):
            read_checkpoint(path)


def test_what_a_training_framework_leaves_in_a_file_is_stood_in_for(tmp_path, state, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    parsing.AttributeDict = type("AttributeDict", (dict,), {"__module__": parsing.__name__})
    content = {
        "state_dict": OrderedDict(state),
        "callbacks": {module.ModelCheckpoint: {"best": torch.tensor(0.5)}},
        "hyper_parameters": parsing.AttributeDict(lr=5e-5, hook=module.ModelCheckpoint()),
    }
    with monkeypatch.context() as there:
        for each in (module, parsing):
            for name in ("pytorch_lightning", each.__name__.rpartition(".")[0]):
                there.setitem(sys.modules, name, types.ModuleType(name))
            there.setitem(sys.modules, each.__name__, each)
        torch.save(content, tmp_path / "refldm.ckpt")
    safe = set(torch.serialization.get_safe_globals())
    assert load(tmp_path / "refldm.ckpt").averaged is True
    assert set(torch.serialization.get_safe_globals()) == safe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({"state_dict": 3}, "that is none"),
        ({"state_dict": {"a": torch.ones(1)}, "b": torch.ones(1)}, r"beside 'state_dict' \(b\)"),
        ({"a": torch.ones(1), "epoch": 3}, r"no dense tensors \(epoch\)"),
        ({"a": torch.eye(3).to_sparse()}, "no dense tensors"),
        ({"a": torch.empty(3, device="meta")}, "no dense tensors"),
    ],
)
def test_contents_that_are_no_state_dictionary(tmp_path, content, message):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=message):
        tensors_of(read_checkpoint(tmp_path / "x.ckpt"), "x.ckpt")
