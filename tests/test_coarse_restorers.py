"""Coarse restorers: what passes `coarse_picture`, which range a network of a file sees, and what is refused."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, ImageContractError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import from_network, to_network
from refbfr_core.pipelines import coarse, coarse_files, load_pipeline
from refbfr_core.pipelines.coarse import (
    CoarseRangeWarning,
    CoarseRestorer,
    NetworkRestorer,
    PipelineRestorer,
    blurry_restorer,
    coarse_picture,
    coarse_title,
    named_coarse,
)
from refbfr_core.pipelines.coarse_files import codeformer_restorer, spandrel_restorer


def faces(count=2, side=64):
    """(count, 3, side, side) drawn faces in [-1, 1], with dark parts."""
    toy = ToyFaces(64)
    people = toy.identities(count, seed=3)
    pictures = toy.render(people, toy.views(people, 1, seed=3)).images[:, 0]
    return to_network(nn.functional.interpolate(pictures, side, mode="bilinear").clamp(0, 1))


def softer(images):
    return nn.functional.avg_pool2d(images, 5, 1, 2)


# ---- one door


def test_the_result_is_an_ordinary_tensor_without_gradient():
    images = faces().requires_grad_()
    result = coarse_picture(softer, images)
    assert torch.equal(result, softer(images.detach()))
    assert not result.requires_grad and not result.is_inference()

    @torch.inference_mode()
    def inferred(x):
        return softer(x)

    y_c = coarse_picture(inferred, images)
    assert not y_c.is_inference()
    ((images * y_c).sum()).backward()  # an inference tensor could not be saved for this
    assert torch.equal(images.grad, y_c)
    assert isinstance(softer, CoarseRestorer)


def test_a_restorer_that_works_in_place_leaves_the_degraded_picture_alone():
    images = faces()
    before = images.clone()
    result = coarse_picture(lambda x: x.mul_(0.5), images)
    assert torch.equal(images, before) and torch.equal(result, before * 0.5)
    nothing = coarse_picture(blurry_restorer, images)
    assert torch.equal(nothing, before)
    nothing.zero_()
    assert torch.equal(images, before)


def test_modules_run_in_evaluation_mode_and_get_their_own_back():
    network = nn.Dropout(0.5).train()
    images = faces()
    assert torch.equal(coarse_picture(network, images), images)
    assert network.training


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda x: (x, None), ImageContractError, "a tuple"),
        (lambda x: x.mul(127).to(torch.uint8), ImageContractError, "torch.uint8"),
        (lambda x: x[..., ::2], ImageContractError, r"\(2, 3, 64, 32\)"),
        (lambda x: x[:1], ImageContractError, "the same shape"),
        (lambda x: (x + 1) * 127.5, ImageContractError, r"x / 127\.5 - 1"),
        (lambda x: torch.cat([x[:1], x[1:] * float("nan")]), NonFiniteError, r"image\(s\) \[1\]"),
    ],
)
def test_results_that_are_no_pictures(wrong, error, said):
    with pytest.raises(error, match=said):
        coarse_picture(wrong, faces())


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(1, 3, 8, 8) * 255, "expected \\[-1, 1\\]"),
        (torch.rand(3, 8, 8), r"images\[None\]"),
        (torch.rand(1, 1, 8, 8), "shape"),
        (torch.rand(1, 3, 8, 8).double(), "torch.float64"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
    ],
)
def test_inputs_that_are_no_pictures(images, said):
    with pytest.raises(ImageContractError, match=said):
        coarse_picture(softer, images)


def test_overshoot_is_clamped_and_told_when_it_is_more_than_ringing(recwarn):
    images = faces()
    ringing = coarse_picture(lambda x: x * 1.05, images)
    assert torch.equal(ringing, (images * 1.05).clamp(-1, 1))
    assert not recwarn.list
    with pytest.warns(CoarseRangeWarning, match=r"outside \[-1, 1\]"):
        result = coarse_picture(lambda x: x * 1.5, images)
    assert float(result.abs().max()) == 1


def test_a_result_in_the_other_range_is_noticed(recwarn):
    images = faces()
    coarse_picture(softer, images)
    assert not recwarn.list
    with pytest.warns(CoarseRangeWarning, match=r"image\(s\) \[0, 1\].*looks like \[0, 1\]"):
        coarse_picture(lambda x: from_network(softer(x)), images)


# ---- this package's own


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.ones(()))

    def restore(self, images):
        assert not self.training
        return softer(images) * self.mix


def test_a_network_with_a_method_restore(monkeypatch):
    network = Blur().train()
    restorer = NetworkRestorer(network)
    assert torch.equal(coarse_picture(restorer, faces()), softer(faces()))
    assert network.training and "Blur" in coarse_title(restorer)
    with pytest.raises(ConfigError, match="restore"):
        NetworkRestorer(nn.Identity())
    asked = []
    monkeypatch.setattr("refbfr_core.weights.load_network", lambda *a, **k: asked.append((a, k)) or network)
    chosen = named_coarse("network", device="cpu", root="somewhere")
    assert chosen.network is network
    assert asked == [((coarse.COARSE_NETWORK, "toy", "cpu"), {"root": "somewhere"})]


def test_refldm_without_references_as_a_restorer():
    restorer = named_coarse("refldm", device="cpu", num_inference_steps=2)
    images = faces(2, 128)
    both = coarse_picture(restorer, images)
    pipe = load_pipeline("refldm", device="cpu")
    alone = to_network(pipe(from_network(images[1:]), seed=0, num_inference_steps=2).images)
    assert float((both[1:] - alone).abs().max()) <= 2 / 255, "the same noise alone and at any place of a batch"
    with pytest.raises(ConfigError, match="references"):
        PipelineRestorer(pipe, references=images)
    with pytest.raises(ImageContractError, match="128"):
        coarse_picture(restorer, faces(1, 64))


def test_choosing_by_name(tmp_path):
    assert named_coarse("none") is blurry_restorer
    assert named_coarse(softer) is softer and coarse_title(softer) == "softer"
    with pytest.raises(UnknownNameError, match="Did you mean 'network'"):
        named_coarse("netwrok")
    for path in ("missing.pth", str(tmp_path / "nowhere"), tmp_path / "x"):
        with pytest.raises(WeightsError, match="not there"):
            named_coarse(path)
    with pytest.raises(ConfigError, match="num_inference_steps"):
        named_coarse("none", num_inference_steps=3)
    with pytest.raises(ConfigError, match="no coarse restorer"):
        named_coarse(3)


# ---- files that spandrel reads


def tiny_swinir(**changes):
    """A SwinIR as DifFace's coarse model is built: pixels folded by 8, three nearest-neighbour enlargements."""
    SwinIR = pytest.importorskip("spandrel.architectures.SwinIR").SwinIR
    settings = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "mlp_ratio": 2.0}
    settings |= {"img_size": 16, "upscale": 8, "upsampler": "nearest+conv", "start_unshuffle": 8}
    torch.manual_seed(5)
    network = SwinIR(**(settings | changes)).eval()
    # Drawn wide, so that the network does something to a picture.
    for parameter in network.conv_last.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def difface_layout(network):
    """The names in its authors' file: the first convolution stands behind the folding."""
    return {key.replace("conv_first.", "conv_first.1."): value for key, value in network.state_dict().items()}


