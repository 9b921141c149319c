"""What notebooks 10 and 11 are made of: tricks that raise scores, statistics of comparisons, cells of tables."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refbfr_core.benchmark.recording import record, recorded
from refbfr_core.benchmark.tables import TableReport, table_spec
from refbfr_core.benchmark.tables.store import TableStore
from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.metrics import Interval, paired_interval
from refbfr_core.notebook import fairness, fooling
from refbfr_core.notebook import table_cells as cells


def pictures(count: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Eye(nn.Module):
    """An embedder that anybody can compute: the means of a grid of places."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


# --- tricks -----------------------------------------------------------------------------------------------------------


def test_every_knob_at_zero_is_the_picture_itself():
    x, other = pictures(), pictures(seed=1)
    made = [fooling.blurred(x, 0), fooling.sharpened(x, 0), fooling.pasted(x, other, 0)]
    made.append(fooling.tuned(x, other[:, None], Eye(), 0))
    assert all(torch.equal(one, x) and one is not x for one in made)


def test_a_blur_keeps_the_mean_and_takes_the_variance():
    x = pictures(side=64)
    soft, softer = fooling.blurred(x, 1), fooling.blurred(x, 2)
    assert float(x.var()) > 4 * float(soft.var()) > 4 * float(softer.var())
    assert float(soft.mean()) == pytest.approx(float(x.mean()), abs=0.005)


def test_sharpening_adds_what_the_blur_takes():
    x = 0.4 + 0.2 * pictures()
    assert torch.allclose(fooling.sharpened(x, 0.5), x + 0.5 * (x - fooling.blurred(x, 1)), atol=1e-6)
    assert float(fooling.sharpened(pictures(), 20).max()) <= 1
    for wrong in (lambda: fooling.sharpened(x, -1), lambda: fooling.blurred(x, -1)):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ImageContractError):
        fooling.blurred(2 * x - 1, 1)


def test_running_means_are_means():
    samples = torch.stack([pictures(seed=k) for k in range(3)])
    means = fooling.running_means(samples)
    assert torch.equal(means[0], samples[0]) and torch.allclose(means[2], samples.mean(0), atol=1e-6)
    with pytest.raises(ConfigError, match="K, B"):
        fooling.running_means(samples[0])


def test_the_mean_of_samples_has_the_error_of_the_formula():
    """E|x - mean of K samples|^2 = V (1 + 1/K) for truth and samples that are spread alike."""
    generator = torch.Generator().manual_seed(0)
    truth, samples = torch.randn(200_000, generator=generator), torch.randn(3, 200_000, generator=generator)
    for k in (1, 2, 3):
        assert float((truth - samples[:k].mean(0)).square().mean()) == pytest.approx(1 + 1 / k, rel=0.02)


def test_a_pasted_face_is_the_photo_inside_and_the_picture_outside():
    x, photo = pictures(side=64), pictures(side=64, seed=1)
    made = fooling.pasted(x, photo, 1)
    window = fooling.face_window(64, 64)
    inside, outside = (window == 1).expand_as(x), (window == 0).expand_as(x)
    assert 0.1 < float(inside.float().mean()) < 0.4 < float(outside.float().mean())
    assert torch.allclose(made[inside], photo[inside]) and torch.equal(made[outside], x[outside])
    half = fooling.pasted(x, photo, 0.5)
    assert torch.allclose(half[inside], ((x + photo) / 2)[inside], atol=1e-6)
    for share, other in ((1.5, photo), (0.5, photo[:1])):
        with pytest.raises(ConfigError, match="share"):
            fooling.pasted(x, other, share)


def test_tuning_moves_the_embedding_within_its_bound_and_keeps_the_range():
    x, photos = pictures(3), torch.stack([pictures(3, seed=k) for k in (1, 2)], dim=1)
    goal = F.normalize(torch.stack([Eye().embed(2 * photos[:, k] - 1) for k in (0, 1)]).mean(0), dim=1)

    def likeness(made):
        return (F.normalize(Eye().embed(2 * made - 1), dim=1) * goal).sum(1)

    made = {levels: fooling.tuned(x, photos, Eye(), levels, steps=5) for levels in (2, 8)}
    for levels, one in made.items():
        assert float((one - x).abs().max()) <= levels / 255 + 1e-6 and 0 <= float(one.min()) <= float(one.max()) <= 1
        assert not one.requires_grad
    assert bool((likeness(made[8]) > likeness(made[2])).all() and (likeness(made[2]) > likeness(x)).all())
    assert torch.equal(fooling.tuned(x[:1], photos[:1], Eye(), 2, steps=5), made[2][:1])
    with pytest.raises(ConfigError, match="bound"):
        fooling.tuned(x, photos, Eye(), -1)


