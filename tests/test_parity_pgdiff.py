"""PGDiff's guidance hook against the runs recorded from the authors' fork, and its reference term against autograd."""

from __future__ import annotations

import parity_pdgrad as parity
import pytest
import torch
from parity_pdgrad import GUIDED_TOLERANCE, SCHEDULE
from parity_refldm import close, difference
from tiny_pdgrad import SIDE, components, faces

from refbfr_core.diffusion import Repeats, StepState, adm_timesteps, sample_learned
from refbfr_core.images import to_network
from refbfr_core.pipelines.pgdiff_guidance import PGDiffGuidance, PGDiffSettings, mean_embedding


@pytest.fixture(scope="module")
def folder(shared_dir):
    return shared_dir / "parity" / "pdgrad"


@pytest.fixture(scope="module")
def recorded(folder):
    return parity.arrays(folder / "diffusion.npz")


@pytest.fixture(scope="module")
def network(folder):
    return parity.load(folder, "updown")


def guided_run(network, recorded, count: int, repeats: Repeats | None, **changes: float) -> list[StepState]:
    """The recorded run, with our hook: the target is a fixed coarse picture, and there is no reference."""
    settings = PGDiffSettings(**{"scale": float(recorded["pg_scale"]), **changes})
    target = recorded["pg_target"].expand_as(recorded["run_xT"])
    steps: list[StepState] = []
    sample_learned(
        lambda x, t: network(x, t).sample,
        recorded["run_xT"],
        adm_timesteps(1000, 10),
        SCHEDULE,
        draw=iter(recorded[f"pg_N{count}_noise"]).__next__,
        guidance=PGDiffGuidance(target, target, None, None, settings),
        repeats=repeats,
        callback=steps.append,
    )
    return steps


def recorded_repeats(recorded) -> Repeats:
    return Repeats(2, int(recorded["pg_s_start"]), int(recorded["pg_s_end"]))


def arrived(steps: list[StepState]) -> torch.Tensor:
    """The sample after every visited timestep; of repeated passes the last."""
    return torch.stack(list({step.t: step.x_prev for step in steps}.values()))


def test_the_hook_follows_the_recorded_run(network, recorded):
    steps = guided_run(network, recorded, 1, None)
    assert len(steps) == len(recorded["pg_N1_samples"]) == 10
    for step, sample in zip(steps, recorded["pg_N1_samples"], strict=True):
        close(step.x_prev, sample, GUIDED_TOLERANCE, f"sample after t={step.t}")


def test_the_hook_follows_the_recorded_run_with_repeats(network, recorded):
    steps = guided_run(network, recorded, 2, recorded_repeats(recorded))
    assert len(steps) == len(recorded["pg_N2_grads"]) == 13
    close(arrived(steps), recorded["pg_N2_samples"], GUIDED_TOLERANCE, "samples of the repeated run")


def test_the_reported_loss_is_the_sum_over_each_picture(network, recorded):
    """The recorded gradient is 2 (x_0 - target), so its square is four times the loss."""
    for step, gradient in zip(guided_run(network, recorded, 1, None), recorded["pg_N1_grads"], strict=True):
        expected = gradient.square().flatten(1).sum(1) / 4
        torch.testing.assert_close(step.stats["loss_smooth"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{"scale": 0.099}, {"smooth_weight": 1.01}, {"smooth_weight": 0.0}])
def test_a_slightly_other_guidance_is_noticed(network, recorded, changes):
    steps = guided_run(network, recorded, 1, None, **changes)
    assert difference(arrived(steps), recorded["pg_N1_samples"]) > 2 * GUIDED_TOLERANCE


def test_missing_repeats_are_noticed(network, recorded):
    steps = guided_run(network, recorded, 2, None)
    assert difference(arrived(steps), recorded["pg_N2_samples"]) > 100 * GUIDED_TOLERANCE


def test_the_references_pull_as_the_mean_of_their_squared_distances():
    embedder = components()["embedder"]
    x0, y_c = to_network(faces(2, 1)), to_network(faces(2, 2))
    references = to_network(faces(2, 3, 2))
    # The first picture has both references, the second none.
    present = torch.tensor([True, False])
    target = mean_embedding([(references[:, index], present) for index in (0, 1)], embedder)
    assert target[1].tolist() == [1.0, 0.0]
    variance = torch.full((2, 3, SIDE, SIDE), 0.25)
    state = StepState(0, 1, 500, 400, x0, torch.zeros_like(x0), x0, variance)
    settings = PGDiffSettings(scale=0.2, smooth_weight=0.5, reference_weight=3.0)
    got = PGDiffGuidance(y_c, y_c, embedder, target, settings, rows=1)(state)

    x = x0.clone().requires_grad_(True)
    mine = embedder.guidance_features(x)[-1]
    far = [(mine[0] - embedder.guidance_features(references[:1, index])[-1][0]).square().sum() for index in (0, 1)]
    loss = 0.5 * (x - y_c).square().sum() + 3.0 * sum(far) / 2
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got.mean_shift, -0.2 * 0.25 * gradient, rtol=1e-3, atol=1e-6)
    assert float(got.stats["loss_reference"][1]) == 0 < float(got.stats["loss_reference"][0])


def test_a_picture_without_references_is_moved_by_the_coarse_one_alone():
    embedder = components()["embedder"]
    x0, y_c = to_network(faces(1, 1)), to_network(faces(1, 2))
    state = StepState(0, 1, 500, 400, x0, torch.zeros_like(x0), x0, torch.ones_like(x0))
    nobody = mean_embedding([(y_c, torch.tensor([False]))], embedder)
    with_, without = (PGDiffGuidance(y_c, y_c, embedder, target, PGDiffSettings())(state) for target in (nobody, None))
    assert torch.equal(with_.mean_shift, without.mean_shift) and "loss_reference" not in without.stats