@pytest.fixture
def swinir_file(tmp_path):
    path = tmp_path / "swinir.pth"
    torch.save({"params_ema": difface_layout(tiny_swinir())}, path)
    return path


def test_swinir_sees_and_gives_unit_range(swinir_file):
    state = torch.get_rng_state()
    restorer = spandrel_restorer(swinir_file, "cpu")
    assert torch.equal(state, torch.get_rng_state()), "loading leaves the caller's random stream alone"
    images = faces()
    network = tiny_swinir()
    with torch.no_grad():
        right = to_network(network(from_network(images)).clamp(0, 1))
        wrong = network(images).clamp(-1, 1)
    result = coarse_picture(restorer, images)
    assert float((result - right).abs().max()) < 1e-5
    assert float((result - wrong).abs().mean()) > 0.05, "the other range gives another picture"
    assert torch.equal(coarse_picture(restorer, images[1:]), result[1:])
    assert (restorer.architecture, restorer.face, restorer.weight) == ("SwinIR", False, None)
    assert restorer.sha256[:12] in restorer.title and "SwinIR" in restorer.title
    assert not any(parameter.requires_grad for parameter in restorer.model.parameters())
    assert torch.equal(named_coarse(str(swinir_file), device="cpu")(images), restorer(images))


def test_other_containers_hold_the_same_network(swinir_file, tmp_path):
    from safetensors.torch import save_file

    images = faces(1)
    expected = spandrel_restorer(swinir_file, "cpu")(images)
    tensors = {key: value.contiguous() for key, value in difface_layout(tiny_swinir()).items()}
    save_file(tensors, tmp_path / "swinir.safetensors")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({f"module.{key}": value.half() for key, value in tensors.items()}, tmp_path / "half.ckpt")
    assert torch.equal(spandrel_restorer(tmp_path / "swinir.safetensors", "cpu")(images), expected)
    assert torch.equal(spandrel_restorer(tmp_path / "old.pth", "cpu")(images), expected)
    half = spandrel_restorer(tmp_path / "half.ckpt", "cpu")
    assert next(half.model.parameters()).dtype == torch.float32
    assert float((half(images) - expected).abs().max()) < 0.05


