"""The plane in which the ideal denoiser is known: the closed forms agree with what they claim to be."""

from __future__ import annotations

import math

import pytest
import torch

from refbfr_core.diffusion import add_noise, refldm_schedule, sample, trailing_timesteps
from refbfr_core.errors import ConfigError
from refbfr_core.notebook.mixture import Mixture, energy_distance, ring


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("t", "label"), [(0, None), (200, None), (700, 1), (999, None)])
def test_exact_noise_is_the_score_of_the_noisy_density(t, label):
    """E[eps | x] = -sqrt(1 - a) grad log p_t(x); the gradient comes from autograd, not from a formula."""
    world, schedule = ring(std=0.3), refldm_schedule()
    a = schedule.alpha_bar(t)
    means = (world.means if label is None else world.means[world.labels == label]).double()
    x = torch.randn(50, 2, generator=generator(), dtype=torch.float64).requires_grad_()
    variance = a * world.std**2 + 1 - a
    distance = (x[:, None] - math.sqrt(a) * means).square().sum(2)
    (score,) = torch.autograd.grad(torch.logsumexp(-distance / (2 * variance), dim=1).sum(), x)
    expected = -math.sqrt(1 - a) * score
    torch.testing.assert_close(world.exact_eps(x.detach(), t, schedule, label), expected, rtol=1e-5, atol=1e-6)


def test_exact_noise_cannot_be_beaten_on_average():
    world, schedule = ring(), refldm_schedule()
    x0, _ = world.sample(20_000, generator())
    noise = torch.randn(x0.shape, generator=generator(1))
    for t in (50, 300, 800):
        x_t = add_noise(x0, noise, t, schedule)
        best = world.exact_eps(x_t, t, schedule)
        loss = (best - noise).square().mean()
        assert loss < (best * 1.03 - noise).square().mean() and loss < (best + 0.03 - noise).square().mean()


def test_ideal_denoiser_brings_noise_back_to_the_ring():
    world, schedule = ring(), refldm_schedule()
    fresh, _ = world.sample(1500, generator())
    x_T = torch.randn(1500, 2, generator=generator(1))
    drawn = sample(lambda x, t: world.exact_eps(x, t, schedule), x_T, trailing_timesteps(1000, 50), schedule)
    assert energy_distance(drawn, fresh) < 0.01 < 0.5 < energy_distance(x_T * 3, fresh)


def test_ring_has_equal_classes_of_neighbours():
    world = ring(9, classes=3)
    assert world.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and world.classes == 3
    points, labels = world.sample(9000, generator())
    assert torch.bincount(labels).min() > 2800
    assert (world.nearest_label(points) == labels).float().mean() > 0.9
    assert points.var(dim=0).mean().item() == pytest.approx(1.0, abs=0.1)


def test_energy_distance_is_zero_for_the_same_distribution_only():
    a, b = torch.randn(1500, 2, generator=generator(0)), torch.randn(1500, 2, generator=generator(1))
    assert abs(energy_distance(a, b)) < 0.01
    assert energy_distance(a, b + 0.5) > 0.1
    assert energy_distance(a, b + 0.5) == pytest.approx(energy_distance(b + 0.5, a), rel=1e-4)


def test_bad_input():
    with pytest.raises(ConfigError):
        Mixture(torch.zeros(3, 2), 0.1, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigError):
        Mixture(torch.zeros(3, 2), 0.0, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ConfigError, match="multiple of 3"):
        ring(10)
    with pytest.raises(ConfigError, match="class 7"):
        ring().exact_eps(torch.zeros(1, 2), 5, refldm_schedule(), label=7)
    with pytest.raises(ConfigError):
        energy_distance(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ConfigError):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))
