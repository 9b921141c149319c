"""Trainings of LD-BFR's stages on tiny networks: who learns, who is frozen, objectives, a chain from end to end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from drawn_blobs import BlobFaces

from refbfr_core.degradation import Degradation
from refbfr_core.diffusion import make_schedule
from refbfr_core.errors import CacheError, ConfigError, UnknownNameError
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import to_network
from refbfr_core.models.injected_unet import denoise_injected
from refbfr_core.models.vq_restorer import decode_feature, restore_features
from refbfr_core.training import recipe, run
from refbfr_core.training.condition_features import FeatureCache
from refbfr_core.training.dcvqr import DCVQRTask
from refbfr_core.training.injection import InjectionTask
from refbfr_core.training.latent_prior import denoising_error
from refbfr_core.training.latents import LatentCache, seeds_of
from refbfr_core.training.loop import make_accelerator, make_optimizer, optimiser_step
from refbfr_core.training.records import load_checkpoint
from refbfr_core.weights import load_network, read_card

TINY = {"people": 8, "views": 4, "val_people": 4, "resolution": 32, "steps": 4, "batch": 4, "warmup": 2}
TINY |= {"log_every": 1, "eval_every": 100, "checkpoint_every": 2, "precision": "no"}
VQ = {"groups": 4, "codes": 8, "crop": 32, "restart_every": 1}
STAGES = {
    "ldbfr-vqc": VQ | {"widths": (8, 8, 8, 8), "latent_channels": 16},
    "ldbfr-vqo": VQ | {"widths": (8, 8)},
    "ldbfr-restorer": {"heads": 2},
    "ldbfr-restorer-plain": {},
    "ldbfr-unet": {"widths": (8, 16, 16, 16), "groups": 4, "head_width": 8},
    "ldbfr-hqi-d": {"lq_variants": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole chain, each stage on the exports of the ones before; (folder of exports, folder of caches)."""
    root = tmp_path_factory.mktemp("ldbfr")
    for name in STAGES:
        train(name, root)
    return root / "run" / "export", root / "data"


def folders(name, export) -> dict[str, str]:
    """Where a stage finds the networks it stands on."""
    kinds = {"ldbfr-restorer": ("first_stage",), "ldbfr-unet": ("first_stage",)}
    kinds |= {"ldbfr-restorer-plain": ("first_stage",)}
    wanted = ("first_stage", "stage_one", "start") if name.startswith("ldbfr-hqi") else kinds.get(name, ())
    return {key: str(export) for key in wanted}


def train(name, root, out="run", **changes):
    export = root / "run" / "export"
    options = TINY | STAGES.get(name, {"lq_variants": 2}) | folders(name, export) | changes
    folder = root / out / name if out != "run" else root / "run"
    if out == "run":
        (root / "run" / "checkpoint.pt").unlink(missing_ok=True)
    return run(name, out=folder, data=root / "data", device="cpu", workers=0, renderer=BlobFaces, **options)


def tiny(name, export, **changes):
    return recipe(name, **(TINY | STAGES.get(name, {"lq_variants": 2}) | folders(name, export) | changes))


def faces(data, split, people):
    return FaceCache(data, split, people, 4, 32, renderer=BlobFaces).build(0)


def injection_task(made, variant="D"):
    export, data = made
    chosen = tiny(f"ldbfr-hqi-{variant.lower()}", export)
    sides = []
    for split, people, flips in (("train", 8, True), ("val", 4, False)):
        pictures = faces(data, split, people)
        latents = LatentCache(data, pictures, export, (), 0, flips, 1, network="ldbfr-vqo").build(0)
        sides.append((latents, FeatureCache(data, pictures, export, chosen.degradations, 2).build(0)))
    return InjectionTask(chosen, *sides)


def one_step(task):
    accelerator = make_accelerator(task.recipe, "cpu")
    optimizer = make_optimizer(task.module, task.recipe, torch.device("cpu"))
    return optimiser_step(task, task.module, optimizer, accelerator, 1)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_exports_a_network_with_its_card(made, name):
    card = read_card(made[0] / name)["card"]
    assert card["recipe"]["name"] == name and card["recipe"]["samples"] == 16
    assert card["results"] and all(isinstance(value, (str, float)) for value in card["results"].values())


