"""Training the unconditional prior and the coarse restorer: the objective against independent formulas, tiny runs."""

from __future__ import annotations

import math

import pytest
import torch
from drawn_blobs import BlobFaces
from torch.distributions import Normal, kl_divergence

from refbfr_core.diffusion import add_noise, eps_and_x0, make_schedule
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.models.coarse import CoarseNet
from refbfr_core.training import recipe, run
from refbfr_core.training.coarse import CoarseTask
from refbfr_core.training.pixel_diffusion import PixelDiffusionTask, denoising_terms, error_weights, variance_bound
from refbfr_core.training.records import load_checkpoint
from refbfr_core.weights import load_network

SCHEDULE = make_schedule("pdgrad")
TINY = {"people": 8, "views": 4, "val_people": 4, "resolution": 32, "steps": 4, "batch": 4, "warmup": 2}
TINY |= {"log_every": 1, "eval_every": 100, "checkpoint_every": 2, "groups": 4, "patch_size": 2, "head_width": 8}
TINY |= {"channels": (8, 16), "layers": (1, 1), "attention_levels": (1,), "precision": "no"}
TASKS = {"pdgrad-unet": PixelDiffusionTask, "coarse": CoarseTask}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def caches(data):
    made = [FaceCache(data / "direct", split, n, 4, 32, renderer=BlobFaces) for split, n in (("train", 8), ("val", 4))]
    for cache in made:
        cache.build(0)
    return made


def train(name, data, out, **changes):
    return run(name, out=out, data=data, device="cpu", workers=0, renderer=BlobFaces, **(TINY | changes))


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the variational bound --------------------------------------------------------------------------------------------


def gaussians(t: int, x0, clean, x_t, code):
    """q(x_{t-1} | x_t, x_0) and p(x_{t-1} | x_t) in float64, written down from Nichol and Dhariwal's eq. 10 to 15."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    level = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), level[:-1]])
    posterior = betas * (1 - before) / (1 - level)
    x0, clean, x_t, code = (each.double() for each in (x0, clean, x_t, code))

    def mean(picture):
        ahead = before[t].sqrt() * betas[t] / (1 - level[t]) * picture
        return ahead + (1 - betas[t]).sqrt() * (1 - before[t]) / (1 - level[t]) * x_t

    smallest = posterior[max(t, 1)]
    share = (code + 1) / 2
    variance = torch.exp(share * betas[t].log() + (1 - share) * smallest.log())
    return Normal(mean(clean), smallest.sqrt()), Normal(mean(x0), variance.sqrt())


@pytest.mark.parametrize("t", [1, 2, 250, 999])
def test_the_bound_is_the_kl_divergence_of_the_two_gaussians(t):
    clean, code, x0 = draws(2, 3, 4, 4).clamp(-1, 1), draws(2, 3, 4, 4, seed=1).tanh(), draws(2, 3, 4, 4, seed=2)
    x_t = add_noise(clean, draws(2, 3, 4, 4, seed=3), t, SCHEDULE)
    q, p = gaussians(t, x0, clean, x_t, code)
    expected = kl_divergence(q, p).mean((1, 2, 3)) / math.log(2)
    got = variance_bound(code, x0, clean, torch.tensor([t, t]), SCHEDULE)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_last_term_is_the_likelihood_of_an_eight_bit_picture():
    clean, code = draws(2, 3, 4, 4).clamp(-1, 1), draws(2, 3, 4, 4, seed=1).tanh()
    x0 = clean + 0.01 * draws(2, 3, 4, 4, seed=2)
    _, p = gaussians(0, x0, clean, clean, code)
    probability = p.log_prob(clean.double()).exp() * 2 / 255
    expected = -(probability.log2()).mean((1, 2, 3))
    got = variance_bound(code, x0, clean, torch.tensor([0, 0]), SCHEDULE)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_every_picture_has_its_own_term():
    clean, code, x0 = draws(3, 3, 4, 4), draws(3, 3, 4, 4, seed=1).tanh(), draws(3, 3, 4, 4, seed=2)
    t = torch.tensor([0, 400, 999])
    together = variance_bound(code, x0, clean, t, SCHEDULE)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(variance_bound(code[one], x0[one], clean[one], t[one], SCHEDULE), together[one])


def test_a_perfect_estimate_with_the_posterior_variance_costs_nothing():
    clean = draws(1, 3, 4, 4)
    code = torch.full_like(clean, -1.0)  # the smallest variance, which is the true one
    assert float(variance_bound(code, clean, clean, torch.tensor([500]), SCHEDULE)) == pytest.approx(0, abs=1e-5)
    assert float(variance_bound(code, clean + 0.1, clean, torch.tensor([500]), SCHEDULE)) > 1e-6


# --- the two terms of the objective -----------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A network whose two halves are the weights themselves."""

    def __init__(self, prediction: torch.Tensor, code: torch.Tensor) -> None:
        super().__init__()
        self.prediction, self.code = torch.nn.Parameter(prediction), torch.nn.Parameter(code)

    def forward(self, x, t):
        return type("Output", (), {"sample": torch.cat([self.prediction, self.code], dim=1)})()


