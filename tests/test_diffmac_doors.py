"""Ways to DiffMAC by name and from one's own training, and what its pipeline refuses."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_diffmac import (
    CARD,
    IDENTITY_DIM,
    LABELS,
    SIDE,
    components,
    embedder,
    faces,
    modulation,
    tiny_networks,
    tiny_pipeline,
    tiny_second,
    unet,
    vae,
)
from tiny_pdgrad import shake

from refbfr_core import load_pipeline, weights
from refbfr_core.diffusion import PAPER_SPACINGS, NonFiniteError
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.models import FaceEmbedder
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.pipelines import PIPELINES, DiffMACPipeline, load_second
from refbfr_core.weights import published_root, save_network

WHO = torch.ones(1, IDENTITY_DIM)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of untrained networks, as somebody's own training leaves it."""
    return tiny_networks(tmp_path_factory.mktemp("diffmac"), ("id-0.001", "noise-0.1", "2adain", "no1-noise-0.01"))


def test_the_toy_profile_is_the_method_of_the_paper_in_its_small_sampler(root):
    pipe = load_pipeline("diffmac", device="cpu", root=root)
    assert pipe.resolution == SIDE and pipe.second.config.label == "0.001_id" and pipe.takes_references
    assert (pipe.config.num_inference_steps, pipe.config.timestep_spacing) == (25, PAPER_SPACINGS["diffmac"])
    own = pipe.scheduler.config
    assert (own.prediction_type, own.beta_schedule, own.clip_sample) == ("v_prediction", "scaled_linear", False)
    assert (own.beta_start, own.beta_end, own.num_train_timesteps) == (0.00085, 0.012, 1000)
    assert pipe.prompt().shape == (1, 1, 8) and not pipe.prompt().any() and pipe.unet_two is None
    same = tiny_pipeline()
    torch.testing.assert_close(
        pipe(faces(1), seed=1, num_inference_steps=2).images, same(faces(1), seed=1, num_inference_steps=2).images,
        atol=1e-3, rtol=0,
    )  # fmt: skip
    assert "arXiv 2403.10098" in PIPELINES["diffmac"].paper


def test_nobody_released_the_paper_profile(monkeypatch, tmp_path):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    assert PIPELINES["diffmac"].profiles["paper"]["num_inference_steps"] == 50
    assert PIPELINES["diffmac"].profiles["paper"]["prediction"] == "epsilon"
    for load in (lambda: load_pipeline("diffmac", "paper"), lambda: load_second("id-0.1", "paper")):
        with pytest.raises(WeightsError, match="released no weights.*root="):
            load()
    with pytest.raises(UnknownNameError, match="'diffmac'"):
        load_pipeline("difmac")
    with pytest.raises(UnknownNameError, match="id-0.01"):
        load_second("id-0.02")


def test_own_training_on_the_paper_profile_takes_the_rest_from_the_imported_networks(root, monkeypatch, tmp_path):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    own, imported = tmp_path / "own", published_root("paper")
    for folder, names in ((own, ("diffmac-one", "diffmac-two-id-0.001")), (imported, ("diffmac-unet", "diffmac-vae"))):
        for name in names:
            shutil.copytree(root / name, folder / name)
    with pytest.raises(WeightsError, match="diffmac-prompt"):
        load_pipeline("diffmac", "paper", "cpu", root=own)
    prompt = PromptEmbedding.of(torch.linspace(-1, 1, 24).view(1, 3, 8))
    save_network(prompt, "diffmac-prompt", imported, CARD, torch.float32)
    with pytest.raises(WeightsError, match="'arcface'"):
        load_pipeline("diffmac", "paper", "cpu", root=own)
    load = weights.load_network
    small = {"arcface": embedder()}  # the real class is wider than these networks
    monkeypatch.setattr(
        weights, "load_network", lambda name, *more, **options: small.get(name) or load(name, *more, **options),
        raising=False,
    )  # fmt: skip
    pipe = load_pipeline("diffmac", "paper", "cpu", root=own)
    assert torch.equal(pipe.prompt(), prompt()) and pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.config.num_inference_steps == 50


def test_second_stages_by_label(root):
    pipe = load_pipeline("diffmac", device="cpu", root=root)
    for name in ("noise-0.1", "2adain", "no1-noise-0.01"):
        second, own_unet = load_second(name, device="cpu", root=root)
        assert second.config.label == LABELS[name] and own_unet is None
        other = pipe.with_second(second, own_unet)
        out = other(faces(1), num_inference_steps=1)
        assert out.settings.variant == LABELS[name] and other.modulation is pipe.modulation
    with pytest.raises(WeightsError, match="diffmac-two-none-0.1"):
        load_second("none-0.1", root=root)