def test_the_chain_gives_networks_that_fit_each_other(made):
    nets = {name: load_network(name, root=made[0], device="cpu") for name in STAGES}
    lq = 2 * torch.rand(2, 3, 32, 32) - 1
    features = restore_features(nets["ldbfr-restorer"], nets["ldbfr-vqc"], lq)
    assert features.restored.shape == (2, 16, 2, 2)
    assert decode_feature(nets["ldbfr-vqc"], features.restored).shape == lq.shape
    noisy = torch.randn(2, 3, 8, 8)
    out = denoise_injected(nets["ldbfr-unet"], noisy, 7, nets["ldbfr-hqi-d"], features.restored)
    assert out.shape == noisy.shape
    plain = load_network("ldbfr-restorer-plain", root=made[0], device="cpu")
    same = restore_features(plain, nets["ldbfr-vqc"], lq)
    assert plain.dcam is None and torch.equal(same.restored, same.looked_up)


@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
def test_one_step_of_the_injection_changes_nothing_that_is_frozen(made, variant):
    """Check 2 of the method's list: theta_1 and everything before it stay as they are, every injector learns."""
    task = injection_task(made, variant)
    frozen = {name: value.clone() for name, value in task.unet.state_dict().items()}
    files = {path: path.read_bytes() for path in made[0].rglob("*.safetensors")}
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    task.loss(task.module, task.batch(1, 0, 1), 1)[0].backward()
    assert all(parameter.grad is None for parameter in task.unet.parameters())
    task.module.zero_grad()
    one_step(task)
    assert all(torch.equal(value, frozen[name]) for name, value in task.unet.state_dict().items())
    assert files == {path: path.read_bytes() for path in made[0].rglob("*.safetensors")}
    last = {"A": ("conv",), "B": ("to_out",), "C": ("project",), "D": ("to_out", "project")}[variant]
    learned = [key for key, value in task.network.state_dict().items() if not torch.equal(value, before[key])]
    for key, injectors in task.network.injectors.items():
        for index in range(len(injectors)):
            assert any(f"injectors.{key}.{index}.{name}." in each for each in learned for name in last)


def test_the_injection_starts_as_the_network_without_it(made):
    task = injection_task(made)
    report = task.evaluate(task.network)
    assert report["val_own"] == report["val_wrong"] == report["val_none"]
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    report = task.evaluate(task.network)
    assert len(set(report.values())) == 3


