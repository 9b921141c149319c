"""Would anybody notice? Each known way to get PDGrad's combination wrong must fail the comparison of the parity tests.

`plain` writes the equations down once more, in the shortest way, with a switch for every mistake. With all switches off
it passes the same comparisons, so a switch is the only reason for a failure.
"""

from __future__ import annotations

from functools import partial

import parity_pdgrad_surgery as parity
import pytest
import torch
from parity_pdgrad_surgery import Arrays, Combine
from torch import Tensor


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    return parity.arrays()


def plain(
    pivot: Tensor,
    other: Tensor,
    mode: str,
    *,
    axes: tuple[int, ...] = (1, 2, 3),
    swapped: bool = False,
    cap_always: bool = False,
    project_always: bool = False,
    power: int = 1,
    cap_before_projection: bool = False,
    epsilon: float = 0.0,
) -> Tensor:
    """Equations 20 to 22 in float64, without any care for extreme sizes."""
    p, o = (other, pivot) if swapped else (pivot, other)
    p, o = p.double(), o.double()

    def sum_of(x: Tensor) -> Tensor:
        return x.sum(dim=axes, keepdim=True)

    dot, square = sum_of(p * o), sum_of(p * p) + epsilon
    conflict = dot < 0
    if mode == "sum":
        return (p + o).to(pivot.dtype)
    share = torch.where(conflict | project_always, dot / torch.where(square > 0, square, 1.0), 0.0)
    projected = o - share * p
    if mode == "full":
        length = sum_of((o if cap_before_projection else projected).square()).sqrt()
        k = torch.where(length > square.sqrt(), (square.sqrt() / length) ** power, 1.0)
        projected = torch.where(conflict | cap_always, k, 1.0) * projected
    return (p + projected).to(pivot.dtype)


def plain_total(low_c: Tensor, low_r: Tensor, high_c: Tensor, high_r: Tensor, mode: str, *, mistake: str) -> Tensor:
    """Equation 26, with one of the mistakes that only the whole shows."""
    if mode in ("A5", "A6"):
        first = mode == "A5" if mistake != "A5 and A6 exchanged" else mode == "A6"
        return low_c + high_c if first else low_r + high_r
    mode = {"A1": "sum", "A2": "project"}.get(mode, mode)
    if mistake == "coarse pivots twice":
        return plain(low_c, low_r, mode) + plain(high_c, high_r, mode)
    if mistake == "reference pivots twice":
        return plain(low_r, low_c, mode) + plain(high_r, high_c, mode)
    if mistake == "levels exchanged":
        return plain(low_r, low_c, mode) + plain(high_c, high_r, mode)
    if mistake == "levels added before the surgery":
        return plain(low_c + high_r, low_r + high_c, mode)
    return plain(low_c, low_r, mode) + plain(high_r, high_c, mode)


# mistake -> (switches, modes that must notice)
MISTAKES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "projection over the whole batch": ({"axes": (0, 1, 2, 3)}, ("project", "full")),
    "projection per channel": ({"axes": (2, 3)}, ("project", "full")),
    "projection per pixel": ({"axes": (1,)}, ("project", "full")),
    "pivot and other exchanged": ({"swapped": True}, ("project", "full")),
    "projection without a conflict": ({"project_always": True}, ("project", "full")),
    "cap without a conflict": ({"cap_always": True}, ("full",)),
    "k from squared norms": ({"power": 2}, ("full",)),
    "no k": ({"power": 0}, ("full",)),
    "k from the unprojected other": ({"cap_before_projection": True}, ("full",)),
    "an epsilon in the denominator": ({"epsilon": 1e-8}, ("project", "full")),
}
CASES = [(name, mode) for name, (_, modes) in MISTAKES.items() for mode in modes]


def wrong(name: str) -> Combine:
    return partial(plain, **MISTAKES[name][0])


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_mistake_is_noticed(recorded, name, mode, dtype):
    with pytest.raises(AssertionError, match="is off by"):
        parity.compare_pairs(wrong(name), recorded, mode, dtype)


def test_one_long_vector_is_what_the_recorded_batch_warns_of(recorded):
    rows = torch.from_numpy(recorded["batch_rows"])
    pivot, other = (x[rows] for x in parity.tensors(recorded, torch.float64, "pivot", "other"))
    mistaken = wrong("projection over the whole batch")
    warned = torch.from_numpy(recorded["batch_global_full_g64"])
    assert torch.allclose(mistaken(pivot, other, "full"), warned, rtol=1e-10, atol=1e-12)
    with pytest.raises(AssertionError, match="is off by"):
        parity.compare_batch(mistaken, recorded)


@pytest.mark.parametrize(
    ("mistake", "modes"),
    [
        ("coarse pivots twice", ("A2", "full")),
        ("reference pivots twice", ("A2", "full")),
        ("levels exchanged", ("A2", "full")),
        ("levels added before the surgery", ("A2", "full")),
        ("A5 and A6 exchanged", ("A5", "A6")),
    ],
)
def test_a_mistake_in_the_total_is_noticed(recorded, mistake, modes):
    for mode in modes:
        with pytest.raises(AssertionError, match="is off by"):
            parity.compare_totals(partial(plain_total, mistake=mistake), recorded, mode)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", parity.ABLATIONS)
def test_without_a_mistake_the_comparison_passes(recorded, mode, dtype):
    parity.compare_pairs(plain, recorded, mode, dtype)


def test_without_a_mistake_batches_and_totals_pass(recorded):
    parity.compare_batch(plain, recorded)
    for mode in ("A1", "A2", "full", "A5", "A6"):
        parity.compare_totals(partial(plain_total, mistake="none"), recorded, mode)
