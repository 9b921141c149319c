"""Trainings of DiffMAC's stages on tiny networks: who learns, who is frozen, losses, lambda, a whole chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_blobs import BlobFaces

from refbfr_core.errors import CacheError, ConfigError, UnknownNameError
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.models.modulation import unchanged
from refbfr_core.models.moments import encode_moments, latents_of
from refbfr_core.training import recipe, run
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import make_accelerator, make_optimizer, optimiser_step
from refbfr_core.training.modulation import StageOneTask
from refbfr_core.training.second_stage import StageTwoTask, label_of
from refbfr_core.training.stage_one_outputs import StageOneOutputs
from refbfr_core.weights import load_network, read_card
from refbfr_core.weights.registry import DIFFMAC_SECOND

TINY = {"people": 8, "views": 4, "val_people": 4, "resolution": 32, "steps": 4, "batch": 4, "warmup": 2}
TINY |= {"log_every": 1, "eval_every": 100, "checkpoint_every": 2, "precision": "no"}
METHOD = "diffmac-two-id-0.001"
STAGES = {
    "diffmac-vae": {"widths": (8, 8), "groups": 4, "crop": 32, "pixel_fold": 1},
    "diffmac-unet": {"widths": (8, 8, 8, 8), "groups": 4, "head_width": 4, "attention": (2,)},
    "diffmac-one": {"pyramid": (4, 4, 4, 4), "lq_variants": 2},
    METHOD: {"lq_variants": 2, "cached_variants": 2, "inference_steps": 3},
}
STANDS_ON = ("first_stage", "start", "stage_one")


def folders(name, export) -> dict[str, str]:
    """Where a stage finds the networks it stands on."""
    count = {"diffmac-vae": 0, "diffmac-unet": 1, "diffmac-one": 2}.get(name, 3)
    return dict.fromkeys(STANDS_ON[:count], str(export))


def options(name, export, **changes):
    return TINY | STAGES.get(name, STAGES[METHOD]) | folders(name, export) | changes


def train(name, root, **changes):
    out = root / "run"
    (out / "checkpoint.pt").unlink(missing_ok=True)
    chosen = options(name, out / "export", **changes)
    return run(name, out=out, data=root / "data", device="cpu", workers=0, renderer=BlobFaces, **chosen)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole chain, each stage on the exports of the ones before; (folder of exports, folder of caches)."""
    root = tmp_path_factory.mktemp("diffmac")
    for name in STAGES:
        train(name, root)
    return root / "run" / "export", root / "data"


def tiny(name, export, **changes):
    return recipe(name, **options(name, export, **changes))


def caches(made, chosen):
    """Moments of training and validation faces."""
    export, data = made
    return [
        LatentCache(
            data, FaceCache(data, split, people, 4, 32, renderer=BlobFaces).build(0), export, chosen.degradations,
            chosen.lq_variants, False, 1, network="diffmac-vae",
        ).build(0)
        for split, people in (("train", 8), ("val", 4))
    ]  # fmt: skip


def stage_one(made, **changes):
    chosen = tiny("diffmac-one", made[0], **changes)
    return StageOneTask(chosen, *caches(made, chosen))


def stage_two(made, name=METHOD, **changes):
    chosen = tiny(name, made[0], **changes)
    sides = caches(made, chosen)
    outputs = [StageOneOutputs(made[1], side, chosen).build(0) for side in sides]
    return StageTwoTask(chosen, *zip(sides, outputs, strict=True))


def steps(task, count=1):
    accelerator = make_accelerator(task.recipe, "cpu")
    optimizer = make_optimizer(task.module, task.recipe, torch.device("cpu"))
    for step in range(count):
        optimiser_step(task, task.module, optimizer, accelerator, step)
    return task


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_exports_a_network_with_its_card(made, name):
    card = read_card(made[0] / name)["card"]
    assert card["recipe"]["name"] == name and card["recipe"]["samples"] == 16
    assert card["results"] and all(np.isfinite(v) for v in card["results"].values() if not isinstance(v, str))


def test_the_autoencoder_is_untouched_by_both_stages(made):
    """Check 9 of the method's list."""
    files = {path: path.read_bytes() for path in (made[0] / "diffmac-vae").iterdir()}
    vae = load_network("diffmac-vae", root=made[0], device="cpu")
    before = state_of(vae)
    first, second = steps(stage_one(made), 2), steps(stage_two(made), 2)
    for task in (first, second):
        assert not any("vae" in name or "encoder." in name for name, _ in task.module.named_parameters())
    assert not changed(load_network("diffmac-vae", root=made[0], device="cpu"), before)
    assert files == {path: path.read_bytes() for path in (made[0] / "diffmac-vae").iterdir()}