def test_knobs_are_scored_and_compared_with_the_untouched():
    x = pictures(4)
    scores = {"mean": lambda made: made.mean((1, 2, 3))}
    found = fooling.turned(lambda strength: (x + strength).clamp(0, 1), [0, 0.1, 0.2], scores)
    changes = fooling.gains(found["mean"])
    assert list(changes) == [0.1, 0.2] and changes[0.2].mean > changes[0.1].mean > 0 and changes[0.1].n == 4
    figure = fooling.knob_figure({"knob": found}, {"mean": "MEAN"}, lower_is_better=("mean",))
    (ax,) = figure.axes
    assert ax.get_title() == "MEAN" and ax.get_xlabel() == "knob"
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0, changes[0.1].mean, changes[0.2].mean])
    shaded = [patch for patch in ax.patches if patch.get_height() > 0]
    assert shaded[0].get_y() < 0 and shaded[0].get_y() + shaded[0].get_height() == pytest.approx(0)
    for strengths in ([0.1, 0.2], [0, 0.1, 0.1]):
        with pytest.raises(ConfigError, match="untouched"):
            fooling.turned(lambda strength: x, strengths, {})


# --- statistics -------------------------------------------------------------------------------------------------------


def test_without_pairs_the_interval_is_wider_by_what_the_covariance_takes():
    generator = torch.Generator().manual_seed(1)
    shared = 3 * torch.randn(400, generator=generator)
    a, b = (shared + shift + torch.randn(400, generator=generator) for shift in (0.5, 0.0))
    paired, unpaired = paired_interval(a, b), fairness.unpaired_interval(a, b)
    assert paired.mean == pytest.approx(unpaired.mean, abs=1e-5)
    expected = math.sqrt(float((a.var() + b.var()) / (a - b).var()))
    assert (unpaired.high - unpaired.low) / (paired.high - paired.low) == pytest.approx(expected, rel=0.06)


def test_as_many_people_as_the_formula_says_have_that_power():
    people = fairness.people_needed(spread=2.0, effect=0.5)
    assert people == math.ceil(((1.959964 + 0.841621) * 4) ** 2) == 126
    assert fairness.power_of(2.0, 0.5, people) == pytest.approx(0.8, abs=0.01)
    assert fairness.people_needed(2.0, 0.25) == pytest.approx(4 * people, abs=4)
    draws = 0.5 + 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(2))
    assert fairness.detected(draws, people, rounds=1000) == pytest.approx(0.8, abs=0.05)
    assert fairness.detected(draws - draws.mean(), people, rounds=1000) == pytest.approx(0.05, abs=0.02)
    for wrong in (lambda: fairness.people_needed(1, 0), lambda: fairness.detected(draws, 1)):
        with pytest.raises(ConfigError):
            wrong()


def test_many_equal_methods_raise_false_alarms_and_the_correction_stops_them():
    assert fairness.false_alarms(1, 200) == pytest.approx(0.05, abs=0.015)
    many, corrected = (fairness.false_alarms(20, 200, corrected=each) for each in (False, True))
    assert 0.3 < many < 1 - 0.95**20 and corrected < 0.06


def test_the_bias_of_a_frechet_distance_is_that_of_its_formula():
    # One feature: E m^2 + E (s - 1)^2 with Var(m) = 1/n and Var(s) about 1/(2(n - 1)).
    assert fairness.gaussian_bias(50, 1, rounds=4000) == pytest.approx(1 / 50 + 1 / 98, rel=0.1)
    falling = [fairness.gaussian_bias(n, 32) for n in (8, 32, 128)]
    assert falling[0] > 2 * falling[1] > 4 * falling[2] > 0
    with pytest.raises(ConfigError):
        fairness.gaussian_bias(1, 4)


def test_the_easiest_stay_in_their_order():
    ease = torch.tensor([0.3, 0.9, 0.1, 0.5])
    assert fairness.easiest(ease, 0.5).tolist() == [1, 3] and fairness.easiest(ease, 0).tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError):
        fairness.easiest(ease, 1)


def test_figures_draw_the_numbers():
    a, b = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 2.0, 3.0])
    left, right = fairness.pairing_figure({"new": a, "old": b}, "score").axes
    assert [tuple(line.get_ydata()) for line in left.lines] == [(2, 1), (2, 3), (3, 5)]
    assert [text.get_text() for text in right.get_yticklabels()] == ["paired", "unpaired"]
    panels = fairness.power_figure({"paired": 1.0, "unpaired": 4.0}, {"small": 0.2, "large": 1.0}, most=100).axes
    paired, unpaired = (line.get_ydata() for line in panels[1].lines[:2])
    assert paired[-1] > unpaired[-1] > 0.05 and panels[0].get_title() == "small"
    (drop,) = fairness.dropping_figure({"score": {"fails": a, "never": b}}, a, [0, 0.34]).axes
    assert list(drop.lines[0].get_ydata()) == [3, 4] and len(set(drop.lines[1].get_ydata())) == 1
    values = {"fid": {8: [3.0, 5.0], 16: [1.0]}, "kid": {8: [0.1], 16: [-0.1]}}
    first, second = fairness.size_figure(values, {8: 4.0}).axes
    assert [list(line.get_ydata()) for line in first.lines[2:4]] == [[4, 1], [4]] and second.get_title() == "kid"


