"""Training the plain network and the arms that start from it: same batches, falling loss, exports that come back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_blobs import BlobFaces

from refbfr_core.benchmark.mechanisms_restore import load_arm
from refbfr_core.errors import ConfigError, UnknownNameError, WeightsError
from refbfr_core.models.mechanisms import MECHANISMS, load_mechanism
from refbfr_core.training import recipe, recipes, run
from refbfr_core.training.mechanisms import MechanismTask, PlainTask
from refbfr_core.training.refldm import denoising_error, predict
from refbfr_core.weights import save_network

SMALL = {"widths": (16, 32), "head_width": 16, "precision": "no", "warmup": 1}
CARD = {"summary": "s", "training_data": {"pictures": "p", "seed": 0}, "recipe": {"command": "c", "steps": 1}}
CARD |= {"hardware": {"device": "cpu"}, "results": {"a": 1.0}, "limits": "l", "licence": "Apache-2.0"}


def latents(people=6, views=6, variants=2):
    """Random latents in the layout of a `LatentCache`: every view of a person resembles the others."""
    draws = np.random.default_rng(3)
    person = draws.normal(size=(people, 1, 1, 4, 8, 8))
    clean = person + 0.2 * draws.normal(size=(people, 1, views, 4, 8, 8))
    ruined = 0.3 * clean[:, :, :, None] + 0.3 * draws.normal(size=(people, 1, views, variants, 4, 8, 8))
    return SimpleNamespace(clean=clean.astype(np.float16), ruined=ruined.astype(np.float16), folder=Path("latents"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of an exported plain network, untrained."""
    folder = tmp_path_factory.mktemp("plain")
    task = PlainTask(recipe("refldm-plain", **SMALL), latents(), latents())
    save_network(task.network, "refldm-unet", folder, CARD)
    return folder


def arm(name, start, **changes):
    options = {**SMALL, "mechanism": name, "start": str(start), **changes}
    return MechanismTask(recipe("refldm-mechanism", **options), latents(), latents())


def test_the_two_lists_of_mechanisms_agree():
    assert tuple(MECHANISMS) == recipes.MECHANISMS


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_a_few_steps_lower_the_loss(name, start):
    task = arm(name, start, reference_counts=(0.0, 0.0, 1.0), drop_references=0.0)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    batch, losses = task.batch(0, 0, 1), []
    for _ in range(8):
        loss, metrics = task.loss(task.module, batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses
    assert "refs2" in metrics


def test_arms_see_the_same_batches(start):
    first, second = (arm(name, start).batch(5, 0, 1) for name in ("channel", "cross"))
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["cachekv", "channel", "cross"])
def test_references_are_prepared_once_for_all_targets_of_a_person(name, start, monkeypatch):
    task = arm(name, start)
    seen = []
    original = type(task.network)._prepare
    monkeypatch.setattr(
        type(task.network), "_prepare", lambda self, x, mask: (seen.append(len(x)), original(self, x, mask))[1]
    )
    batch = {**task.batch(0, 0, 1), "references": torch.randn(4, 2, 4, 8, 8)}
    assert len(denoising_error(task.network, batch, task.schedule, "v_prediction")) == 16
    assert seen == [4]


def test_without_references_every_weight_still_gets_a_gradient(start):
    task = arm("cross", start)
    batch = task.batch(0, 0, 1)
    batch["references"] = batch["references"][:, :0]
    task.loss(task.module, batch, 0)[0].backward()
    assert all(weight.grad is not None for weight in task.module.parameters())


def test_the_plain_network_and_cachekv_give_the_same_prediction(start):
    """`predict` takes a stock network or a mechanism: both mean CacheKV here."""
    task = arm("cachekv", start)
    batch = task.batch(0, 0, 1)
    sample, references = torch.cat([batch["clean"], batch["ruined"]], 1), torch.randn(4, 2, 4, 8, 8)
    one, other = (predict(each, sample, batch["timesteps"], references) for each in (task.network, task.network.unet))
    assert torch.allclose(one, other, atol=1e-6)


def test_report_covers_every_arm(start):
    report = arm("channel", start).evaluate(arm("channel", start).network.eval())
    assert report["val_right2"] == pytest.approx(report["val_none"], abs=1e-5), "fresh channels are not used yet"


def test_bad_options_are_refused_with_their_cure(start, tmp_path):
    with pytest.raises(ConfigError, match="start=FOLDER"):
        arm("cross", "")
    with pytest.raises(WeightsError, match="no weights at"):
        arm("cross", tmp_path)
    with pytest.raises(ConfigError, match="widths"):
        arm("cross", start, widths=(32, 32))
    with pytest.raises(UnknownNameError, match="cross"):
        recipe("refldm-mechanism", mechanism="crosss")
    with pytest.raises(ConfigError, match="at least three probabilities"):
        recipe("refldm-mechanism", reference_counts=(0.5, 0.5))


def test_from_drawn_faces_to_an_arm_that_loads(tmp_path):
    options = {"people": 8, "views": 4, "val_people": 4, "resolution": 32, "steps": 3, "log_every": 1, "warmup": 1}
    common = {"data": tmp_path / "data", "device": "cpu", "workers": 0, "renderer": BlobFaces, **options}
    vq = run("refldm-vq", out=tmp_path / "vq", widths=(8, 8, 16), codes=32, crop=16, batch=8, **common).parent
    common |= {"first_stage": str(vq), "widths": (16, 32), "head_width": 16, "batch": 8}
    plain = run("refldm-plain", out=tmp_path / "plain", **common)
    options = {"start": str(plain.parent), "reference_counts": (0.2, 0.4, 0.4), "targets": 4, "mechanism": "channel"}
    folder = run("refldm-mechanism", out=tmp_path / "channel", **common, **options)
    made = load_mechanism(folder)
    assert made.name == "channel" and made.max_references == 2
    loaded = load_arm(tmp_path / "channel", "cpu")
    assert (loaded.schedule, loaded.prediction, loaded.patch_size) == ("refldm", "v_prediction", 2)
    assert loaded.training["recipe"]["steps"] == 3 and len(loaded.training["facts"]["start"]) == 12