def batch_of(t: list[int]) -> dict[str, torch.Tensor]:
    shape = (len(t), 3, 4, 4)
    return {
        "clean": draws(*shape, seed=5).clamp(-1, 1),
        "noise": draws(*shape, seed=6),
        "timesteps": torch.tensor(t),
    }


def target(batch, prediction):
    if prediction != "v_prediction":
        return batch["noise" if prediction == "epsilon" else "clean"]
    level = SCHEDULE.alphas_cumprod[batch["timesteps"]].float().view(-1, 1, 1, 1)
    return level.sqrt() * batch["noise"] - (1 - level).sqrt() * batch["clean"]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_squared_error_is_to_the_target_of_the_prediction(prediction):
    batch = batch_of([0, 300, 800])
    exact = target(batch, prediction)
    perfect = denoising_terms(Fixed(exact, torch.zeros_like(exact)), batch, SCHEDULE, prediction)[0]
    assert float(perfect.detach().max()) < 1e-8
    off = denoising_terms(Fixed(exact + 0.5, torch.zeros_like(exact)), batch, SCHEDULE, prediction)[0]
    torch.testing.assert_close(off, torch.full((3,), 0.25), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_each_term_reaches_its_own_half_only(prediction):
    batch = batch_of([0, 300, 800])
    network = Fixed(draws(3, 3, 4, 4, seed=7), draws(3, 3, 4, 4, seed=8).tanh())
    error, bound = denoising_terms(network, batch, SCHEDULE, prediction)
    halves = (network.prediction, network.code)
    towards = torch.autograd.grad(error.sum(), halves, allow_unused=True, retain_graph=True)
    assert bool(towards[0].any()) and (towards[1] is None or not towards[1].any())
    towards = torch.autograd.grad(bound.sum(), halves, allow_unused=True)
    assert bool(towards[1].any()) and (towards[0] is None or not towards[0].any())


def test_the_bound_is_taken_at_the_estimate_that_the_prediction_means():
    batch = batch_of([300, 800])
    network = Fixed(batch["noise"] + 0.05, torch.zeros(2, 3, 4, 4))
    _, bound = denoising_terms(network, batch, SCHEDULE, "epsilon")
    noisy = add_noise(batch["clean"], batch["noise"], batch["timesteps"], SCHEDULE)
    _, x0 = eps_and_x0(batch["noise"] + 0.05, noisy, batch["timesteps"], SCHEDULE, "epsilon")
    torch.testing.assert_close(bound, variance_bound(network.code, x0, batch["clean"], batch["timesteps"], SCHEDULE))


def test_error_weights_are_min_snr_in_the_units_of_x_0():
    t = torch.tensor([0, 200, 500, 999])
    level = SCHEDULE.alphas_cumprod[t]
    snr = (level / (1 - level)).float()
    torch.testing.assert_close(error_weights(SCHEDULE, t, "epsilon", 5.0), snr.clamp(max=5) / snr, rtol=1e-4, atol=0)
    torch.testing.assert_close(error_weights(SCHEDULE, t, "sample", 5.0), snr.clamp(max=5), rtol=1e-4, atol=0)
    for prediction in ("epsilon", "sample", "v_prediction"):
        assert error_weights(SCHEDULE, t, prediction, 0.0).tolist() == [1.0] * 4


def test_the_loss_adds_the_bound_of_the_whole_process(caches):
    chosen = recipe("pdgrad-unet", **TINY, prediction="epsilon", min_snr=0.0, vlb_weight=0.01)
    task = PixelDiffusionTask(chosen, *caches)
    batch = task.batch(0, 0, 1)
    loss, metrics = task.loss(task.module, batch, 0)
    error, bound = denoising_terms(task.module, batch, SCHEDULE, "epsilon")
    torch.testing.assert_close(loss, error.mean() + 0.01 * 1000 * bound.mean())
    parts = torch.stack([metrics[key] for key in metrics if key.startswith("band")]).sum(0)
    torch.testing.assert_close(parts, torch.stack([error.detach().sum(), torch.tensor(4.0)]))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("pdgrad-unet", ADMUNet), ("coarse", CoarseNet)])
