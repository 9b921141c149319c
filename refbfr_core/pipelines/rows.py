"""Calling networks with the same number of rows every time, so that a picture's result does not depend on its batch.

Matrix libraries choose their kernels by the size of the batch, and kernels differ in the last bits. That is far below a
grey level, but the codebook of a latent diffusion model turns a near-tie between two codes into a visible patch: a
picture restored alone would now and then differ from the same picture restored in a batch. Therefore every call here
sees exactly as many rows; where there are fewer, rows are repeated and the copies thrown away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROW_GROUP = 4
"""Rows of every call: enough to be efficient on a CPU, few enough that a single picture is not too wasteful."""

SINGLE_FROM = 64
"""Latents a side from which pictures go one at a time: each fills the matrix kernels, and copies would only cost."""


def rows_per_call(side: int) -> int:
    """How many rows a call gets where the caller does not say: `ROW_GROUP`, or 1 from `SINGLE_FROM` latents a side."""
    return ROW_GROUP if side < SINGLE_FROM else 1


def row_groups(count: int, size: int = ROW_GROUP) -> list[Tensor]:
    """Indices of `count` rows in groups of exactly `size`; the last group is filled up with rows from the beginning."""
    filled = -(-count // size) * size
    return list((torch.arange(filled) % count).split(size))


def as_slice(group: Tensor) -> slice | Tensor:
    """A group of consecutive rows as a slice, which takes views instead of copies; any other group as it is."""
    return slice(int(group[0]), int(group[-1]) + 1) if bool((group.diff() == 1).all()) else group


def in_groups(function: Callable[[Tensor], Tensor], rows: Tensor, size: int = ROW_GROUP) -> Tensor:
    """`function` of all `rows` (N, ...), called on `size` of them at a time; gives (N, ...)."""
    outputs = [function(rows[group.to(rows.device)]) for group in row_groups(len(rows), size)]
    return torch.cat(outputs)[: len(rows)]