def test_denoisers_that_a_training_changed_are_used(tmp_path):
    root = tiny_networks(tmp_path)
    for name, seed in (("diffmac-one-unet", 7), ("diffmac-two-unet", 8)):
        save_network(unet(seed), name, root, CARD, torch.float32)
        pipe = load_pipeline("diffmac", device="cpu", root=root)
        assert torch.equal(pipe.unet.conv_in.weight, unet(7).conv_in.weight)
        assert (pipe.unet_two is None) == (seed == 7)
    assert torch.equal(pipe.unet_two.conv_in.weight, unet(8).conv_in.weight)
    assert torch.equal(load_second("id-0.001", device="cpu", root=root)[1].conv_in.weight, unet(8).conv_in.weight)


def test_the_embedder_of_the_package_serves_a_folder_that_has_none(tmp_path):
    root = tiny_networks(tmp_path)
    (root / "guide").rename(tmp_path / "put aside")
    save_network(tiny_second(identity_dim=256), "diffmac-two-id-0.001", root, CARD, torch.float32)
    assert load_pipeline("diffmac", device="cpu", root=root).embedder.config.embedding_dim == 256


def test_own_training_must_be_complete(tmp_path):
    root = tiny_networks(tmp_path)
    for name in ("diffmac-vae", "diffmac-unet", "diffmac-one", "diffmac-two-id-0.001"):
        (root / name).rename(tmp_path / "put aside")
        with pytest.raises(WeightsError, match=name):
            load_pipeline("diffmac", device="cpu", root=root)
        (tmp_path / "put aside").rename(root / name)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_inference_steps": 0}, ConfigError, "0"),
        ({"timestep_spacing": "amd"}, UnknownNameError, "adm"),
        ({"rows_per_call": 0}, ConfigError, "rows_per_call"),
        ({"seed": 1, "generator": torch.Generator()}, ConfigError, "both seed and generator"),
        ({"identity": "reference"}, UnknownNameError, "references"),
        ({"identity": "references"}, ConfigError, "without references"),
        ({"identity": torch.ones(1, 9)}, ConfigError, r"\(1, 16\)"),
        ({"identity": torch.ones(2, IDENTITY_DIM)}, ConfigError, r"\(1, 16\)"),
        ({"identity": torch.ones(1, IDENTITY_DIM).long()}, ConfigError, "int64"),
        ({"identity": torch.full((1, IDENTITY_DIM), float("nan"))}, ConfigError, "NaN"),
        ({"identity": torch.zeros(1, IDENTITY_DIM)}, ConfigError, "no direction"),
        ({"identity": WHO, "blend": 1.5}, ConfigError, "blend is 1.5"),
        ({"identity": WHO, "blend": float("nan")}, ConfigError, "blend is nan"),
        ({"identity": WHO, "blend": "half"}, ConfigError, "blend is 'half'"),
        ({"share": 1.01}, ConfigError, r"\[0, 1\].*1.01"),
        ({"share": float("nan")}, ConfigError, r"\[0, 1\]"),
        ({"share": "all"}, ConfigError, "share is 'all'"),
        ({"share": True}, ConfigError, "share is True"),
        ({"share": torch.full((1, 8, 1, 1), -0.1)}, ConfigError, r"\[0, 1\].*tensor"),
        ({"share": torch.full((1,), float("nan"))}, ConfigError, r"\[0, 1\]"),
        ({"share": torch.ones(1, 8, 5, 5)}, ConfigError, "broadcast"),
        ({"share": torch.ones(2, 1, 1, 1)}, ConfigError, "broadcast"),
        ({"share": torch.ones(1, 1, 1, 1, 1)}, ConfigError, "broadcast"),
        ({"first": faces(2)}, ImageContractError, r"first is \(2, 3, 32, 32\)"),
        ({"first": 2 * faces(1)}, ImageContractError, "first lies in"),
        ({"first": "X_D1"}, ImageContractError, "first is a builtins.str"),
        ({"references": faces(2, 9, 1)}, ImageContractError, "references are for 2 people"),
        ({"reference_mask": torch.ones(1, 1).bool()}, ConfigError, "without references"),
    ],
)
def test_impossible_calls_are_refused(pipe, changes, error, says):
    with pytest.raises(error, match=says):
        pipe(faces(1, 1), **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (("noise", "stage-one"), {"identity": WHO}, "injects no identity"),
        (("none", "stage-one"), {"identity": "references", "references": faces(1, 9, 1)}, "injects no identity"),
        (("off", "stage-one"), {"share": 0.5}, "no bottleneck"),
        (("noise", "input"), {"first": faces(1)}, "without Stage I"),
    ],
)
def test_what_a_second_stage_lacks_is_refused(kind, changes, says):
    with pytest.raises(ConfigError, match=says):
        tiny_pipeline(*kind)(faces(1, 1), **changes)


