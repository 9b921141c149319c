"""Figures of notebook 07: they show the numbers they are given."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.diffusion import Trace
from refbfr_core.diffusion.trace import TraceStep
from refbfr_core.metrics import Interval
from refbfr_core.notebook import pdgrad_figures as figures

TIMESTEPS = (600, 300, 0)
CONFLICTS = {"low": [[1, 1], [1, 0], [0, 0]], "high": [[0, 1], [0, 0], [1, 1]]}
K = {"low": [[0.5, 0.25], [0.75, 1], [1, 1]], "high": [[1, 0.5], [1, 1], [0.25, 0.75]]}


def trace(shift: float = 0.0) -> Trace:
    """Three steps of two pictures with the statistics that PDGrad's hook reports."""
    steps = []
    for index, t in enumerate(TIMESTEPS):
        stats = {"loss_low_c": torch.tensor([0.1, 0.2]) * (index + 1) + shift}
        for level in figures.LEVELS:
            conflict = torch.tensor(CONFLICTS[level][index], dtype=torch.float32)
            stats[f"{level}_conflict"] = conflict
            stats[f"{level}_angle"] = 60 + 60 * conflict
            stats[f"{level}_k"] = torch.tensor(K[level][index])
            stats[f"{level}_pivot_norm"] = torch.tensor([1.0, 3.0]) * 10**index
            stats[f"{level}_other_norm"] = torch.tensor([2.0, 4.0]) * 10**index
        steps.append(TraceStep(index, t, None, {}, stats, {}))
    made = Trace()
    made.steps = steps
    return made


@pytest.fixture
def table():
    return figures.step_statistics([trace()])


def points(line):
    return dict(zip(map(int, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def test_statistics_have_a_line_a_picture_and_step():
    table = figures.step_statistics([trace(), trace(1.0)])
    assert len(table) == 12 and sorted(table.picture.unique()) == [0, 1, 2, 3]
    one = table[(table.t == 300) & (table.picture == 3)].iloc[0]
    assert one.loss_low_c == pytest.approx(1.4) and one.low_conflict == 0
    assert set(table.columns) >= {"t", "picture", "low_angle", "high_k", "high_other_norm"}


def test_conflicts_angles_and_caps_over_the_timesteps(table):
    figure = figures.conflict_figure(table)
    share, angle, capped = figure.axes
    low, high = share.lines
    assert points(low) == {0: 0, 300: 50, 600: 100} and points(high) == {0: 100, 300: 0, 600: 50}
    assert points(angle.lines[0]) == {0: 60, 300: 90, 600: 120}
    # Only pictures in conflict count for k; at t = 0 nobody is at the low level.
    assert points(capped.lines[0]) == {300: 0.75, 600: 0.375} and points(capped.lines[1]) == {0: 0.5, 600: 0.5}
    assert [text.get_text() for text in share.get_legend().get_texts()] == ["low level", "high level"]
    # Sampling runs from left to right.
    assert all(ax.get_xlim()[0] > ax.get_xlim()[1] for ax in figure.axes)


def test_lengths_are_medians_and_name_the_pivot(table):
    figure = figures.length_figure(table)
    low, high = figure.axes
    assert points(low.lines[0]) == pytest.approx({600: 2, 300: 20, 0: 200})
    assert points(low.lines[1]) == pytest.approx({600: 3, 300: 30, 0: 300})
    texts = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (low, high)]
    assert texts == [["coarse picture (pivot)", "reference"], ["reference (pivot)", "coarse picture"]]
    assert low.get_yscale() == "log" and low.get_xlim()[0] > low.get_xlim()[1]


def test_maps_show_where_and_not_how_much():
    gradient = torch.zeros(3, 8, 8)
    gradient[:, 2, 3] = torch.tensor([0.3, 0.4, 0.0])
    gradient[0, 5, 5] = 0.25
    weak, strong = figures.gradient_maps({"weak": gradient, "strong": 1000 * gradient})
    assert weak.shape == (3, 8, 8) and torch.allclose(weak, strong, atol=1e-5)
    assert float(weak.max()) == 1 and 0 < float(weak[0, 5, 5]) <= 1 and float(weak[0, 0, 7]) == 0
    assert torch.equal(weak[0], weak[2])
    assert not figures.gradient_maps({"none": torch.zeros(3, 8, 8)})[0].any()


def test_intervals_lie_at_their_arms_and_missing_ones_stay_empty():
    between = Interval(-0.2, -0.3, -0.05, 12)
    figure = figures.interval_figure(
        {"ids": {"A1": between, "A2": None}, "psnr": {"A1": None, "A2": Interval(1.0, 0.5, 2.0, 12)}},
        {"ids": "IDS, arm minus PDGrad", "psnr": "PSNR, dB"},
    )
    left, right = figure.axes
    (bars,) = left.containers
    ((x,), (y,)) = bars.lines[0].get_data()
    assert (x, y) == (-0.2, 0)
    (segment,) = bars.lines[2][0].get_segments()
    assert list(segment[:, 0]) == pytest.approx([-0.3, -0.05])
    assert right.containers[0].lines[0].get_ydata()[0] == 1
    assert [label.get_text() for label in left.get_yticklabels()] == ["A1", "A2"]
    assert left.get_xlabel() == "IDS, arm minus PDGrad"
    # The first arm is on top, in both panels.
    assert all(ax.get_ylim()[0] > ax.get_ylim()[1] for ax in (left, right))


def test_intervals_as_text():
    assert figures.ends(Interval(-0.2, -0.3, 0.05, 12)) == "-0.200 [-0.300, +0.050]"
    assert figures.ends(Interval(-1e-9, -0.5, 0.25, 10), 2) == "+0.00 [-0.50, +0.25]"
    assert figures.ends(None) == "–"
