"""The full-size recipe of ReF-LDM in miniature: what is drawn for a slot, the loss, resume, several processes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from drawn_datasets import change_rows, make_ffhq_ref
from tiny_refldm_full import TINY, TinyEmbedder, as_arguments, save_networks, tiny_first_stage
from typer.testing import CliRunner

from refbfr_core.errors import ConfigError, ImageFileError, RefbfrError, UnknownNameError, WeightsError
from refbfr_core.faces import open_reference_dataset
from refbfr_core.models import encode_latents
from refbfr_core.pipelines.references import encode_references
from refbfr_core.training import PAPER_RECIPES, paper_recipe, read_log, run_full
from refbfr_core.training.averaging import learning_rate
from refbfr_core.training.launch_full import load_initial
from refbfr_core.training.loop import make_optimizer
from refbfr_core.training.records import load_checkpoint
from refbfr_core.training.refldm_full import RefLDMFullTask, make_full_denoiser
from refbfr_core.weights import load_network, read_card


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A miniature FFHQ-Ref of drawn faces; never change it."""
    return make_ffhq_ref(tmp_path_factory.mktemp("data") / "FFHQ-Ref", (3, 2, 1), views=3).root


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return save_networks(tmp_path_factory.mktemp("networks"))


def splits(root, resolution=32):
    return tuple(open_reference_dataset("ffhq-ref", root, split, resolution=resolution) for split in ("train", "val"))


def make_task(root, name="refldm", **changes):
    options = {key: changes.pop(key) for key in ("micro_batch", "workers") if key in changes}
    chosen = paper_recipe(name, **{**TINY, **changes})
    return RefLDMFullTask(chosen, *splits(root), tiny_first_stage(), TinyEmbedder(), **options)


def train(root, out, name="refldm", **options):
    options = {"first_stage": tiny_first_stage(), "identity": TinyEmbedder(), "initial": "scratch", **options}
    return run_full(name, out=out, dataset=root, device="cpu", workers=0, **{**TINY, **options})


def losses(out):
    return {event["step"]: event["loss"] for event in read_log(out) if event["event"] == "step"}


def same_weights(a, b, tolerance=0.0):
    return all(float((a[key] - b[key]).abs().max()) <= tolerance for key in a)


# ---- the recipes


def test_the_networks_at_full_size_have_the_papers_sizes():
    from refbfr_core.weights.convert import convert_ldm_vq
    from refbfr_core.weights.published_ldm import REFLDM_LAYOUT as LAYOUT

    for name in PAPER_RECIPES:
        with torch.device("meta"):
            network = make_full_denoiser(paper_recipe(name), 8, 64)
        assert sum(parameter.numel() for parameter in network.parameters()) == 117_759_368
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in LAYOUT.vq_shapes().items()}
    vq = convert_ldm_vq(tensors, LAYOUT.vq, LAYOUT.n_embed, LAYOUT.embed_dim)
    assert sum(parameter.numel() for parameter in vq.parameters()) == 57_183_515


def test_the_recipes_are_the_papers():
    first, second = PAPER_RECIPES["ldm"], PAPER_RECIPES["refldm"]
    assert (first.batch, first.references, first.needs_identity) == (40, 0, False)
    assert (second.batch, second.references, second.steps) == (8, 5, 150_000)
    assert (second.identity_weight, second.identity_scale) == (0.1, "sqrt_alpha_bar")
    assert {recipe.lr for recipe in (first, second)} == {5e-5}
    assert {recipe.ema for recipe in (first, second)} == {0.9999}
    assert (second.drop_lq, second.drop_references) == (0.1, 0.1)
    assert [learning_rate(second, step) for step in (0, 4_999, 9_999, 149_999)] == pytest.approx(
        [5e-9, 2.5e-5, 5e-5, 5e-5]
    )
    assert learning_rate(first, 0) == 5e-5


