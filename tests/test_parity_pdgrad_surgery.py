"""The combination of gradients against vectors computed from PDGrad's equations by other code."""

from __future__ import annotations

import parity_pdgrad_surgery as parity
import pytest
import torch
from parity_pdgrad_surgery import Arrays

from refbfr_core.diffusion import combine_gradients, total_gradient

both_types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    return parity.arrays()


def test_the_carried_arrays_are_the_shared_ones(shared_dir, recorded):
    shared = parity.arrays(shared_dir / "parity" / "pdgrad" / "pdgrad_surgery.npz")
    assert shared.keys() == recorded.keys()
    assert all((shared[key] == recorded[key]).all() for key in shared)


@both_types
@pytest.mark.parametrize("mode", parity.ABLATIONS)
def test_every_pair(recorded, mode, dtype):
    parity.compare_pairs(combine_gradients, recorded, mode, dtype)


@both_types
def test_statistics(recorded, dtype):
    parity.compare_statistics(recorded, dtype)


def test_a_batch_is_not_one_long_vector(recorded):
    parity.compare_batch(combine_gradients, recorded)


@both_types
@pytest.mark.parametrize("mode", ["A1", "A2", "full", "A5", "A6"])
def test_totals(recorded, mode, dtype):
    parity.compare_totals(total_gradient, recorded, mode, dtype)


@pytest.mark.parametrize(("words", "ablation"), [("sum", "A1"), ("project", "A2"), ("c-only", "A5"), ("r-only", "A6")])
def test_a_mode_has_two_names(recorded, words, ablation):
    parts = parity.tensors(recorded, torch.float32, "tot_low_c", "tot_low_r", "tot_high_c", "tot_high_r")
    assert torch.equal(total_gradient(*parts, words), total_gradient(*parts, ablation))


@both_types
def test_the_hand_checked_rows_are_exact(recorded, dtype):
    pivot, other = parity.tensors(recorded, dtype, "pivot", "other")
    row = recorded["names"].tolist().index("hand_k_quarter")
    first = slice(row, row + 1)
    (found,) = combine_gradients(pivot[first], other[first])
    assert pivot[row].flatten()[:2].tolist() == [1, 0] and other[row].flatten()[:2].tolist() == [-1, 4]
    assert found.flatten()[:2].tolist() == [1, 1] and found.flatten()[2:].abs().max() == 0