def test_a_short_training_changes_the_network_and_exports_it(name, kind, data, tmp_path, caches):
    folder = train(name, data, tmp_path / "run", steps=2, lr=0.01, ema=0.0)
    network = load_network(name, root=folder.parent)
    assert isinstance(network, kind) and network.config.patch_size == 2
    start = TASKS[name](recipe(name, **(TINY | {"steps": 2})), *caches).network.state_dict()
    moved = [key for key, value in network.state_dict().items() if (value - start[key]).abs().max() > 1e-3]
    assert moved


@pytest.mark.parametrize("name", list(TASKS))
def test_resumed_equals_uninterrupted(name, data, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(self, step, state):
        if step == 3:
            raise KilledError

    train(name, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(TASKS[name], "before_step", killed)
        with pytest.raises(KilledError):
            train(name, data, tmp_path / "parts")
    assert load_checkpoint(tmp_path / "parts")["step"] == 2
    train(name, data, tmp_path / "parts", resume=True)
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 4
    assert all(torch.equal(value, parts["module"][key]) for key, value in whole["module"].items())
    average = parts["average"]["network"]
    assert all(torch.equal(value, average[key]) for key, value in whole["average"]["network"].items())


def test_training_goes_on_from_an_exported_network(data, tmp_path, caches):
    first = train("pdgrad-unet", data, tmp_path / "first", steps=1)
    task = PixelDiffusionTask(recipe("pdgrad-unet", **TINY, start=str(first.parent)), *caches)
    exported = load_network("pdgrad-unet", root=first.parent).state_dict()
    assert all(torch.equal(value, exported[key]) for key, value in task.network.state_dict().items())
    assert len(task.facts["start"]) == 12


def test_reports_say_what_they_promise(caches):
    prior = PixelDiffusionTask(recipe("pdgrad-unet", **TINY), *caches)
    report = prior.evaluate(prior.network.eval())
    assert set(report) == {"val_error", "val_vlb", "psnr_at_100", "psnr_at_300", "psnr_at_500", "psnr_at_700"}
    assert all(math.isfinite(value) for value in report.values())
    # It predicts a grey picture, at every timestep the same.
    assert report["psnr_at_100"] == pytest.approx(report["psnr_at_700"], abs=1e-4)
    assert prior.evaluate(prior.network) == report
    coarse = CoarseTask(recipe("coarse", **TINY, degradations=("toy-pdgrad",)), *caches)
    report = coarse.evaluate(coarse.network.eval())
    assert set(report) == {"psnr_toy-pdgrad", "lq_toy-pdgrad"}
    # An untrained restorer returns its input.
    assert report["psnr_toy-pdgrad"] == pytest.approx(report["lq_toy-pdgrad"], abs=1e-3)


def test_batches_depend_on_seed_and_step_only(caches):
    for name, task in TASKS.items():
        one, two = (task(recipe(name, **TINY), *caches) for _ in range(2))
        first, again, later = one.batch(3, 0, 1), two.batch(3, 0, 1), one.batch(4, 0, 1)
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first["clean"], later["clean"])
        assert first["clean"].shape == (4, 3, 32, 32) and float(first["clean"].min()) >= -1
        shares = [one.batch(3, rank, 2)["clean"] for rank in (0, 1)]
        assert [len(share) for share in shares] == [2, 2]


def test_impossible_recipes_are_refused():
    with pytest.raises(UnknownNameError, match="v_prediction"):
        recipe("pdgrad-unet", prediction="velocity")
    for wrong in ({"vlb_weight": -1.0}, {"min_snr": -1.0}):
        with pytest.raises(ConfigError, match="0 or more"):
            recipe("pdgrad-unet", **wrong)
