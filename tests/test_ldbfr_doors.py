"""Ways to LD-BFR: by name, from one's own training, from the command line, and its stage 1 as a coarse restorer."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_ldbfr import SIDE, components, faces, ldbfr, restorer
from tiny_pdgrad import difface, pdgrad
from tiny_pdgrad import faces as small_faces
from typer.testing import CliRunner

from refbfr_core import load_pipeline
from refbfr_core.cli.app import app
from refbfr_core.diffusion import PAPER_SPACINGS, make_timesteps
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.images import from_network, read_image, to_network, write_image
from refbfr_core.pipelines import PIPELINES, DCVQRRestorer, coarse_picture, named_coarse
from refbfr_core.pipelines.coarse import coarse_title
from refbfr_core.weights import save_network

CARD = {"summary": "untrained, for tests", "training_data": "none", "recipe": {"steps": 0}}
NAMES = {"vqc": "ldbfr-vqc", "restorer": "ldbfr-restorer", "vqo": "ldbfr-vqo", "unet": "ldbfr-unet"}
NAMES["injection"] = "ldbfr-hqi-d"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of untrained networks, as somebody's own training leaves it."""
    folder, parts = tmp_path_factory.mktemp("ldbfr"), components()
    for part, name in NAMES.items():
        save_network(parts[part], name, folder, CARD, torch.float32)
    return folder


@pytest.mark.parametrize(("profile", "steps", "prediction"), [("toy", 50, "v_prediction"), ("paper", 200, "epsilon")])
def test_each_profile_has_its_sampler(root, profile, steps, prediction):
    pipe = load_pipeline("ldbfr", profile, "cpu", root=root)
    assert pipe.resolution == SIDE and pipe.injection.variant == "D"
    assert (pipe.config.num_inference_steps, pipe.config.eta) == (steps, 1.0)
    assert pipe.config.timestep_spacing == PAPER_SPACINGS["ldbfr"]
    assert len(make_timesteps(pipe.config.timestep_spacing, 1000, steps)) == steps
    own = pipe.scheduler.config
    assert (own.prediction_type, own.beta_schedule, own.clip_sample) == (prediction, "scaled_linear", False)
    assert (own.beta_start, own.beta_end, own.num_train_timesteps) == (0.0015, 0.0195, 1000)


def test_nobody_released_the_paper_profile():
    for load in (load_pipeline, lambda name, profile: named_coarse("dcvqr", profile=profile)):
        with pytest.raises(WeightsError, match="released no weights.*root="):
            load("ldbfr", "paper")
    with pytest.raises(UnknownNameError, match="'ldbfr'"):
        load_pipeline("ldbfr", "papr")
    with pytest.raises(UnknownNameError, match="'paper'"):
        named_coarse("dcvqr", profile="papr")
    assert "ACM MM 2024" in PIPELINES["ldbfr"].paper


def test_own_training_must_be_complete(root, tmp_path):
    save_network(components()["vqc"], "ldbfr-vqc", tmp_path, CARD, torch.float32)
    for load in (load_pipeline, lambda name, **where: named_coarse("dcvqr", **where)):
        with pytest.raises(WeightsError, match="ldbfr-restorer"):
            load("ldbfr", device="cpu", root=tmp_path)


def test_stage_one_is_a_coarse_restorer(root):
    pipe, lq = ldbfr(), faces(2, 1)
    chosen = named_coarse("dcvqr", device="cpu", root=root)
    expected = pipe.stage_one(pipe.features(lq))
    both = coarse_picture(chosen, to_network(lq))
    torch.testing.assert_close(from_network(both), expected, atol=1e-5, rtol=0)
    assert torch.equal(coarse_picture(chosen, to_network(lq[1:])), both[1:]), "the same alone and in a batch"
    assert coarse_title(chosen) == "DC-VQR, stage 1 of LD-BFR"
    assert "without DCAM" in coarse_title(DCVQRRestorer(pipe.vqc, restorer(pipe.vqc, dual=False)))
    with pytest.raises(ImageContractError, match="16 pixels a side"):
        coarse_picture(chosen, torch.zeros(1, 3, 40, 64))
    with pytest.raises(ConfigError, match="meant for 'refldm'"):
        named_coarse("dcvqr", root=root, num_inference_steps=3)


def test_other_methods_take_stage_one_as_their_coarse_picture(root):
    chosen, lq = named_coarse("dcvqr", device="cpu", root=root), small_faces(1, 1)
    for pipe in (pdgrad(), difface()):
        out = pipe(lq, coarse=chosen, seed=1)
        assert out.settings.coarse == "DC-VQR, stage 1 of LD-BFR"
        assert not torch.allclose(out.images, pipe(lq, coarse="none", seed=1).images, atol=1e-3)


def test_the_command_line_restores_and_says_that_references_are_not_used(root, tmp_path):
    names = {name: tmp_path / f"{name}.png" for name in ("lq", "ref")}
    for seed, path in enumerate(names.values()):
        write_image(path, faces(1, seed))

    def restore(out, *more):
        common = ("--method", "ldbfr", "--weights", root, "--steps", 4, "--device", "cpu")
        return CliRunner().invoke(app, [str(word) for word in ("restore", names["lq"], "--out", out, *common, *more)])

    one, two = tmp_path / "one.png", tmp_path / "two.png"
    done = restore(one, "--ref", names["ref"])
    assert done.exit_code == 0, done.output
    assert "note: ldbfr takes no references: those given do not change the result" in done.stderr
    without = restore(two)
    assert without.exit_code == 0 and "references" not in without.stderr
    assert torch.equal(read_image(one), read_image(two))
    record = json.loads(one.with_suffix(".json").read_text())
    assert record["method"] == "ldbfr" and record["settings"]["references"] == [0]
    assert record["settings"]["branches"] == ["spatial", "channel"] and record["settings"]["injection"] == "D"
    refused = restore(tmp_path / "three.png", "--coarse", "none")
    assert refused.exit_code != 0 and "no --coarse" in refused.stderr