def test_stage_one_starts_as_the_plain_network_and_learns_only_its_modulation(made):
    task = stage_one(made, weight_decay=0.0)
    report = task.evaluate(task.network)
    assert unchanged(task.network) and report["val_own"] == report["val_wrong"]
    before, unet = state_of(task.network), state_of(task.unet)
    steps(task)
    learned = changed(task.network, before)
    assert all(f"{part}.{index}.weight" in learned for part in ("scales", "shifts") for index in range(12))
    # The pyramid's gradient passes the zero convolutions, so it comes one step later.
    assert not any(name.startswith("condition_convs") for name in learned)
    steps(task)
    assert {f"condition_convs.{k}.weight" for k in range(4)} <= changed(task.network, before)
    assert not changed(task.unet, unet)
    report = task.evaluate(task.network)
    assert report["val_own"] != report["val_wrong"]


@pytest.mark.parametrize(("part", "wanted"), [("encoder", {"conv_in", "down_blocks"}), ("all", None)])
def test_train_unet_trains_what_it_says_and_saves_the_denoiser(made, part, wanted, tmp_path):
    task = stage_one(made, train_unet=part)
    before = state_of(task.unet)
    task.evaluate(task.network)
    steps(task, 2)
    learned = {name.split(".")[0] for name in changed(task.unet, before)}
    everything = {name.split(".")[0] for name, _ in task.unet.named_parameters()}
    assert learned == (everything if wanted is None else wanted)
    chosen = options("diffmac-one", made[0], train_unet=part)
    folder = run(
        "diffmac-one", out=tmp_path, data=made[1], device="cpu", workers=0, renderer=BlobFaces, **chosen
    )  # fmt: skip
    tuned = load_network("diffmac-one-unet", root=folder.parent, device="cpu")
    base = load_network("diffmac-unet", root=made[0], device="cpu")
    assert folder.name == "diffmac-one" and changed(tuned, state_of(base))


@pytest.mark.parametrize("label", DIFFMAC_SECOND)
def test_every_row_of_the_table_trains_its_parts_and_nothing_else(made, label):
    task = stage_two(made, f"diffmac-two-{label}")
    second, kind = task.network, task.recipe.compensation
    assert second.config.label == label_of(task.recipe) and second.compensation == kind
    first = load_network("diffmac-one", root=made[0], device="cpu")
    assert all(torch.equal(v, second.modulation.state_dict()[k]) for k, v in first.state_dict().items())
    before, unet = state_of(second), state_of(task.unet)
    steps(task, 2)
    learned = changed(second, before)
    assert {"modulation.scales.0.weight", "modulation.condition_convs.0.weight"} <= learned
    assert ("bottleneck.conv.weight" in learned) == (kind != "off")
    assert ("bottleneck.scale.weight" in learned) == (kind == "identity")
    assert not {name for name in learned if name.endswith((".mean", ".std"))} and not changed(task.unet, unet)


def test_r_comes_from_stage_one_or_from_the_input(made):
    restored, direct = stage_two(made), stage_two(made, "diffmac-two-no1-noise-0.1")
    who = np.arange(4)
    ruined = torch.from_numpy(direct.data.passed[who, 0 * who, 0 * who, 0 * who]).float()
    assert torch.equal(direct.data.gather(who, 0 * who, 0 * who, who)[0]["moments"], ruined)
    cached = restored.data.gather(who, 0 * who, 0 * who, who)[0]["moments"]
    assert cached.shape == ruined.shape and not torch.equal(cached, ruined)


def test_the_reference_extension_injects_another_photo(made):
    own, other = stage_two(made), stage_two(made, "diffmac-two-ref-0.01")
    a, b = own.batch(1, 0, 1), other.batch(1, 0, 1)
    assert torch.equal(a["moments"], b["moments"]) and not torch.equal(a["identity"], b["identity"])
    photos = torch.from_numpy(np.stack([other.data.photos[k] for k in range(8)])).flatten(0, 1)
    assert all(bool((photos == row).all(1).any()) for row in b["identity"])
    assert torch.allclose(b["identity"].norm(dim=1), torch.ones(4), atol=1e-5)


