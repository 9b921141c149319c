"""`refbfr restore --method diffmac`: references are optional, lambda and blend are its own options."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_diffmac import faces, tiny_networks, tiny_pipeline
from tiny_pdgrad import difface
from typer.testing import CliRunner

from refbfr_core.cli.app import app
from refbfr_core.cli.restoration import restore_one
from refbfr_core.errors import ConfigError
from refbfr_core.images import read_image, write_image

PICTURE = SimpleNamespace(image=faces(1, 1))
REFERENCES = [SimpleNamespace(image=faces(1, seed)) for seed in (2, 3)]
CALL = {"steps": 2, "guidance": None, "seed": 3}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_one_picture_is_restored_as_the_pipeline_does_it(pipe):
    restored, settings = restore_one(pipe, PICTURE, REFERENCES, **CALL, share=0.25, blend=0.5)
    stacked = torch.cat([each.image for each in REFERENCES])[None]
    expected = pipe(PICTURE.image, stacked, num_inference_steps=2, seed=3, share=0.25, blend=0.5)
    assert torch.equal(restored, expected.images)
    assert (settings["share"], settings["blend"], settings["references"]) == (0.25, 0.5, (2,))
    assert settings["kept"] == (0.25,) and json.loads(json.dumps(settings, allow_nan=False))["identity"] == "references"


def test_options_without_a_meaning_are_refused(pipe):
    with pytest.raises(ConfigError, match="no --lambda"):
        restore_one(difface(), PICTURE, [], **CALL, share=0.5)
    with pytest.raises(ConfigError, match="no --guidance"):
        restore_one(pipe, PICTURE, [], **(CALL | {"guidance": 2.0}))
    with pytest.raises(ConfigError, match="needs --ref"):
        restore_one(pipe, PICTURE, [], **CALL, blend=0.5)
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        restore_one(pipe, PICTURE, [], **CALL, share=1.5)


def test_the_command_line_restores_with_and_without_references(tmp_path):
    root = tiny_networks(tmp_path / "networks")
    names = {name: tmp_path / f"{name}.png" for name in ("lq", "ref")}
    for seed, path in enumerate(names.values()):
        write_image(path, faces(1, seed))

    def restore(name, *more):
        common = ("--method", "diffmac", "--weights", root, "--steps", 2, "--device", "cpu")
        words = ("restore", names["lq"], "--out", tmp_path / f"{name}.png", *common, *more)
        return CliRunner().invoke(app, [str(word) for word in words])

    for name, more, said in (
        ("own", (), "note: no --ref given: restoring without references"),
        ("ref", ("--ref", names["ref"]), ""),
        ("mixed", ("--ref", names["ref"], "--blend", 0.5, "--lambda", 0.2), ""),
    ):
        done = restore(f"{name}-out", *more)
        assert done.exit_code == 0, done.output
        assert said in done.stderr and "takes no references" not in done.stderr
    pictures = {name: read_image(tmp_path / f"{name}-out.png") for name in ("own", "ref", "mixed")}
    settings = {name: json.loads((tmp_path / f"{name}-out.json").read_text())["settings"] for name in pictures}
    assert not torch.equal(pictures["own"], pictures["ref"])
    assert not torch.equal(pictures["ref"], pictures["mixed"])
    assert [settings[name]["identity"] for name in pictures] == ["own", "references", "references"]
    assert settings["own"]["variant"] == "0.001_id" and settings["own"]["share"] is None
    assert settings["mixed"]["share"] == 0.2 and settings["mixed"]["blend"] == 0.5
    refused = restore("refused", "--lambda", 2)
    assert refused.exit_code != 0 and "lambda must lie in [0, 1]" in refused.stderr
    assert not (tmp_path / "refused.png").exists()
