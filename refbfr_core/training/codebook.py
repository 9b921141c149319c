"""k-means for codebooks: few dimensions, many centres."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 4096


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (N,) of the code (K, C) nearest to each vector (N, C) in Euclidean distance."""
    return torch.cat([torch.cdist(part, codes).argmin(1) for part in vectors.split(_CHUNK)])


def kmeans(vectors: Tensor, count: int, generator: torch.Generator, rounds: int = 12) -> Tensor:
    """``count`` centres (count, C) of (N, C) vectors by Lloyd's algorithm, N >= count.

    Starts from random vectors; a centre that nothing is near moves to a random vector.
    """
    device = vectors.device
    codes = vectors[torch.randperm(len(vectors), generator=generator)[:count].to(device)].clone()
    for _ in range(rounds):
        owner = nearest(vectors, codes)
        sums = torch.zeros_like(codes).index_add_(0, owner, vectors)
        sizes = torch.bincount(owner, minlength=count).to(codes.dtype)
        codes = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().squeeze(1)
        replacements = torch.randint(len(vectors), (len(empty),), generator=generator).to(device)
        codes[empty] = vectors[replacements]
    return codes
