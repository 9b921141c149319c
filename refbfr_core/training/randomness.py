"""Random streams that are functions of numbers, so that a resumed training sees the batches it would have seen."""

from __future__ import annotations

import numpy as np
import torch


def numbers(seed: int, *keys: int) -> np.random.Generator:
    """NumPy generator of the stream named by non-negative integers, for example (seed, step, slot)."""
    return np.random.default_rng([seed, *keys])


def generator(seed: int, *keys: int) -> torch.Generator:
    """Torch generator (CPU) of the stream named by non-negative integers."""
    word = np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))


def shuffled(seed: int, step: int, count: int, size: int) -> np.ndarray:
    """The ``size`` indices below ``count`` that step ``step`` visits, when every pass goes through all in a new order.

    A function of its arguments alone: no state is kept between steps. Within one pass no index repeats.
    """
    first = step * size
    passes = {}
    out = np.empty(size, np.int64)
    for slot in range(size):
        epoch, place = divmod(first + slot, count)
        if epoch not in passes:
            passes[epoch] = numbers(seed, 7, epoch).permutation(count)
        out[slot] = passes[epoch][place]
    return out
