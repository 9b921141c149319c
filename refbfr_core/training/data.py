"""Pictures for training: read from the face cache, jittered, ruined. Every draw is a function of the stream it is
given."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.degradation import Degradation
from refbfr_core.errors import CacheError
from refbfr_core.faces.dataset import FaceCache, toy_faces
from refbfr_core.images import to_network
from refbfr_core.training.randomness import numbers, shuffled
from refbfr_core.training.recipes import Recipe

VAL_VIEWS = 4
VAL_SEED = 0
_MOST_PEOPLE = 10**6


def open_faces(
    recipe: Recipe,
    root: str | Path,
    workers: int | None = None,
    renderer: Callable[[int], Any] = toy_faces,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FaceCache, FaceCache]:
    """The recipe's training faces and its validation faces; drawn now if they are not on disk.

    With ``recipe.people == 0`` nothing is drawn for training: everybody who is there counts (the cache may still be
    growing). ``workers`` single-threaded processes draw, by default one for each core.

    Raises
    ------
    CacheError : ``people=0`` and nobody is on disk.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    val = FaceCache(root, "val", recipe.val_people, VAL_VIEWS, recipe.resolution, VAL_SEED, renderer)
    val.build(workers, progress=progress)

    def training_faces(people: int) -> FaceCache:
        return FaceCache(root, recipe.split, people, recipe.views, recipe.resolution, recipe.face_seed, renderer)

    if recipe.people:
        train = training_faces(recipe.people)
        train.build(workers, progress=progress)
        return train, val
    everybody = training_faces(_MOST_PEOPLE)
    if not everybody.ready:
        raise CacheError(
            f"people=0 takes the people on disk, but {everybody.folder} holds none; give people=N to draw N."
        )
    return training_faces(everybody.ready), val


def pictures(cache_images: Any, people: Sequence[int], views: Sequence[int]) -> Tensor:
    """Gather pictures from `FaceCache.images`: (n, 3, H, W) float32 in [0, 1]."""
    gathered = torch.from_numpy(cache_images[np.asarray(people), np.asarray(views)])
    return gathered.permute(0, 3, 1, 2).float().div_(255)


def degrade_some(images: Tensor, degradation: Degradation, share: float, seed: int, *keys: int) -> Tensor:
    """Ruin each picture with probability ``share``; the stream (seed, *keys) decides which and how."""
    draws = numbers(seed, *keys)
    chosen = np.flatnonzero(draws.random(len(images)) < share)
    seeds = draws.integers(0, 2**31, len(images))
    if not len(chosen):
        return images
    out = images.clone()
    out[chosen] = degradation(images[chosen], seeds=[int(seeds[i]) for i in chosen])[0]
    return out


def ruined_crops(images: Any, recipe: Recipe, degradation: Degradation, step: int, rank: int, world: int) -> Tensor:
    """Random crops (b, 3, crop, crop) in [-1, 1] of cached pictures, `recipe.lq_share` of them ruined: the batch of a
    first stage."""
    part = share_of(rank, world, recipe.batch)
    chosen = shuffled(recipe.seed, step, len(images) * recipe.views, recipe.batch)[part]
    x = pictures(images, *np.divmod(chosen, recipe.views))
    x = degrade_some(x, degradation, recipe.lq_share, recipe.seed, 13, step, rank)
    return to_network(random_crops(x, recipe.crop, numbers(recipe.seed, 11, step, rank)))


