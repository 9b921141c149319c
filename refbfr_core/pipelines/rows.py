"""Calling networks with the same number of rows every time, so that a picture's result does not depend on its batch.

Matrix libraries choose their kernels by the size of the batch, and kernels differ in the last bits. That is far below a
grey level, but the codebook of a latent diffusion model turns a near-tie between two codes into a visible patch: a
picture restored alone would now and then differ from the same picture restored in a batch. Therefore every call here
sees exactly `ROW_GROUP` rows; where there are fewer, rows are repeated and the copies thrown away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROW_GROUP = 4
"""Rows of every call: enough to be efficient on a CPU, few enough that a single picture is not too wasteful."""


def row_groups(count: int, size: int = ROW_GROUP) -> list[Tensor]:
    """Indices of `count` rows in groups of exactly `size`; the last group is filled up with rows from the beginning."""
    filled = -(-count // size) * size
    return list((torch.arange(filled) % count).split(size))


def in_groups(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function` of all `rows` (N, ...), called on `ROW_GROUP` of them at a time; gives (N, ...)."""
    outputs = [function(rows[group.to(rows.device)]) for group in row_groups(len(rows))]
    return torch.cat(outputs)[: len(rows)]
