"""Comparisons with the recorded PDGrad vectors, shared by parity tests and mutation tests.

PDGrad has no public code. The vectors were computed in float64 numpy straight from the article's equations, by other
code than this package's; fixtures/pdgrad_surgery.npz is a copy that travels with the repository.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refbfr_core.diffusion import GradientStats, combine_gradients

CARRIED = Path(__file__).parent / "fixtures" / "pdgrad_surgery.npz"
ABLATIONS = {"sum": "A1", "project": "A2", "full": "full"}
# Allowed ||difference|| as a share of ||pivot|| + ||other||.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

Combine = Callable[[Tensor, Tensor, str], Tensor]
Total = Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor]
Arrays = dict[str, np.ndarray]


def arrays(path: Path = CARRIED) -> Arrays:
    with np.load(path) as archive:
        return {key: archive[key] for key in archive}


def tensors(recorded: Arrays, dtype: torch.dtype, *names: str) -> list[Tensor]:
    return [torch.from_numpy(recorded[name]).to(dtype) for name in names]


def norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.double().flatten(1), dim=1)


def close(found: Tensor, expected: Tensor, size: Tensor, tolerance: float, what: str) -> None:
    """Each sample's difference is at most ``tolerance`` of ``size`` (B,); samples of zeros must be equal."""
    assert found.shape == expected.shape
    off = norm(found.double() - expected)
    share = torch.where(off == 0, 0.0, off / size)
    assert float(share.max()) <= tolerance, f"{what} is off by {float(share.max()):.2g} in sample {int(share.argmax())}"


def compare_pairs(combine: Combine, recorded: Arrays, mode: str, dtype: torch.dtype = torch.float64) -> None:
    """All 25 pairs of one mode in one batch."""
    pivot, other = tensors(recorded, dtype, "pivot", "other")
    found = combine(pivot, other, mode)
    assert found.dtype is dtype
    expected = torch.from_numpy(recorded[f"{ABLATIONS[mode]}_g64"])
    close(found, expected, norm(pivot) + norm(other), TOLERANCE[dtype], f"{mode}")
    if dtype is torch.float64:
        assert torch.allclose(found, expected, rtol=1e-12, atol=0), f"{mode} is off by more than 1e-12 somewhere"


def compare_batch(combine: Combine, recorded: Arrays) -> None:
    """Four rows together give what each gives alone, and not what one long vector of all four would give."""
    rows = recorded["batch_rows"]
    pivot, other = (x[torch.from_numpy(rows)] for x in tensors(recorded, torch.float64, "pivot", "other"))
    found, size = combine(pivot, other, "full"), norm(pivot) + norm(other)
    close(found, torch.from_numpy(recorded["full_g64"][rows]), size, 1e-12, "a batch of four")
    batch_wide = torch.from_numpy(recorded["batch_global_full_g64"])
    assert bool((norm(found - batch_wide) > 1e-3 * size).any()), "the batch is off by being one long vector"


def compare_statistics(recorded: Arrays, dtype: torch.dtype) -> None:
    """Everything recorded on the way: dot products, conflicts, projections, factors."""
    pivot, other = tensors(recorded, dtype, "pivot", "other")
    for mode, ablation in ABLATIONS.items():
        _, stats = combine_gradients(pivot, other, mode, return_stats=True)
        assert isinstance(stats, GradientStats)
        assert stats.conflict.tolist() == recorded["conflict"].tolist()
        dot, size = torch.from_numpy(recorded["dot64"]), norm(pivot) * norm(other)
        assert bool(((stats.dot - dot).abs() <= 1e-12 * size).all())
        assert torch.allclose(stats.k, torch.from_numpy(recorded[f"{ablation}_k64"]), rtol=1e-12, atol=0)
        if mode == "sum":
            continue
        projected = norm(torch.from_numpy(recorded[f"{ablation}_projected64"]))
        assert bool(((stats.projected_norm - projected).abs() <= 1e-12 * (norm(pivot) + norm(other))).all())


def compare_totals(total: Total, recorded: Arrays, mode: str, dtype: torch.dtype = torch.float64) -> None:
    """The whole gradient of three samples (eq. 26) under an ablation's name."""
    parts = tensors(recorded, dtype, "tot_low_c", "tot_low_r", "tot_high_c", "tot_high_r")
    found = total(*parts, mode)
    assert found.dtype is dtype
    expected = torch.from_numpy(recorded[f"tot_{mode}_g64"])
    close(found, expected, sum(norm(part) for part in parts), TOLERANCE[dtype], f"total {mode}")