def test_the_loss_is_equation_13(made):
    task = stage_two(made, min_snr=0.0)
    batch = task.batch(3, 0, 1)
    total, metrics = task.loss(task.module, batch, 3)
    second, scaling = task.network, task.scaling
    out = second(batch["moments"], batch["identity"])
    noisy_error = task._run(task.module, batch)[0].mean()
    rec = (latents_of(out.moments, scaling) - batch["mode"]).square().mean()
    wanted = noisy_error + 0.001 * out.information.mean() + rec
    assert torch.allclose(total, wanted, rtol=1e-5)
    assert torch.allclose(metrics["share"], out.share.mean()) and 0.87 < float(metrics["share"]) < 0.89


def test_the_diffusion_loss_reaches_the_bottleneck_through_the_drawn_condition(made):
    """Ambiguity 20: without (10) and (11) lambda still has a gradient, once the modulation is not zero."""
    task = stage_two(made, info_weight=0.0, rec_weight=0.0)
    with torch.no_grad():
        for parameter in task.network.modulation.scales.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    task.loss(task.module, task.batch(1, 0, 1), 1)[0].backward()
    bottleneck = task.network.bottleneck
    assert all(float(p.grad.abs().max()) > 0 for p in bottleneck.parameters())


@pytest.mark.parametrize("kind", ["id", "noise", "none"])
def test_raising_the_weight_lowers_the_mean_lambda(made, kind):
    """Check 7 of the method's list: 0.001, 0.01, 0.1 from equal starts, on equal batches."""
    shares = []
    for weight in ("0.001", "0.01", "0.1"):
        task = steps(stage_two(made, f"diffmac-two-{kind}-{weight}", rate=20.0), 40)
        shares.append(task.evaluate(task.network)["share"])
    assert shares[0] > shares[1] > shares[2]


def test_statistics_are_those_of_clean_faces(made):
    task = stage_two(made)
    vae = load_network("diffmac-vae", root=made[0], device="cpu")
    faces = FaceCache(made[1], "train", 8, 4, 32, renderer=BlobFaces).images
    faces = torch.from_numpy(np.stack([faces[k] for k in range(8)]))
    pictures = faces.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        moments = encode_moments(vae, pictures)
    bottleneck = task.network.bottleneck
    assert torch.allclose(bottleneck.mean[:, 0, 0], moments.mean((0, 2, 3)), atol=2e-2)
    assert torch.allclose(bottleneck.std[:, 0, 0], moments.std((0, 2, 3), correction=0), rtol=2e-2)


def test_cached_outputs_continue_where_a_build_was_killed(made, monkeypatch):
    chosen = tiny(METHOD, made[0], inference_steps=2)
    side = caches(made, chosen)[0]
    outputs = StageOneOutputs(made[1], side, chosen)
    monkeypatch.setattr("refbfr_core.training.stage_one_outputs.identity_of_pictures", _fail)
    with pytest.raises(KeyboardInterrupt):
        outputs.build(0)
    assert outputs.ready == 0
    monkeypatch.undo()
    whole = StageOneOutputs(made[1], side, chosen).build(0)
    assert whole.verify() == 8 and whole.moments.shape == (8, 2, 2, 8, 16, 16)
    kept = whole.shard(0) / "moments.npy"
    stamp = kept.stat().st_mtime_ns
    assert StageOneOutputs(made[1], side, chosen).build(0).ready == 8 and kept.stat().st_mtime_ns == stamp
    lengths = np.linalg.norm(np.stack([whole.identity[k] for k in range(8)]), axis=-1)
    assert np.allclose(lengths, 1, atol=1e-3)


def _fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_outputs_need_moments_on_disk(made, tmp_path):
    chosen = tiny(METHOD, made[0])
    faces = FaceCache(made[1], "train", 8, 4, 32, renderer=BlobFaces)
    missing = LatentCache(tmp_path, faces, made[0], chosen.degradations, 2, False, 1, network="diffmac-vae")
    with pytest.raises(CacheError, match="build it first"):
        StageOneOutputs(tmp_path, missing, chosen).build(0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"compensation": "identiy"}, UnknownNameError),
        ({"kl": "exat"}, UnknownNameError),
        ({"source": "stage-two"}, UnknownNameError),
        ({"identity": "photo"}, UnknownNameError),
        ({"train_unet": "decoder"}, UnknownNameError),
        ({"embedder": "judge"}, ConfigError),
        ({"info_weight": -1.0}, ConfigError),
        ({"cached_views": 7}, ConfigError),
        ({"lq_variants": 0}, ConfigError),
        ({"cached_variants": 4}, ConfigError),
    ],
)
def test_impossible_recipes_are_refused(changes, error):
    with pytest.raises(error):
        recipe(METHOD, **changes)
