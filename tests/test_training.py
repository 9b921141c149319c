"""The training loop and its recipes, on a few tiny drawn squares: resume, options, failures, exports."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from drawn_blobs import BlobFaces

from refbfr_core.errors import CacheError, ConfigError, OutputError, UnknownNameError
from refbfr_core.training import RECIPES, read_log, recipe, run
from refbfr_core.training.averaging import AveragedWeights, learning_rate
from refbfr_core.training.loop import TrainingDivergedError
from refbfr_core.training.recipes import as_dict
from refbfr_core.training.records import load_checkpoint
from refbfr_core.weights import NETWORKS, load_network, read_card

COMMON = {"people": 8, "views": 4, "val_people": 4, "resolution": 32, "steps": 6, "batch": 8, "warmup": 2}
COMMON |= {"log_every": 2, "eval_every": 100, "checkpoint_every": 3}
TINY = {
    "embedder-guide": {"widths": (8, 8, 8, 8), "embedding": 16, "batch": 4},
    "embedder-judge": {"widths": (8, 8, 8, 8), "embedding": 16, "batch": 4},
    "refldm-vq": {"widths": (8, 8, 16), "codes": 32, "crop": 16, "restart_every": 1},
    "refldm-base": {"widths": (32, 32), "targets": 4},
    "refldm-identity": {"targets": 4, "batch": 4},
    "refldm-plain": {"widths": (32, 32), "head_width": 32},
    "perceptual": {"widths": (4, 4, 4, 4, 4), "batch": 4},
    "pdgrad-unet": {"channels": (8, 16), "layers": (1, 1), "attention_levels": (1,), "head_width": 8, "groups": 4},
    "coarse": {"channels": (8, 16), "layers": (1, 1), "attention_levels": (1,), "head_width": 8, "groups": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of caches shared by all tests here."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def first_stage(data):
    """Folder with an exported (hardly trained) first stage."""
    return train("refldm-vq", data, data / "vq", steps=2).parent


def train(name, data, out, first_stage=None, **changes):
    options = {**COMMON, **TINY[name], **changes}
    if name == "refldm-base":
        options["first_stage"] = str(first_stage)
    return run(name, out=out, data=data, device="cpu", workers=0, renderer=BlobFaces, **options)


def interrupt_at(monkeypatch, step):
    """Make every task fail as if killed before ``step``."""
    from refbfr_core.training import embedder, first_stage, refldm

    class KilledError(Exception):
        pass

    for task in (embedder.EmbedderTask, first_stage.FirstStageTask, refldm.RefLDMTask):
        original = task.before_step

        def before(self, now, state, original=original):
            if now == step:
                raise KilledError
            original(self, now, state)

        monkeypatch.setattr(task, "before_step", before)
    return KilledError


@pytest.mark.parametrize("name", ["embedder-guide", "refldm-vq", "refldm-base"])
def test_resumed_equals_uninterrupted(name, data, first_stage, tmp_path, monkeypatch):
    train(name, data, tmp_path / "whole", first_stage)
    with monkeypatch.context() as patch:
        killed = interrupt_at(patch, 5)
        with pytest.raises(killed):
            train(name, data, tmp_path / "parts", first_stage)
    assert load_checkpoint(tmp_path / "parts")["step"] == 3
    train(name, data, tmp_path / "parts", first_stage, resume=True)
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 6
    for group in ("module", "memory"):
        assert all(torch.equal(whole[group][key], parts[group][key]) for key in whole[group])
    assert all(torch.equal(v, parts["average"]["network"][k]) for k, v in whole["average"]["network"].items())
    assert [e["step"] for e in read_log(tmp_path / "parts") if e["event"] == "start"] == [0, 3]


# LD-BFR's stages stand on each other; test_training_ldbfr.py trains them as a chain.
ALONE = [name for name in RECIPES if RECIPES[name].network in NETWORKS and not name.startswith(("ldbfr", "diffmac"))]


@pytest.mark.parametrize("name", ALONE)
def test_every_recipe_exports_a_network_that_loads(name, data, first_stage, tmp_path):
    folder = train(name, data, tmp_path / "run", first_stage, steps=2)
    network_name = RECIPES[name].network
    assert folder == tmp_path / "run" / "export" / network_name
    network = load_network(network_name, root=folder.parent)
    average = load_checkpoint(tmp_path / "run")["average"]["network"]
    first = next(iter(average))
    assert torch.equal(network.state_dict()[first], average[first].half().float())
    card = read_card(folder)["card"]
    assert card["recipe"]["name"] == name
    assert (
        card["recipe"]["samples"] == 2 * RECIPES[name].batch or card["recipe"]["samples"] == 2 * card["recipe"]["batch"]
    )
    assert card["results"]
    assert {"start", "step", "end"} <= {event["event"] for event in read_log(tmp_path / "run")}


def test_scale_gives_latents_unit_spread(data, first_stage):
    from refbfr_core.faces.dataset import FaceCache
    from refbfr_core.models import encode_latents
    from refbfr_core.training.data import pictures

    vq = load_network("refldm-vq", root=first_stage)
    val = FaceCache(data, "val", 4, 4, 32, renderer=BlobFaces)
    latents = encode_latents(vq, pictures(val.images, [0, 1, 2, 3], [0, 1, 2, 3]))
    assert float(latents.std()) == pytest.approx(1, abs=0.02)


def test_minutes_stop_early_and_leave_a_checkpoint(data, tmp_path):
    train("refldm-vq", data, tmp_path / "run", steps=10_000, minutes=1e-6)
    assert load_checkpoint(tmp_path / "run")["step"] == COMMON["log_every"]


def test_a_used_folder_is_refused_without_resume(data, tmp_path):
    train("refldm-vq", data, tmp_path / "run", steps=1)
    with pytest.raises(ConfigError, match="resume"):
        train("refldm-vq", data, tmp_path / "run", steps=1)


def test_nothing_to_resume(data, tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume"):
        train("refldm-vq", data, tmp_path / "run", resume=True)


def test_another_recipe_is_not_resumed(data, tmp_path):
    train("refldm-vq", data, tmp_path / "run", steps=1)
    with pytest.raises(ConfigError, match=r"codes: 32 then, 64 now"):
        train("refldm-vq", data, tmp_path / "run", resume=True, codes=64)


def test_a_truncated_checkpoint_is_named(data, tmp_path):
    train("refldm-vq", data, tmp_path / "run", steps=1)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CacheError, match=r"checkpoint\.pt"):
        train("refldm-vq", data, tmp_path / "run", resume=True)


def test_a_file_in_the_way_of_out(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        train("refldm-vq", data, tmp_path / "file" / "run")


def test_divergence_stops_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    from refbfr_core.training import first_stage as module

    train("refldm-vq", data, tmp_path / "run", steps=3)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(module, "edge_difference", lambda a, b: (a - b).sum() * float("inf"))
    with pytest.raises(TrainingDivergedError, match="lower lr"):
        train("refldm-vq", data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_unknown_names_and_values():
    with pytest.raises(UnknownNameError, match="refldm-base"):
        recipe("refldm-bas")
    with pytest.raises(UnknownNameError, match="Did you mean 'batch'"):
        recipe("refldm-vq", bach=3)
    with pytest.raises(UnknownNameError, match="trapezoid"):
        recipe("refldm-vq", lr_schedule="trapezoyd")
    for wrong in ({"steps": "many"}, {"steps": 0}, {"batch": 2.5}, {"ema": 1.0}, {"flips": "perhaps"}):
        with pytest.raises(ConfigError):
            recipe("refldm-base", **wrong)
    with pytest.raises(ConfigError, match="multiple"):
        recipe("refldm-base", batch=30)
    with pytest.raises(ConfigError, match="views"):
        recipe("refldm-base", views=3)
    with pytest.raises(ConfigError, match="add up to 1"):
        recipe("refldm-base", reference_counts="0.5,0.4")


def test_text_is_read_as_the_right_type():
    chosen = recipe("refldm-base", steps="12", lr="1e-3", widths="32, 64", flips="false", reference_counts=(0.5, 0.5))
    assert (chosen.steps, chosen.lr, chosen.widths, chosen.flips) == (12, 1e-3, (32, 64), False)
    assert json.loads(json.dumps(as_dict(chosen)))["widths"] == [32, 64]


def test_minutes_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):
        run("refldm-vq", out=tmp_path, minutes=0)


def test_learning_rate_curves():
    base = replace(RECIPES["refldm-vq"], steps=100, lr=1.0, warmup=10, cooldown=0.2)
    trapezoid = [learning_rate(base, step) for step in range(100)]
    assert trapezoid[0] == pytest.approx(0.1)
    assert trapezoid[9:81] == pytest.approx([1.0] * 72)
    assert trapezoid[90] == pytest.approx(0.5)
    assert learning_rate(replace(base, lr_schedule="cosine"), 50) == pytest.approx(0.5)
    assert learning_rate(replace(base, lr_schedule="constant"), 99) == 1.0


def test_averaged_weights_follow_the_warm_up_of_the_paper():
    network = torch.nn.BatchNorm1d(1)
    average = AveragedWeights(network, 0.9999)
    expected = 1.0
    for k in range(4):
        with torch.no_grad():
            network.weight.fill_(float(k))
        decay = min(0.9999, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
        average.update(network)
        assert float(average.network.weight) == pytest.approx(expected, rel=1e-6)
    assert not average.network.weight.requires_grad
