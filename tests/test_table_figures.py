"""Figures of a finished table: what they show, what they say, and that the same rows make the same files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from table_rows import random_rows, table_rows

from refbfr_core.benchmark.tables.report import TableReport
from refbfr_core.benchmark.tables.results import picture_path
from refbfr_core.errors import ConfigError
from refbfr_core.images import write_image
from refbfr_core.notebook import table_figures as figures
from refbfr_core.notebook.table_grid import grid_alt, table_grid

ARMS = [("Input", "none"), ("CodeFormer", "none"), ("PDGrad", "right"), ("PDGrad", "wrong"), ("PDGrad", "none")]
LABELS = ["Input", "PDGrad, none", "PDGrad, right", "PDGrad, wrong", "CodeFormer"]
SCORES = {"psnr": 22.0, "niqe-toy": 5.0, "ids": 0.4}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    parts = [random_rows(ARMS, SCORES, items=8, seed=k, dataset=f"drawn-{w}") for k, w in enumerate(("mild", "severe"))]
    whole = pd.concat(parts, ignore_index=True)
    lost = (whole.system == "CodeFormer") & (whole["item"] == "item-001")
    whole.loc[lost, ["status", "reason", *SCORES]] = ["failed", "ConfigError: broken", np.nan, np.nan, np.nan]
    return whole


@pytest.fixture(scope="module")
def frame(rows) -> pd.DataFrame:
    return TableReport(rows, resamples=500).frame()


@pytest.fixture(scope="module")
def times(rows) -> pd.DataFrame:
    seconds = rows.system.map({"Input": 0.0, "CodeFormer": 0.5, "PDGrad": 8.0})
    return rows[["dataset", "item", "system", "references"]].assign(seconds=seconds)


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """A run's folder with flat pictures: the truth is white, the reference grey, an arm as dark as its place."""
    folder = tmp_path_factory.mktemp("run")
    own = rows[rows["dataset"] == "drawn-mild"]
    for line in own[own.status == "ok"].itertuples():
        shade = 0.1 * ARMS.index((line.system, line.references))
        label = f"{line.system}, {line.references}" if line.system == "PDGrad" else line.system
        write_image(picture_path(folder, line.dataset, label, line.item), torch.full((1, 3, 16, 16), shade))
        for name, value in (("truth", 1.0), ("reference", 0.75)):
            write_image(picture_path(folder, line.dataset, name, line.item), torch.full((1, 3, 16, 16), value))
    return folder


def test_everything_is_written_with_its_provenance_and_again_byte_for_byte(rows, times, run, tmp_path):
    report = TableReport(rows, resamples=500)
    made = figures.write_figures(rows, times, run, tmp_path / "one", report=report, people=3)
    assert [picture.path.name for picture in made] == [
        "plane.png", "identity.png", "differences-ids.png", "differences-psnr.png", "differences-niqe-toy.png",
        "time.png", "grid-drawn-mild.jpg",
    ]  # fmt: skip
    for picture in made:
        about = json.loads(picture.path.with_suffix(".json").read_text())
        assert about["alt"] == picture.alt and about["made_by"] == figures.MADE_BY
        assert about["settings"]["rows_sha256"] == figures.rows_digest(rows.sample(frac=1, random_state=0))
        assert len(picture.alt) > 60 and "NaN" not in picture.alt
        with Image.open(picture.path) as image:
            assert min(image.size) >= 140 and max(image.size) >= 250
    shuffled = rows.drop(columns="ids").sample(frac=1, random_state=2)
    again = figures.write_figures(shuffled, times, None, tmp_path / "two", report=TableReport(shuffled, resamples=500))
    first = {picture.path.name: (picture.data, picture.alt) for picture in made}
    assert len(again) == 4
    for picture in again:
        assert first[picture.path.name] == (picture.data, picture.alt)


def test_another_number_is_another_digest(rows):
    other = rows.copy()
    other.loc[0, "psnr"] += 1e-9
    assert figures.rows_digest(other) != figures.rows_digest(rows)