def test_other_doors_refuse_as_well(pipe):
    for call in (pipe, pipe.stage_one, pipe.bottleneck):
        with pytest.raises(ImageContractError, match="32×32"):
            call(torch.rand(1, 3, 64, 64))
        with pytest.raises(ImageContractError):
            call(faces(1, 1) * 255)
    for given in (faces(1) - 1, faces(1, 1, 1)[0, 0], "face"):
        with pytest.raises(ImageContractError):
            pipe.identity(given)
    with pytest.raises(ImageContractError, match="without any picture"):
        pipe.identity(faces(2, 1, 2), torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ImageContractError, match="a mask came for one picture"):
        pipe.identity(faces(2, 1), torch.ones(2, 1).bool())
    with pytest.raises(ConfigError, match="no embedder"):
        tiny_pipeline("noise", embedder=None).identity(faces(1))
    with pytest.raises(ConfigError, match="no bottleneck"):
        tiny_pipeline("off").bottleneck(faces(1))
    with pytest.raises(ConfigError, match="injects no identity"):
        tiny_pipeline("noise").bottleneck(faces(1), identity=WHO)
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        pipe.bottleneck(faces(1), share=2)
    for moments in (torch.zeros(1, 4, 16, 16), torch.zeros(8, 16, 16), "Z"):
        with pytest.raises(ImageContractError, match=r"\(B, 8, 16, 16\)"):
            pipe.decode(moments)
    with pytest.raises(NonFiniteError, match="NaN"):
        pipe.decode(torch.full((1, 8, 16, 16), float("nan")))


def changed(network, **changes):
    """A new network with this one's configuration, but for `changes`."""
    own = {key: value for key, value in network.config.items() if not key.startswith("_")}
    return type(network)(**{**own, **changes})


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (lambda: {"vae": changed(vae(), latent_channels=3)}, "latents of the vae have 3"),
        (lambda: {"unet": changed(unet(), sample_size=(16, 16))}, "sample_size is"),
        (lambda: {"unet_two": changed(unet(), sample_size=8)}, "the unet_two's sample_size is 8"),
        (lambda: {"unet_two": changed(unet(), in_channels=5)}, "the unet_two maps 5 to 4"),
        (lambda: {"prompt": PromptEmbedding(1, 9)}, "prompt embedding has width 9"),
        (lambda: {"modulation": changed(modulation(unet()), condition_channels=3)}, "the modulation was made for"),
        (lambda: {"unet": changed(unet(), layers_per_block=1)}, "the modulation was made for"),
        (lambda: {"unet_two": changed(unet(), layers_per_block=1)}, "second stage's modulation was made for"),
        (lambda: {"second": tiny_second(channels=6)}, "moments of 6 channels"),
        (lambda: {"second": tiny_second(statistics_side=8)}, "statistics of side 8"),
        (lambda: {"second": tiny_second(identity_dim=9)}, "identities of 9 numbers, the embedder gives 16"),
        (lambda: {"embedder": FaceEmbedder((8, 8), (1, 1), embedding_dim=12)}, "the embedder gives 12"),
        (lambda: {"embedder": None}, "pass the embedder"),
    ],
)
def test_components_that_do_not_fit_each_other_are_refused(part, says):
    with pytest.raises(ConfigError, match=says):
        DiffMACPipeline(**(components() | part()))


def test_statistics_of_every_place_and_no_embedder_where_none_is_needed():
    assert DiffMACPipeline(**components(statistics_side=16)).resolution == SIDE
    assert DiffMACPipeline(**(components("noise") | {"embedder": None})).takes_references is False
    with pytest.raises(UnknownNameError, match="'adm'"):
        DiffMACPipeline(**components(), timestep_spacing="admm")


@pytest.mark.parametrize("name", ["encoder", "decoder", "unet", "modulation", "second", "embedder"])
def test_a_network_that_returns_nan_stops_the_run(name):
    pipe = tiny_pipeline()
    network = {"encoder": pipe.vae.encoder, "decoder": pipe.vae.decoder}.get(name) or getattr(pipe, name)
    shake(network, 0, float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        pipe(faces(1), num_inference_steps=1)
