"""The noise of an image depends on its own seed only."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.diffusion import (
    image_generators,
    image_noise,
    image_seeds,
    refldm_schedule,
    sample,
    sample_ancestral,
    trailing_timesteps,
)
from refbfr_core.errors import ConfigError

SHAPE = (2, 8, 8)


def restore(seeds: list[int], eta: float) -> torch.Tensor:
    """A stochastic run of several draws an image, with a stand-in for a network that treats images one by one."""
    generators = image_generators(seeds, len(seeds))
    start = image_noise(generators, SHAPE)
    timesteps = trailing_timesteps(1000, 5)

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x_t) * (1 + t / 1000)

    if eta < 0:
        return sample_ancestral(predict, start, timesteps, refldm_schedule(), generators=generators)
    return sample(predict, start, timesteps, refldm_schedule(), eta=eta, generators=generators)


@pytest.mark.parametrize("eta", [0.0, 1.0, -1.0], ids=["ddim", "eta1", "ancestral"])
def test_alone_in_a_batch_and_shuffled_are_the_same(eta):
    seeds = [11, 12, 13, 14]
    batch = restore(seeds, eta)
    alone = torch.cat([restore([s], eta) for s in seeds])
    shuffled = restore([13, 11, 14, 12], eta)
    assert torch.equal(batch, alone)
    assert torch.equal(batch[[2, 0, 3, 1]], shuffled)
    assert torch.equal(batch, restore(seeds, eta))
    assert not torch.equal(batch[0], batch[1])


def test_an_int_counts_up_from_itself():
    assert image_seeds(7, 3) == [7, 8, 9]
    first = image_noise(image_generators(7, 3), SHAPE)
    assert torch.equal(first[2:], image_noise(image_generators(9, 1), SHAPE))


def test_noise_does_not_depend_on_dtype():
    wide = image_noise(image_generators(3, 2), SHAPE)
    assert torch.equal(wide.bfloat16(), image_noise(image_generators(3, 2), SHAPE, dtype=torch.bfloat16))


def test_noise_is_standard_normal_and_uncorrelated_between_neighbouring_seeds():
    noise = image_noise(image_generators(0, 2), (4, 64, 64)).flatten(1)
    assert noise.mean().abs() < 0.03
    assert (noise.std() - 1).abs() < 0.03
    assert torch.corrcoef(noise)[0, 1].abs() < 0.03


def test_generators_of_the_caller_are_used_as_they_are():
    mine = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    assert image_generators(mine, 2) == mine
    assert torch.equal(image_noise(mine, SHAPE), image_noise(image_generators(5, 2), SHAPE))
    single = torch.Generator().manual_seed(5)
    assert image_generators(single, 1) == [single]


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    image_noise(image_generators(0, 2), SHAPE)
    assert torch.equal(before, torch.get_rng_state())


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("seed", "n", "message"),
    [
        ([1, 2], 3, "2 seeds for 3 images"),
        (torch.Generator(), 2, "one torch.Generator for 2 images"),
        ([torch.Generator()], 2, "1 generators for 2 images"),
        ([GENERATOR, GENERATOR], 2, "appears twice"),
        ([torch.Generator(), 4], 2, "mixes"),
        (1.5, 1, "seed is 1.5"),
        ("12", 2, "expected one seed an image"),
        (-1, 1, "outside"),
        (2**63 - 1, 2, "outside"),
        (0, 0, "at least one image"),
        (None, 1, "seed is None"),
    ],
)
def test_wrong_seeds_are_refused(seed, n, message):
    with pytest.raises(ConfigError, match=message):
        image_generators(seed, n)


def test_no_generators_no_noise():
    with pytest.raises(ConfigError, match="no generators"):
        image_noise([], SHAPE)
