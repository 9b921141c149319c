"""`refbfr restore --method`: every method gets the options it has, and refuses those it has not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_pdgrad import difface, faces, pdgrad, pgdiff

from refbfr_core.cli.restoration import restore_one
from refbfr_core.errors import ConfigError

PICTURE = SimpleNamespace(image=faces(1, 1))
REFERENCES = [SimpleNamespace(image=faces(1, 2))]


@pytest.mark.parametrize("make", [pdgrad, pgdiff])
def test_guided_methods_take_scale_steps_and_coarse_picture(make):
    call = {"steps": 4, "seed": 3}
    weak, settings = restore_one(make(), PICTURE, REFERENCES, guidance=0.0, coarse="none", **call)
    strong, _ = restore_one(make(), PICTURE, REFERENCES, guidance=0.5, coarse="none", **call)
    assert not torch.equal(weak, strong)
    assert settings["guidance_scale"] == 0.0 and settings["num_inference_steps"] == 4 and "none" in settings["coarse"]


def test_options_a_method_lacks_are_refused():
    with pytest.raises(ConfigError, match="no --guidance"):
        restore_one(difface(), PICTURE, [], steps=4, guidance=0.5, seed=0)
    restored, settings = restore_one(difface(), PICTURE, [], steps=None, guidance=None, seed=0)
    assert restored.shape == (1, 3, 32, 32) and settings["method"] == "DifFace"