# --- cells ------------------------------------------------------------------------------------------------------------


def table_rows(people: int, gap: float = 1.0) -> pd.DataFrame:
    lines = []
    for index in range(people):
        arms = (("ReF-LDM", "right", 20 + gap), ("LDM", "none", 20.0), ("Input", "none", 15.0))
        for system, references, psnr in arms:
            row = {"dataset": "drawn-severe", "item": f"p{index}", "group": f"g{index}", "system": system}
            score = psnr + index / 10 + (0.01 * (index % 2) if system == "LDM" else 0)
            lines.append(row | {"references": references, "status": "ok", "reason": "", "psnr": score, "ids": 0.5})
    return pd.DataFrame(lines)


def test_measured_cells_have_marks_and_few_people_have_none():
    lines = cells.measured_table(TableReport(table_rows(8)).frame(), "drawn-severe", ["psnr"])
    by_arm = {line["arm"]: line for line in lines}
    assert list(lines[0]) == ["arm", "psnr ↑", "n", "failed"] and by_arm["LDM"]["n"] == "8"
    best = by_arm["ReF-LDM, right"]["psnr ↑"]
    assert best.startswith("21.35 ± ") and best.endswith("*")
    assert not by_arm["LDM"]["psnr ↑"].endswith(("*", "~"))
    few = cells.measured_table(TableReport(table_rows(3)).frame(), "drawn-severe", ["psnr", "niqe"])
    assert {line["psnr ↑"] for line in few} == {"21.10", "20.10", "15.10"} and few[0]["niqe ↓"] == "–"
    with pytest.raises(ConfigError, match="measured"):
        cells.measured_table(TableReport(table_rows(3)).frame(), "drawn-mild", ["psnr"])


def test_differences_of_arms_are_paired_and_need_people():
    rows = table_rows(8)
    found = cells.arm_difference(rows, "drawn-severe", "psnr", "ReF-LDM, right", "LDM")
    assert isinstance(found, Interval) and found.mean == pytest.approx(0.995) and found.high - found.low < 0.02
    rows.loc[(rows.system == "LDM") & (rows["item"] != "p0"), "status"] = "failed"
    assert cells.arm_difference(rows, "drawn-severe", "psnr", "ReF-LDM, right", "LDM") is None
    assert cells.arm_difference(rows, "drawn-severe", "psnr", "ReF-LDM, wrong", "LDM") is None
    assert cells.arm_difference(table_rows(4), "drawn-severe", "psnr", "ReF-LDM, right", "LDM") is None


def test_a_papers_table_has_its_numbers_with_and_without_a_run():
    spec = table_spec("diffmac-1")
    by_method = {line["method"]: line for line in cells.paper_table(TableReport(spec=spec).frame())}
    assert by_method["Input"]["psnr"] == "25.35 | – | –" and by_method["GT"]["fid"] == "43.43 | – | –"
    rows = table_rows(6)
    rows = rows[rows.system == "Input"].assign(dataset="celeba-test")
    beside = {line["method"]: line for line in cells.paper_table(TableReport(rows, spec=spec).frame())}
    assert beside["Input"]["psnr"] == "25.35 | 15.25 | -10.1"
    percentages = cells.paper_table(TableReport(spec=table_spec("pdgrad-4")).frame())
    assert percentages and not any("improvement" in name for name in percentages[0])


def test_rows_of_a_run_under_way_and_of_a_recorded_one(tmp_path):
    assert cells.kept_rows(tmp_path / "run").empty and "key" in cells.kept_rows(tmp_path / "run")
    store = TableStore(tmp_path / "run")
    for key in ("b", "a"):
        store.add({"key": key, "psnr": 1.5})
    assert sorted(cells.kept_rows(tmp_path / "run").key) == ["a", "b"]
    record("toy", table_rows(2).drop(columns="reason"), {"command": "made here", "settings": {}}, tmp_path)
    rows = cells.recorded_rows(recorded("toy", tmp_path))
    assert set(rows.reason) == {""} and TableReport(rows).frame().n.max() == 2
    record("gaps", table_rows(2), {"command": "made here", "settings": {}}, tmp_path)
    assert set(cells.recorded_rows(recorded("gaps", tmp_path)).reason) == {""}
