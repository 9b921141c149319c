"""Noise that belongs to an image, not to the batch it travels in.

Each image has its own ``torch.Generator`` on the CPU, so a picture restored alone, in a batch or in another order, on
a CPU or on a GPU, starts from the same noise and receives the same noise at every step.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError

__all__ = ["image_generators", "image_noise", "image_seeds"]

_MAX_SEED = 2**63 - 1


def image_seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """One seed for each of n images.

    An int s means s, s + 1, ..., s + n - 1; a list is taken as it is. So image i of a batch with seed s is reproduced
    alone with seed s + i.

    Raises:
        ConfigError: a list that does not have n entries, n below 1, or a seed that is not an integer in 0 ... 2^63 - 1.
    """
    if n < 1:
        raise ConfigError(f"seeds asked for {n} images; expected at least one image.")
    if isinstance(seed, Sequence):
        if isinstance(seed, str) or len(seed) != n:
            raise ConfigError(
                f"{len(seed)} seeds for {n} images; expected one seed an image. Pass a list of {n}, or a single int "
                "(image i then takes seed + i)."
            )
        return [_check_seed(s) for s in seed]
    first = _check_seed(seed)
    return [_check_seed(first + i) for i in range(n)]


def image_generators(
    seed: int | Sequence[int] | torch.Generator | Sequence[torch.Generator], n: int
) -> list[torch.Generator]:
    """One CPU generator for each of n images, from seeds or from generators the caller already has.

    Args:
        seed: an int (image i takes seed + i), a list of n ints, or a list of n CPU ``torch.Generator`` (returned as
            they are: drawing advances them). A single generator serves a single image only.
        n: number of images.

    Raises:
        ConfigError: a wrong number of seeds or generators, one generator for several images (they would take turns, so
            an image's noise would depend on its place in the batch), the same generator twice, or a generator that is
            not on the CPU.
    """
    if isinstance(seed, torch.Generator):
        if n != 1:
            raise ConfigError(
                f"one torch.Generator for {n} images would make an image's noise depend on its place in the batch. "
                f"Pass a list of {n} generators, or seed=<int>."
            )
        seed = [seed]
    if isinstance(seed, Sequence) and not isinstance(seed, str) and any(isinstance(s, torch.Generator) for s in seed):
        return _check_generators(seed, n)
    return [torch.Generator(device="cpu").manual_seed(s) for s in image_seeds(seed, n)]


def image_noise(
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise; row i comes from ``generators[i]`` alone.

    Drawn in float32 on the CPU and then moved and cast, so the values do not depend on device or dtype.

    Args:
        generators: B generators, see ``image_generators``; each is advanced by one draw.
        shape: shape of one image's noise, without the batch axis, such as (C, H, W).

    Returns:
        (B, *shape).

    Raises:
        ConfigError: no generator.
    """
    if not generators:
        raise ConfigError("no generators given; expected one an image. Use image_generators(seed, n).")
    rows = [torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in generators]
    return torch.stack(rows).to(dtype=dtype).to(device)


def _check_generators(generators: Sequence[object], n: int) -> list[torch.Generator]:
    if len(generators) != n:
        raise ConfigError(f"{len(generators)} generators for {n} images; expected one an image: a list of {n}.")
    for g in generators:
        if not isinstance(g, torch.Generator):
            raise ConfigError(
                f"the list mixes torch.Generator with {type(g).__name__}; pass only generators, or only ints."
            )
        if g.device.type != "cpu":
            raise ConfigError(
                f"a generator lives on {g.device}; noise is drawn on the CPU. Use torch.Generator('cpu')."
            )
    if len({id(g) for g in generators}) != n:
        raise ConfigError("the same torch.Generator appears twice; give every image its own, or pass seed=<int>.")
    return list(generators)


def _check_seed(seed: object) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        raise ConfigError(
            f"seed is {seed!r} of type {type(seed).__name__}; expected an int, or a list of ints, one an image."
        ) from None
    if not 0 <= value <= _MAX_SEED:
        raise ConfigError(f"seed {value} is outside 0..2^63-1. Use a non-negative seed such as 0.")
    return value