def jitter_geometry(
    images: Tensor, draws: np.random.Generator, shift: float = 0.03, scale: float = 0.05, turn: float = 4.0
) -> Tensor:
    """Flip half of the pictures, and shift (share of the side), scale and turn (degrees) all of them a little.

    (B, 3, H, W) to the same; what moves in from outside repeats the border.
    """
    count = len(images)
    angle = np.deg2rad(draws.uniform(-turn, turn, count))
    size = np.exp(draws.uniform(-scale, scale, count))
    mirror = np.where(draws.random(count) < 0.5, -1.0, 1.0)
    offset = draws.uniform(-2 * shift, 2 * shift, (count, 2))
    rows = np.stack(
        [
            np.stack([size * np.cos(angle) * mirror, -size * np.sin(angle), offset[:, 0]], 1),
            np.stack([size * np.sin(angle) * mirror, size * np.cos(angle), offset[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(torch.from_numpy(rows).float(), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter_colour(images: Tensor, draws: np.random.Generator, strength: float = 0.25, grey: float = 0.1) -> Tensor:
    """Change exposure, contrast, colour balance, saturation and hue of each picture; leave some nearly grey.

    ``strength`` 0.25 means factors of about 0.8 to 1.25. An embedder trained this way has to look at the structure of a
    face, since the colour of skin and hair no longer tells people apart. (B, 3, H, W) in [0, 1] to the same.
    """
    count = len(images)

    def factor(amount: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(np.exp(draws.uniform(-amount, amount, (count, channels, 1, 1)))).float()

    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = images * factor(strength) * factor(strength / 3, 3)
    luma = (x * weights).sum(1, keepdim=True)
    saturation = factor(2 * strength)
    nearly_grey = torch.from_numpy(draws.random((count, 1, 1, 1)) < grey)
    saturation = torch.where(nearly_grey, 0.1 * saturation, saturation)
    mean = luma.mean((2, 3), keepdim=True)
    x = luma + (x - luma) * saturation
    x = mean + (x - mean) * factor(strength)
    return turn_hue(x, torch.from_numpy(draws.uniform(-0.15, 0.15, count) * strength / 0.25).float()).clamp_(0, 1)


def turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate colours about the grey axis by (B,) ``angle`` in radians; keeps the sum of the channels."""
    cosine, sine = torch.cos(angle), torch.sin(angle) / math.sqrt(3)
    same = cosine + (1 - cosine) / 3
    up, down = (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    matrix = torch.stack([same, up, down, down, same, up, up, down, same], 1).view(-1, 3, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images)


def mirror_half(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Mirror each picture (B, C, H, W) with probability one half."""
    return torch.where(torch.from_numpy(draws.random((len(images), 1, 1, 1)) < 0.5), images.flip(-1), images)


def ruined_pairs(
    images: Any, recipe: Any, degradations: Sequence[Degradation], step: int, rank: int, world: int
) -> dict[str, Tensor]:
    """This process's share of a step's pairs: "clean" and "ruined" faces, both (b, 3, H, W) in [-1, 1].

    `recipe` has `seed`, `views`, `batch` and `flips` (mirror half of the faces); one of `degradations` is drawn for all
    pictures of the process.
    """
    part = share_of(rank, world, recipe.batch)
    chosen = shuffled(recipe.seed, step, len(images) * recipe.views, recipe.batch)[part]
    draws = numbers(recipe.seed, 11, step, rank)
    clean = pictures(images, *np.divmod(chosen, recipe.views))
    clean = mirror_half(clean, draws) if recipe.flips else clean
    degradation = degradations[int(draws.integers(len(degradations)))]
    ruined = degradation(clean, seeds=[int(seed) for seed in draws.integers(0, 2**31, len(clean))])[0]
    return {"clean": to_network(clean), "ruined": to_network(ruined)}


def random_crops(images: Tensor, size: int, draws: np.random.Generator) -> Tensor:
    """A random square of each picture, mirrored half of the time: (B, 3, H, W) to (B, 3, size, size)."""
    height, width = images.shape[-2:]
    tops, lefts = draws.integers(0, height - size + 1, len(images)), draws.integers(0, width - size + 1, len(images))
    mirrored = draws.random(len(images)) < 0.5
    crops = [
        image[:, top : top + size, left : left + size] for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    return torch.stack([crop.flip(-1) if mirror else crop for crop, mirror in zip(crops, mirrored, strict=True)])


def share_of(rank: int, world: int, size: int) -> slice:
    """The slots of a batch that belong to one of ``world`` equal processes."""
    part = size // world
    return slice(rank * part, (rank + 1) * part)
