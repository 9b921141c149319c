"""The arrows of notebook 06: pictures that show what the equations say, and walks that end where they must."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.diffusion import combine_gradients
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.notebook import arrows, frame_strip, two_losses
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.two_losses import COMBINATIONS, combined, descend

UNIT = arrows.turned(1.0, 0.0)


def tips(ax) -> list[tuple[float, float]]:
    """Where the drawn arrows end."""
    return [tuple(round(float(part), 6) for part in text.xy) for text in ax.texts]


# --- arrows -----------------------------------------------------------------------------------------------------------


def test_right_angles_are_exact():
    assert arrows.turned(2.0, 90).tolist() == [[0, 2]] and arrows.turned(2.0, 270).tolist() == [[0, -2]]
    assert not bool(combine_gradients(UNIT, arrows.turned(2.0, 270), return_stats=True)[1].conflict)


def test_the_drawn_arrows_are_the_computed_ones():
    _, ((ax,),) = blank_figure()
    pivot, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 4.0]])
    arrows.draw_arrows(ax, pivot, other, "full")
    assert tips(ax) == [(1, 0), (-1, 4), (0, 1), (1, 1)]
    _, ((ax,),) = blank_figure()
    arrows.draw_arrows(ax, pivot, other, "sum", legend=True)
    assert tips(ax) == [(1, 0), (-1, 4), (0, 4)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pivot", "other", "result"]


def test_nothing_is_drawn_for_what_has_no_length():
    _, ((ax,),) = blank_figure()
    arrows.draw_arrows(ax, UNIT, -UNIT, "full")  # exact opposition: nothing is left of the other
    assert tips(ax) == [(1, 0), (-1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("pivot", "other"),
    [(torch.ones(1, 2), UNIT), (-UNIT, UNIT), (UNIT[0], UNIT[0]), (UNIT, torch.ones(1, 3)), (0 * UNIT, UNIT)],
)
def test_arrows_that_cannot_be_drawn(pivot, other):
    _, ((ax,),) = blank_figure()
    with pytest.raises(ConfigError, match="along the x axis"):
        arrows.draw_arrows(ax, pivot, other)


def test_side_by_side_names_every_way():
    titles = [ax.get_title() for ax in arrows.side_by_side(UNIT, arrows.turned(2.0, 130)).axes]
    assert [title.split("\n")[0] for title in titles] == list(COMBINATIONS)
    assert titles[2].endswith("1.00") and titles[0].endswith("-0.29")  # 1 + 2 cos 130 degrees


def test_frames_make_a_strip_whose_pictures_change_with_the_angle():
    turns = [(0, 2.0), (60, 2.0), (120, 2.0), (120, 0.5)]
    frames, labels = arrows.turning(turns)
    assert all(frame.shape == (3, 200, 200) and frame.dtype is torch.float32 for frame in frames)
    assert min(float((a - b).abs().max()) for a, b in zip(frames, frames[1:], strict=False)) > 0.3
    assert labels[1] == "60°, length 2.0: no conflict, plain sum"
    assert labels[2] == "120°, length 2.0: projected, k = 0.58" and labels[3].endswith("k = 1.00")  # 1 / sqrt(3)
    strip = frame_strip(frames, labels, alt="An arrow turns around another one.")
    assert strip.html.count("<img") == 4


def test_the_profile_shows_the_jump_and_draws_no_line_across_it():
    left, right = arrows.length_profile([0.5, 2.0]).axes
    for ax, expected in ((left, 0.0), (right, 5**0.5 - 2**0.5)):
        angle, length = (torch.as_tensor(part) for part in ax.lines[1].get_data())
        gap = int(length.isnan().nonzero())
        assert abs(float(angle[gap]) - 90) < 0.5
        assert float(length[gap - 1] - length[gap + 1]) == pytest.approx(expected, abs=0.03)


# --- walks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walks() -> dict[str, two_losses.Descent]:
    return descend(two_losses.bowls(), steps=80, rate=0.1)


def test_gradients_are_those_of_the_losses():
    landscape, points = two_losses.valley(), torch.tensor([[0.3, -0.2], [-1.0, 1.1]], dtype=torch.float64)
    for loss in (landscape.pivot, landscape.other, two_losses.bowl((1.0, 2.0), (3.0, 0.5), 40.0)):
        found, step = two_losses.gradient(loss, points), 1e-6
        for axis in range(2):
            shift = step * torch.eye(2, dtype=torch.float64)[axis]
            slope = (loss(points + shift) - loss(points - shift)) / (2 * step)
            assert torch.allclose(found[:, axis], slope, atol=1e-7)


def test_a_bowl_is_steep_along_its_own_axes():
    loss = two_losses.bowl((1.0, 1.0), (4.0, 1.0), 90.0)
    points = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    assert torch.allclose(loss(points), torch.tensor([0.0, 2.0, 0.5], dtype=torch.float64), atol=1e-12)


def test_where_each_walk_ends(walks):
    landscape = two_losses.bowls()
    start = torch.tensor(landscape.start, dtype=torch.float64)
    assert all(torch.equal(walk.points[0], start) and walk.points.shape == (81, 2) for walk in walks.values())
    ends = {name: walk.points[-1:] for name, walk in walks.items()}
    both = (landscape.pivot, landscape.other)
    slope = {name: [two_losses.gradient(loss, x) for loss in both] for name, x in ends.items()}
    assert float(sum(slope["sum"]).norm()) < 1e-3  # the minimum of both losses added
    assert float(slope["PCGrad"][0].norm()) > 0.1 and float(walks["PCGrad"].angles[-1]) > 179.9  # opposed, not zero
    assert float(walks["full"].pivot_loss[-1]) < 1e-3 < float(walks["project"].pivot_loss[-1])
    assert walks["full"].rises == 0 < walks["sum"].rises
    assert 0 < walks["full"].conflicts <= 80 and walks["full"].angles.shape == (80,)


def test_a_walk_does_not_depend_on_the_others(walks):
    alone = descend(two_losses.bowls(), steps=80, rate=0.1, names=("full",))
    assert torch.allclose(alone["full"].points, walks["full"].points, rtol=1e-10, atol=1e-12)


def test_the_walk_of_the_pivot_alone_ignores_the_other(walks):
    other = two_losses.Landscape("another", two_losses.bowls().pivot, lambda x: -x.sum(dim=1), two_losses.bowls().start)
    alone = descend(other, steps=80, rate=0.1, names=("pivot",))
    assert torch.equal(alone["pivot"].points, walks["pivot"].points)


def test_the_figure_of_the_walks(walks):
    left, right = arrows.descent_figure(two_losses.bowls(), walks).axes
    assert left.get_title() == "two bowls" and right.get_yscale() == "log"
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(COMBINATIONS)
    with pytest.raises(ConfigError, match="one to four"):
        arrows.descent_figure(two_losses.bowls(), walks, names=("full", "adam"))


def test_refusals():
    with pytest.raises(UnknownNameError, match="PCGrad"):
        combined(UNIT, UNIT, "pcgrad2")
    with pytest.raises(UnknownNameError):
        descend(two_losses.bowls(), steps=2, rate=0.1, names=("mean",))
    for wrong in ({"steps": 0, "rate": 0.1}, {"steps": 2, "rate": 0.0}, {"steps": 2, "rate": float("nan")}):
        with pytest.raises(ConfigError, match="at least one step"):
            descend(two_losses.bowls(), **wrong)