def test_the_denoising_error_is_that_of_equation_6(made):
    task = injection_task(made)
    batch = task.batch(3, 0, 1)
    schedule = make_schedule("ldbfr")
    alpha_bar = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, 0).float()
    level = alpha_bar[batch["timesteps"]].view(-1, 1, 1, 1)
    noisy = level.sqrt() * batch["clean"] + (1 - level).sqrt() * batch["noise"]
    predicted = denoise_injected(task.unet, noisy, batch["timesteps"], task.network, batch["condition"])
    for prediction, target in (
        ("epsilon", batch["noise"]),
        ("v_prediction", level.sqrt() * batch["noise"] - (1 - level).sqrt() * batch["clean"]),
    ):
        got = denoising_error(task.module, batch, schedule, prediction)
        torch.testing.assert_close(got, (predicted - target).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_stage_one_learns_encoder_and_dcam_only(made):
    export, data = made
    task = DCVQRTask(tiny("ldbfr-restorer", export), faces(data, "train", 8), faces(data, "val", 4))
    frozen = {name: value.clone() for name, value in task.vq.state_dict().items()}
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    one_step(task)
    assert all(torch.equal(value, frozen[name]) for name, value in task.vq.state_dict().items())
    still = [name for name, value in task.network.state_dict().items() if torch.equal(value, before[name])]
    # A bias of the keys shifts all scores of a query alike, so a softmax never sees it.
    assert all(name.endswith("to_k.bias") for name in still)


def test_stage_one_minimises_equations_2_to_4(made):
    export, data = made
    pair = (faces(data, "train", 8), faces(data, "val", 4))
    task = DCVQRTask(tiny("ldbfr-restorer", export, pixel_weight=0.7, commitment=0.3), *pair)
    batch = task.batch(2, 0, 1)
    total, metrics = task.loss(task.module, batch, 2)
    with torch.no_grad():
        made_ = restore_features(task.network, task.vq, batch["ruined"])
        wanted = task.vq.encode(F.pixel_unshuffle(batch["clean"], 2)).latents
        feature = ((made_.restored - wanted) ** 2).mean()
        pixel = ((decode_feature(task.vq, made_.restored) - batch["clean"]) ** 2).mean()
        codes = task.vq.quantize.embedding.weight[made_.codes].permute(0, 3, 1, 2)
        commitment = ((made_.degraded - codes) ** 2).mean()
    torch.testing.assert_close(metrics["feature"], feature)
    torch.testing.assert_close(metrics["pixel"], pixel)
    torch.testing.assert_close(total.detach(), feature + 0.7 * pixel + 0.3 * commitment)


def test_the_degraded_encoder_learns_at_its_own_rate(made):
    export, data = made
    pair = (faces(data, "train", 8), faces(data, "val", 4))
    moved = {}
    for rate in (0.0, 0.5, 1.0):
        task = DCVQRTask(tiny("ldbfr-restorer", export, encoder_rate=rate), *pair)
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        one_step(task)
        after = task.network.state_dict()
        moved[rate] = {name: float((after[name] - before[name]).abs().max()) for name in before}
    encoder = [name for name in moved[1.0] if not name.startswith("dcam") and not name.endswith("to_k.bias")]
    assert all(moved[0.0][name] == 0 for name in encoder)
    # The first step of Adam is as long as the learning rate, whatever the gradient.
    assert all(abs(moved[0.5][name] / moved[1.0][name] - 0.5) < 0.05 for name in encoder if name.endswith("weight"))
    assert all(moved[0.0][name] == moved[1.0][name] > 0 for name in ("dcam.to_v.weight", "dcam.to_out.weight"))


def test_cached_features_are_those_of_stage_one(made):
    export, data = made
    pictures = faces(data, "val", 4)
    names = ("toy-ldbfr-severe", "toy-ldbfr-mild")
    with pytest.raises(CacheError, match="degradations"):
        FeatureCache(data, pictures, export, names, 2)
    cache = FeatureCache(data / "other", pictures, export, names, 3).build(0)
    assert cache.features.shape == (4, 4, 3, 16, 2, 2)
    assert cache.nbytes() == cache.features[0].nbytes * 4
    clean = torch.from_numpy(pictures.images[2]).permute(0, 3, 1, 2).float() / 255
    ruined = Degradation.preset(names[1])(clean, seeds=seeds_of([0, 2, view, 1] for view in range(4)))[0]
    networks = [load_network(name, root=export, device="cpu") for name in ("ldbfr-restorer", "ldbfr-vqc")]
    expected = restore_features(*networks, to_network(ruined)).restored.half()
    torch.testing.assert_close(torch.from_numpy(cache.features[2][:, 1]), expected, rtol=2e-3, atol=2e-3)


def test_latents_of_clean_faces_alone(made):
    export, data = made
    cache = LatentCache(data, faces(data, "val", 4), export, (), 0, True, 1, network="ldbfr-vqo").build(0)
    assert cache.clean.shape == (4, 2, 4, 3, 8, 8) and cache.ruined.shape[3] == 0


def test_an_interrupted_injection_goes_on_where_it_stopped(made, tmp_path):
    export = made[0]
    root = export.parent.parent
    train("ldbfr-hqi-c", root, out="whole")
    train("ldbfr-hqi-c", root, out="cut", minutes=1e-9)
    assert load_checkpoint(root / "cut" / "ldbfr-hqi-c")["step"] < 4
    train("ldbfr-hqi-c", root, out="cut", resume=True)
    ends = [load_checkpoint(root / out / "ldbfr-hqi-c")["module"] for out in ("whole", "cut")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_impossible_recipes_are_refused():
    with pytest.raises(UnknownNameError, match="variant"):
        recipe("ldbfr-hqi-d", variant="E")
    with pytest.raises(ConfigError, match="ldbfr-hqi-b"):
        recipe("ldbfr-hqi-d", variant="B")
    with pytest.raises(UnknownNameError, match="DCAM mode"):
        recipe("ldbfr-restorer", mode="both")
    with pytest.raises(ConfigError, match="pixel_weight"):
        recipe("ldbfr-restorer", pixel_weight=-1)
    with pytest.raises(ConfigError, match="encoder_rate"):
        recipe("ldbfr-restorer", encoder_rate=-1)
    with pytest.raises(UnknownNameError, match="prediction"):
        recipe("ldbfr-unet", prediction="x0")
    with pytest.raises(ConfigError, match="lq_variants"):
        recipe("ldbfr-hqi-d", lq_variants=0)
    with pytest.raises(ConfigError, match="perceptual_weight"):
        recipe("ldbfr-vqo", perceptual_weight=-0.1)