def test_without_two_scores_times_and_pictures_there_is_nothing(tmp_path):
    rows = random_rows(ARMS[:1], {"ssim": 0.5})
    with pytest.raises(ConfigError, match="nothing to draw"):
        figures.write_figures(rows, None, None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_points_of_the_plane_lie_at_the_means(frame):
    figure = figures.plane_figure(frame, "psnr", "niqe-toy", {"drawn-mild": "Mild"})
    assert [ax.get_title() for ax in figure.axes] == ["Mild", "drawn-severe"]
    drawn = {tuple(np.round(c.lines[0].get_xydata()[0], 9)) for ax in figure.axes for c in ax.containers}
    means = frame.pivot(index=["dataset", "arm"], columns="metric", values="measured")
    assert drawn == {tuple(np.round(point, 9)) for point in means[["psnr", "niqe-toy"]].to_numpy()}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == LABELS
    with pytest.raises(ConfigError, match="musiq"):
        figures.plane_figure(frame, "psnr", "musiq")


def test_no_two_arms_look_the_same():
    others = [(f"system-{k}", "none") for k in range(11)]
    systems = [("Input", "none"), *others, ("PDGrad", "right"), ("PDGrad", "wrong")]
    frame = TableReport(random_rows(systems, SCORES, items=4), resamples=100).frame()
    styles = figures._styles(figures._points(frame, "psnr", "niqe-toy"))
    looks = {(style["fmt"], style["color"], style["fillstyle"]) for style in styles.values()}
    assert len(looks) == len(styles) == 14


def test_labels_overlap_nowhere(frame, times):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    draw = figures.plane_figure, figures.forest_figure, figures.time_figure
    for figure in (draw[0](frame, "psnr", "niqe-toy"), draw[1](frame, "ids"), draw[2](times)):
        FigureCanvasAgg(figure).draw()
        boxes = []
        for ax in figure.axes:
            words = [text for text in (ax.xaxis.label, ax.yaxis.label, ax.title) if text.get_text()]
            boxes += [text.get_window_extent() for text in words]
            for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim()))):
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                boxes += [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_visible()]
        for index, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[index + 1 :])
            assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= figure.bbox.x1 and one.y1 <= figure.bbox.y1


def test_differences_are_full_where_the_best_is_distinguishable():
    rng = np.random.default_rng(0)
    base = rng.normal(size=30)
    scores = {ARMS[0]: base - 3, ARMS[1]: base, ARMS[2]: base + 0.01 * rng.permutation(np.repeat([-1, 1], 15))}
    rows = table_rows({"psnr": {arm: list(values) for arm, values in scores.items()}})
    frame = TableReport(rows, resamples=500).frame()
    ax = figures.forest_figure(frame, "psnr").axes[0]
    fills = {round(c.lines[0].get_xdata()[0]): c.lines[0].get_fillstyle() for c in ax.containers}
    assert fills == {-3: "full", 0: "none"}
    assert "not distinguishable" in figures.forest_alt(frame, "psnr")
    with pytest.raises(ConfigError, match="'ids'"):
        figures.forest_figure(frame, "ids")


def test_times_are_sorted_and_leave_out_what_took_none(times):
    table = figures.time_table(times)
    assert list(table.arm) == ["CodeFormer", "PDGrad, none", "PDGrad, right", "PDGrad, wrong"]
    assert list(table["median"]) == [0.5, 8.0, 8.0, 8.0]
    ax = figures.time_figure(times).axes[0]
    assert ax.get_xscale() == "log"
    assert [bar.get_x() + bar.get_width() for bar in ax.patches] == pytest.approx([0.5, 8.0, 8.0, 8.0])
    assert "from CodeFormer (0.5 s) to PDGrad, wrong (8 s)" in figures.time_alt(times)
    with pytest.raises(ConfigError, match="above 0"):
        figures.time_table(times.assign(seconds=np.nan))


def test_the_grid_shows_pictures_as_they_are_and_says_what_failed(rows, run):
    grid = table_grid(rows, run, "drawn-mild", people=3)
    assert grid.labels == (*LABELS, "truth", "reference") and grid.items == ("item-000", "item-001", "item-002")
    assert grid.failed == 1 and "marked as failed: 1." in grid_alt(grid)
    axes = np.array(grid.figure.axes).reshape(7, 3)
    shades = [round(float(np.asarray(line[0].images[0].get_array()).mean()) / 255, 2) for line in axes]
    assert shades == pytest.approx([0.0, 0.4, 0.2, 0.3, 0.1, 1.0, 0.75], abs=0.01)
    assert axes[4, 1].get_xlabel() == "failed" and not axes[4, 1].images
    assert all(image.get_clim() == (0, 255) for ax in axes.flat for image in ax.images)


def test_a_grid_takes_one_picture_a_person_and_needs_kept_ones(rows, run):
    pairs = rows.assign(group=rows["item"].str[:-1] + (rows["item"].str[-1].astype(int) // 2).astype(str))
    assert table_grid(pairs, run, "drawn-mild").items == ("item-000", "item-002", "item-004", "item-006")
    assert table_grid(rows, run, "drawn-severe") is None