def test_the_optimiser_is_adamw_with_its_defaults(root):
    task = make_task(root)
    optimizer = make_optimizer(task.module, task.recipe, torch.device("cpu"))
    usual = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters()).defaults
    for group in optimizer.param_groups:
        assert (group["betas"], group["weight_decay"], group["eps"]) == (usual["betas"], usual["weight_decay"], 1e-8)


def test_impossible_recipes_are_refused():
    for wrong in ({"identity_scale": "sqrt_alpha"}, {"degradation": "refldm-trian"}, {"perspective": 2}, {"flip": -1}):
        with pytest.raises(RefbfrError):
            paper_recipe("refldm", **wrong)
    with pytest.raises(UnknownNameError, match="ldm, refldm"):
        paper_recipe("refldm-base")


def test_the_untrained_network_predicts_no_noise(root):
    task = make_task(root)
    parts = task.loss(task.network, task.batch(0, 0, 1)[0], 0)[1]
    noise = task.batch(0, 0, 1)[0]["noise"]
    assert float(parts["denoising"][0]) == pytest.approx(float(noise.square().mean()), rel=1e-5)


# ---- what is drawn for a slot


def pictures(task, step, rank, world):
    return [piece for piece in task.batch(step, rank, world) if float(piece["weight"])]


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_however_the_work_is_shared_every_slot_is_the_same(root, world, micro_batch):
    whole = make_task(root, batch=4, micro_batch=4)
    (expected,) = whole.batch(7, 0, 1)
    shared = make_task(root, batch=4, micro_batch=micro_batch)
    pieces = [pictures(shared, 7, rank, world) for rank in range(world)]
    for key in ("truth", "lq", "references", "noise", "timesteps", "keep"):
        joined = torch.cat([piece[key] for own in pieces for piece in own])
        assert torch.equal(joined, expected[key]), key
    weights = [float(piece["weight"]) for own in pieces for piece in own]
    assert sum(weights) / world == pytest.approx(1)
    assert len({len(shared.batch(7, rank, world)) for rank in range(world)}) == 1, "processes must take equal steps"


def test_a_pass_visits_every_target_once_and_slots_differ(root):
    task = make_task(root, batch=3, flip=0)
    pieces = [piece for step in range(3) for piece in task.batch(step, 0, 1)]
    train, _ = splits(root)
    expected = {np.asarray(train.open_truth(row)).transpose(2, 0, 1).tobytes() for row in range(9)}
    assert {piece["truth"][0].numpy().tobytes() for piece in pieces} == expected
    assert len({float(piece["noise"][0, 0, 0, 0]) for piece in pieces}) == 9
    assert len({int(piece["timesteps"][0]) for piece in pieces}) > 6