class Harmful:
    def __reduce__(self):
        return print, ("this was run",)


def test_files_that_are_damaged_or_something_else(swinir_file, tmp_path, capsys):
    whole = swinir_file.read_bytes()
    torch.save(difface_layout(tiny_swinir()), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "legacy.pth").read_bytes()
    broken = {
        "cut.pth": (whole[: len(whole) // 2], "truncated or damaged"),
        "old-cut.pth": (legacy[: len(legacy) // 2], "truncated, damaged"),
        "flipped.pth": (whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:], "damaged|cannot be read"),
        "page.pth": (b"<!DOCTYPE html><html>", "a web page"),
        "empty.safetensors": (b"", "truncated or no safetensors"),
        "pickle.pth": (pickle.dumps(Harmful()), "not a PyTorch checkpoint"),
    }
    for name, (content, said) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=said):
            spandrel_restorer(tmp_path / name, "cpu")
    for legacy_format in (False, True):
        torch.save(Harmful(), tmp_path / "h.pth", _use_new_zipfile_serialization=not legacy_format)
        with pytest.raises(WeightsError, match="refused|more than tensors"):
            spandrel_restorer(tmp_path / "h.pth", "cpu")
    assert "this was run" not in capsys.readouterr().out


def test_networks_that_are_no_restorers_of_colour_pictures(tmp_path):
    def saved(tensors):
        torch.save(tensors, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    with pytest.raises(WeightsError, match="no architecture that spandrel knows .*GFPGAN"):
        spandrel_restorer(saved({"weight": torch.zeros(3)}), "cpu")
    tensors = difface_layout(tiny_swinir())
    tensors.pop("conv_last.bias")
    with pytest.raises(WeightsError, match="do not fit it .*conv_last"):
        spandrel_restorer(saved(tensors), "cpu")
    with pytest.raises(ConfigError, match="enlarges 2 times"):
        spandrel_restorer(saved(tiny_swinir(upscale=2, upsampler="pixelshuffle", start_unshuffle=1).state_dict()))
    grey = tiny_swinir(in_chans=1, upscale=1, upsampler="", start_unshuffle=1)
    with pytest.raises(ConfigError, match="from 1 to 1 channels"):
        spandrel_restorer(saved(grey.state_dict()))
    with pytest.raises(WeightsError, match="holds a SwinIR, not CodeFormer"):
        codeformer_restorer(saved(difface_layout(tiny_swinir())), "cpu")
    with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
        spandrel_restorer(tmp_path / "x.pth", weight=2)


# ---- face networks: which range arrives


class Recorder(nn.Module):
    """Stands in for a network trained on [-1, 1]: keeps what it was called with, answers with a nonlinear picture."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, x, **keywords):
        self.calls.append((x, keywords))
        return torch.tanh(3 * x), None


def library_call(network, images):
    """What a descriptor that does not convert makes of a picture, given and taken in [0, 1] as its documents say."""
    return to_network(network(from_network(images))[0].clamp(0, 1))


@pytest.fixture(scope="module")
def codeformer_file(tmp_path_factory):
    """CodeFormer with one of its nine transformer layers, random, in half precision: a third of the real file."""
    extra = pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer")
    torch.manual_seed(0)
    state = {key: value.half() for key, value in extra.CodeFormer(n_layers=1).state_dict().items()}
    path = tmp_path_factory.mktemp("codeformer") / "codeformer.pth"
    torch.save({"params_ema": state}, path)
    return path


def test_codeformer_is_called_in_its_own_range_with_its_weight(codeformer_file, monkeypatch):
    restorer = codeformer_restorer(codeformer_file, "cpu", weight=0.25)
    assert (restorer.architecture, restorer.face, restorer.weight) == ("CodeFormer", True, 0.25)
    recorder = Recorder()
    monkeypatch.setattr(restorer.model, "forward", recorder.forward)
    images = faces(2, 512)
    result = coarse_picture(restorer, images)
    assert [(tuple(x.shape), keywords) for x, keywords in recorder.calls] == [((1, 3, 512, 512), {"weight": 0.25})] * 2
    assert torch.equal(torch.cat([x for x, _ in recorder.calls]), images), "[-1, 1] arrives, not [0, 1]"
    assert torch.equal(result, torch.tanh(3 * images))
    wrong = library_call(Recorder(), images)
    assert float((result - wrong).abs().mean()) > 0.2, "the documented range would give another picture"
    with pytest.raises(ImageContractError, match="512×512, but 64×64"):
        coarse_picture(restorer, faces(1, 64))
    assert "w = 0.25" in coarse_title(restorer)
    spandrel = pytest.importorskip("spandrel")
    assert "CodeFormer" not in spandrel.MAIN_REGISTRY, "the library's own registry stays as it is"


def test_the_library_still_hands_codeformer_the_picture_as_it_is(codeformer_file):
    """The reason why its descriptor is not used: should this fail, the library converts now and the table must go."""
    descriptor = coarse_files._recognise(
        coarse_files._state_of(codeformer_file), codeformer_file, coarse_files._registry()
    )
    recorder = Recorder()
    descriptor._model = recorder
    images = faces(1, 512)
    result = descriptor(from_network(images))
    assert torch.equal(recorder.calls[0][0], from_network(images)) and recorder.calls[0][1] == {}
    assert float(result.min()) >= 0


def test_gfpgan_is_called_in_its_own_range_with_the_noise_of_its_file():
    recorder = Recorder()
    images = faces(1, 512)
    result = coarse_files._RAW["GFPGAN"](recorder, 0.5)(images)
    assert torch.equal(recorder.calls[0][0], images)
    assert recorder.calls[0][1] == {"return_rgb": False, "randomize_noise": False}
    assert torch.equal(result, torch.tanh(3 * images))


def test_restoreformer_converts_by_itself(tmp_path, monkeypatch):
    module = pytest.importorskip("spandrel.architectures.RestoreFormer")
    torch.manual_seed(1)
    settings = {"n_embed": 16, "embed_dim": 32, "ch": 32, "out_ch": 3, "ch_mult": (1, 1, 1, 1, 1, 1)}
    settings |= {"num_res_blocks": 1, "attn_resolutions": (16,), "dropout": 0.0, "in_channels": 3, "resolution": 512}
    network = module.RestoreFormer(**settings, z_channels=32, double_z=False, enable_mid=True, head_size=8)
    torch.save(network.state_dict(), tmp_path / "restoreformer.pth")
    restorer = spandrel_restorer(tmp_path / "restoreformer.pth", "cpu")
    assert (restorer.architecture, restorer.face) == ("RestoreFormer", True)
    recorder = Recorder()
    monkeypatch.setattr(restorer.model, "forward", recorder.forward)
    images = faces(1, 512)
    result = coarse_picture(restorer, images)
    assert float((recorder.calls[0][0] - images).abs().max()) < 1e-6, "the network sees [-1, 1]"
    assert float((result - torch.tanh(3 * images)).abs().max()) < 1e-6, "and its [-1, 1] comes back"


# ---- libraries that are missing


def test_missing_libraries_name_the_extra(codeformer_file, swinir_file, monkeypatch):
    monkeypatch.setattr(coarse_files, "_extra_installed", lambda: False)
    assert spandrel_restorer(swinir_file, "cpu").architecture == "SwinIR"
    with pytest.raises(MissingExtraError, match=r"spandrel_extra_arches.*refbfr_core\[baselines\]"):
        codeformer_restorer(codeformer_file, "cpu")
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(MissingExtraError, match=r"'spandrel'.*refbfr_core\[baselines\]"):
        spandrel_restorer(swinir_file, "cpu")


def test_inpainting_networks_are_refused(tmp_path):
    descriptor = SimpleNamespace(architecture=SimpleNamespace(id="LaMa"), purpose="Inpainting")
    with pytest.raises(ConfigError, match="inpainting network LaMa"):
        coarse_files._check_usable(descriptor, tmp_path / "lama.pth")