def test_worker_processes_make_the_same_samples(root):
    here, there = make_task(root, workers=0), make_task(root, workers=2)
    for step in (3, 4):
        for a, b in zip(here.batch(step, 0, 1), there.batch(step, 0, 1), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_weights_of_the_list_draw_targets(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    mapping = tmp_path / "copy/reference_mapping/train_references.csv"
    change_rows(mapping, lambda rows: [row.update(weight=str(float(i == 4))) for i, row in enumerate(rows)])
    task = make_task(tmp_path / "copy", weighted=True, flip=0)
    only = np.asarray(task.loader.maker.dataset.open_truth(4)).transpose(2, 0, 1)
    for piece in task.batch(0, 0, 1):
        assert np.array_equal(piece["truth"][0].numpy(), only)


def test_a_mirrored_sample_mirrors_everything_and_turns_the_strip_round(root):
    plain, mirrored = (make_task(root, flip=chance).batch(1, 0, 1)[0] for chance in (0, 1))
    assert torch.equal(mirrored["truth"], plain["truth"].flip(-1))
    assert torch.equal(mirrored["lq"], plain["lq"].flip(-1))
    strip = torch.cat(list(plain["references"][0]), -1)
    assert torch.equal(torch.cat(list(mirrored["references"][0]), -1), strip.flip(-1))
    assert not torch.equal(plain["references"][0, 0], plain["references"][0, 1])


def test_conditions_are_dropped_as_often_as_the_recipe_says(root):
    task = make_task(root, drop_lq=0.1, drop_references=0.3)
    kept = torch.stack([task._draw(step, 0)[2] for step in range(600)])
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    dropped = 1 - kept.mean(0)
    assert float(dropped[0]) == pytest.approx(0.1, abs=0.04)
    assert float(dropped[1]) == pytest.approx(0.3, abs=0.06)
    timesteps = torch.stack([task._draw(step, 0)[1] for step in range(600)]).float()
    assert float(timesteps.mean()) == pytest.approx(499.5, abs=40)


def test_a_dropped_condition_does_not_reach_the_network(root):
    task = make_task(root)
    for parameter in task.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    piece = task.batch(0, 0, 1)[0]
    changed = {key: piece | {key: 255 - piece[key]} for key in ("lq", "references")}
    for keep in ([0, 0], [0, 1], [1, 0], [1, 1]):
        mask = {"keep": torch.tensor([keep]).float()}
        usual = task.loss(task.network, piece | mask, 0)[0]
        for key, kept in zip(("lq", "references"), keep, strict=True):
            same = torch.equal(task.loss(task.network, changed[key] | mask, 0)[0], usual)
            assert same == (not kept), (keep, key)


def test_references_are_encoded_as_one_strip(root):
    task = make_task(root, micro_batch=2)
    piece = task.batch(0, 0, 1)[0]
    clean, lq, references = task.encode({key: piece[key] for key in ("truth", "lq", "references")})
    assert torch.allclose(clean, encode_latents(task.vq, piece["truth"].float() / 255), atol=1e-5)
    assert torch.allclose(lq, encode_latents(task.vq, piece["lq"].float() / 255), atol=1e-5)
    strip = encode_references(task.vq, piece["references"].float() / 255, encoding="strip")
    alone = encode_references(task.vq, piece["references"].float() / 255, encoding="separate")
    assert torch.allclose(references, strip, atol=1e-5)
    assert not torch.allclose(references, alone, atol=1e-2)


def test_augmentation_repeats_and_keeps_to_its_bounds(root):
    from refbfr_core.training.augment import ReferenceAugmentation

    picture = splits(root, 64)[0].open_truth(0)
    augment = ReferenceAugmentation()
    before = torch.get_rng_state()
    once, again, other = (np.asarray(augment(picture, seed)).astype(int) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    still = ReferenceAugmentation(0, 0, 0, 0, 0, 0, (1, 1), perspective=0, flip=0)
    assert np.array_equal(np.asarray(still(picture, 1)), np.asarray(picture))
    mirrored = np.asarray(replace(still, flip=1)(picture, 1))
    assert np.array_equal(mirrored, np.asarray(picture)[:, ::-1])


def test_perspective_happens_always_in_the_code_and_half_of_the_time_in_the_paper(root):
    from refbfr_core.training.augment import ReferenceAugmentation

    picture = splits(root, 64)[0].open_truth(0)
    still = ReferenceAugmentation(0, 0, 0, 0, 0, 0, (1, 1), perspective=0, flip=0)
    for chance, least, most in ((1.0, 60, 60), (0.5, 15, 45)):
        augment = replace(still, perspective=chance)
        bent = [np.any(np.asarray(augment(picture, seed)) != np.asarray(picture)) for seed in range(60)]
        assert least <= sum(bent) <= most


# ---- training


def test_pieces_add_up_to_the_batch(root):
    """Gradient accumulation: one by one or all at once, the gradient is that of the whole batch."""
    gradients = []
    for micro_batch in (1, 2, 3):
        task = make_task(root, micro_batch=micro_batch)
        torch.manual_seed(0)
        torch.nn.init.normal_(task.network.conv_out.weight, std=0.1)
        total = 0.0
        for piece in task.batch(0, 0, 1):
            loss, metrics = task.loss(task.network, piece, 0)
            loss.backward()
            total += float(loss.detach())
        gradients.append((total, task.network.conv_in.weight.grad))
    for total, gradient in gradients[1:]:
        assert total == pytest.approx(gradients[0][0], rel=1e-5)
        assert torch.allclose(gradient, gradients[0][1], rtol=1e-3, atol=1e-6)


def test_both_stages_train_export_and_hand_over(root, tmp_path):
    train(root, tmp_path / "one", "ldm", references=0, identity_weight=0.0)
    folder = train(root, tmp_path / "two", initial=tmp_path / "one", steps=2)
    assert all(np.isfinite(list(losses(tmp_path / name).values())).all() for name in ("one", "two"))
    end = [event for event in read_log(tmp_path / "two") if event["event"] == "end"][0]["results"]
    assert {"val_none", "val_right", "val_wrong", "gain", "harm"} == set(end)
    step = [event for event in read_log(tmp_path / "two") if event["event"] == "step"][0]
    assert step["loss"] == pytest.approx(step["denoising"] + 0.5 * step["identity"], rel=1e-3)
    assert folder == tmp_path / "two/export/refldm-unet"
    network = load_network("refldm-unet", root=folder.parent)
    average = load_checkpoint(tmp_path / "two")["average"]["network"]
    assert same_weights(network.state_dict(), average), "exported in full precision"
    card = read_card(folder)["card"]
    assert "FFHQ" in card["licence"] and card["training_data"]["rows"] == 9 and card["recipe"]["steps"] == 2
    first = load_checkpoint(tmp_path / "one")["module"]
    chosen, initial = paper_recipe("refldm", **TINY), load_initial(tmp_path / "one", PAPER_RECIPES["refldm"])
    begun = RefLDMFullTask(chosen, *splits(root), tiny_first_stage(), TinyEmbedder(), initial).network
    assert same_weights(begun.state_dict(), first), "stage 2 starts from the weights themselves, not their average"
    assert not same_weights(load_checkpoint(tmp_path / "one")["average"]["network"], first)
    exported = load_initial(tmp_path / "one/export", PAPER_RECIPES["refldm"])
    assert same_weights(exported, load_checkpoint(tmp_path / "one")["average"]["network"])


def test_killed_and_resumed_equals_uninterrupted(root, tmp_path, monkeypatch):
    train(root, tmp_path / "whole")
    original = RefLDMFullTask.before_step

    def killed(self, step, state):
        if step == 3:
            raise KeyboardInterrupt
        original(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(RefLDMFullTask, "before_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(root, tmp_path / "parts")
    assert load_checkpoint(tmp_path / "parts")["step"] == 2
    train(root, tmp_path / "parts", resume=True, initial=None)
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 4
    assert same_weights(whole["module"], parts["module"])
    assert same_weights(whole["average"]["network"], parts["average"]["network"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    with pytest.raises(ConfigError, match="identity_weight: 0.5 then, 0.2 now"):
        train(root, tmp_path / "parts", resume=True, identity_weight=0.2, steps=6)


def test_half_precision_trains(root, tmp_path):
    train(root, tmp_path / "full", steps=2)
    train(root, tmp_path / "half", steps=2, precision="bf16")
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert full != half
    assert list(half.values()) == pytest.approx(list(full.values()), rel=0.05)


def train_a_share(root, networks, out):
    """What each of several processes runs; it begins as a copy of the testing process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folders = {"first_stage": networks / "refldm-vq", "identity": networks / "guide"}
    train(root, out, steps=2, **folders)


def test_two_processes_learn_what_one_learns(root, networks, tmp_path):
    """Three samples on two processes, 2 + 1."""
    train_a_share(root, networks, tmp_path / "1")
    debug_launcher(train_a_share, (root, networks, tmp_path / "2"), num_processes=2)
    one, two = load_checkpoint(tmp_path / "1"), load_checkpoint(tmp_path / "2")
    start = [event for event in read_log(tmp_path / "2") if event["event"] == "start"][0]
    assert start["hardware"]["processes"] == 2
    assert list(losses(tmp_path / "2").values()) == pytest.approx(list(losses(tmp_path / "1").values()), rel=1e-4)
    # AdamW's first steps move every weight by about the learning rate whatever its gradient: look at that scale.
    assert same_weights(one["module"], two["module"], tolerance=0.02 * TINY["lr"])


# ---- what is missing or wrong


def command(*arguments):
    from refbfr_core.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_trains(root, networks, tmp_path):
    given = {"dataset": root, "first-stage": networks / "refldm-vq", "initial": "scratch"}
    given |= {"identity": networks / "guide", "micro-batch": 2, "workers": 0, "device": "cpu", "steps": 1}
    options = [part for key, value in given.items() for part in (f"--{key}", value)]
    changes = as_arguments({key: value for key, value in TINY.items() if key != "steps"})
    shown = command("train", "refldm", "--profile", "paper", "--out", tmp_path / "run", *options, *changes)
    assert shown.exit_code == 0, shown.output
    assert f"exported to {tmp_path / 'run/export/refldm-unet'}" in shown.stdout
    assert load_checkpoint(tmp_path / "run")["recipe"]["multipliers"] == [1, 2]


def test_everything_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path / "none"))
    shown = command("train", "refldm", "--profile", "paper", "--out", tmp_path / "run", "--device", "cpu")
    assert shown.exit_code == 1
    for word in ("4 pieces", "--dataset", "refbfr datasets list", "vqgan.ckpt", "--identity", "--initial", "ldm"):
        assert word in shown.stderr, word
    assert not (tmp_path / "run").exists()


def test_options_of_the_other_profile_are_refused(tmp_path):
    from refbfr_core.cli.train import FULL_SIZE

    assert tuple(PAPER_RECIPES) == FULL_SIZE
    assert "--profile paper" in command("train", "refldm").stderr
    assert "--profile paper" in command("train", "refldm-base", "--dataset", tmp_path).stderr
    assert "--dataset" in command("train", "refldm", "--profile", "paper", "--data", tmp_path).stderr
    assert "Did you mean 'paper'" in command("train", "refldm", "--profile", "papr").stderr


def test_networks_that_do_not_belong_are_refused(root, networks, tmp_path):
    wrong = {"identity": networks / "refldm-vq", "first_stage": networks / "guide"}
    with pytest.raises(WeightsError):
        train(root, tmp_path / "run", first_stage=wrong["first_stage"])
    (tmp_path / "arcface.pt").write_bytes(b"torch")
    with pytest.raises(ConfigError, match=r"arcface.pt is a file; .* pass the module"):
        train(root, tmp_path / "run", identity=tmp_path / "arcface.pt")
    with pytest.raises(ConfigError, match="do not fit the recipe's network"):
        train(root, tmp_path / "one", "ldm", references=0, identity_weight=0.0, steps=1)
        train(root, tmp_path / "two", initial=tmp_path / "one", width=32)
    with pytest.raises(ConfigError, match="--initial"):
        train(root, tmp_path / "run", initial=None)
    assert not (tmp_path / "run").exists()


def test_a_missing_picture_stops_the_training_in_its_own_words(root, networks, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/images1024x1024/01000")
    with pytest.raises(ImageFileError, match=r"^the (target|reference) '0\d+\.png' .* datasets check"):
        run_full(
            "refldm", out=tmp_path / "run", dataset=tmp_path / "copy", device="cpu", workers=1,
            first_stage=networks, identity=networks / "guide", initial="scratch", **TINY,
        )  # fmt: skip
