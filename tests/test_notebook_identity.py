"""Notebook 05: the verdicts on the paper's claims, the consistency of the recording, the figures, the control."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from refbfr_core.benchmark import ManifoldStudy, record, recorded
from refbfr_core.benchmark.identity_claims import (
    CONFIRMED,
    CONTRADICTED,
    OPEN,
    claims,
    difference_by_seed,
    guide_bonuses,
    inconsistencies,
)
from refbfr_core.benchmark.identity_tables import SCALES, ablation_tables
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval
from refbfr_core.notebook import identity_figures as figures

METRICS = ["ids", "ids-guide", "psnr", "ssim", "niqe-toy"]
PAPER_LIKE = {
    "none": (0.52, 4.56),
    "constant": (0.69, 6.56),
    "sqrt_alpha_bar": (0.65, 4.38),
    "below_100": (0.52, 4.55),
    "below_500": (0.61, 4.44),
}


def study(means=PAPER_LIKE, people=24, seeds=(0, 1, 2), bonus=0.05, noise=0.002):
    """Rows and settings like those of the identity study; people differ a lot, differences between scales little."""
    draws = np.random.default_rng(0)
    level, rows, runs = draws.uniform(-0.2, 0.2, people), [], []
    for scale, (ids, niqe) in {"shipped": (0.5, 4.6), **means}.items():
        for seed in (0,) if scale == "shipped" else seeds:
            name = "shipped" if scale == "shipped" else f"{scale}-{seed}"
            score = ids + level + draws.normal(0, noise, people)
            guide = score + (0 if scale in ("shipped", "none") else bonus)
            columns = (score, guide, 20 + level, 0.7 + level, niqe + level + draws.normal(0, noise, people))
            for person, values in enumerate(zip(*columns, strict=True)):
                rows.append({"run": name, "scale": scale, "seed": seed, "person": person, "status": "ok",
                             **dict(zip(METRICS, values, strict=True)), "seconds": 0.1})  # fmt: skip
            if scale != "shipped":
                runs.append({"name": name, "folder": name, "scale": scale, "seed": seed, "weight": 0.1, "steps": 180,
                             "samples": 2880, "minutes": 5.0})  # fmt: skip
    settings = {"people": people, "preset": "toy-refldm-severe", "references": 4, "steps": 10, "guidance": 2.0,
                "seed": 0, "split": "test", "metrics": METRICS, "runs": runs}  # fmt: skip
    return pd.DataFrame(rows), settings


@pytest.fixture
def recording(tmp_path):
    rows, settings = study()
    record("identity-scales", rows, {"command": "refbfr evaluate identity", "settings": settings}, tmp_path)
    return recorded("identity-scales", tmp_path)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_domain_like_the_papers_confirms_what_differs_clearly():
    verdicts = {(each.metric, each.one, each.other): each for each in claims(study()[0])}
    assert len(verdicts) == 10
    assert {each.verdict for each in verdicts.values()} == {CONFIRMED}
    quality = verdicts["niqe-toy", "constant", "none"]
    assert quality.words == "NIQE with scale 1 is above no identity loss"
    assert quality.paper == pytest.approx(2.0) and quality.toy.mean == pytest.approx(2.0, abs=0.01)
    assert quality.toy.level == pytest.approx(0.995)


def test_the_opposite_domain_contradicts_and_an_indifferent_one_stays_open():
    mirrored = {scale: (1.2 - ids, 9 - niqe) for scale, (ids, niqe) in PAPER_LIKE.items()}
    assert {each.verdict for each in claims(study(mirrored)[0])} == {CONTRADICTED}
    same = dict.fromkeys(PAPER_LIKE, (0.5, 4.5))
    assert [each.verdict for each in claims(study(same, noise=0.05)[0])].count(OPEN) >= 9


def test_one_seed_that_disagrees_keeps_a_claim_open():
    rows, _ = study()
    rows.loc[(rows.scale == "constant") & (rows.seed == 2), "ids"] -= 0.2  # the mean over seeds still rises
    claim = next(each for each in claims(rows) if (each.metric, each.one, each.other) == ("ids", "constant", "none"))
    assert claim.toy.above() and min(claim.seeds) < 0 < max(claim.seeds) and claim.verdict == OPEN


def test_differences_are_between_equal_seeds():
    rows, _ = study()
    rows.loc[(rows.scale == "constant") & (rows.seed == 1), "ids"] += 0.1
    first, second, third = difference_by_seed(rows, "ids", "constant", "none")
    assert second - first == pytest.approx(0.1, abs=0.01) and third == pytest.approx(first, abs=0.01)
    rows.loc[rows.scale == "constant", "seed"] += 10
    with pytest.raises(ConfigError, match="same seeds"):
        difference_by_seed(rows, "ids", "constant", "none")


def test_claims_name_what_is_missing():
    rows, _ = study()
    with pytest.raises(ConfigError, match="below_500"):
        claims(rows[rows.scale != "below_500"])
    with pytest.raises(ConfigError, match="niqe-toy"):
        claims(rows.drop(columns="niqe-toy"))
    with pytest.raises(ConfigError, match="ids-guide"):
        guide_bonuses(rows.drop(columns="ids-guide"))


def test_the_guides_bonus_is_its_share_beyond_the_judges():
    rows, _ = study(bonus=0.05)
    for bonus in guide_bonuses(rows):
        judge, guide = (1 - rows[rows.scale == "none"][name].mean() for name in ("ids", "ids-guide"))
        assert bonus.missing == pytest.approx((judge, guide)) and "guide flatters" in bonus.verdict
        assert bonus.guide.mean - bonus.judge.mean == pytest.approx(0.05, abs=1e-9)
        assert bonus.bonus.mean == pytest.approx(bonus.guide.mean / guide - bonus.judge.mean / judge)
    assert all("judge sees a larger" in each.verdict for each in guide_bonuses(study(bonus=-0.05)[0]))


def test_an_embedder_that_spreads_faces_less_gets_no_bonus():
    rows, _ = study(bonus=0.0)
    rows["ids-guide"] = 1 - (1 - rows["ids"]) / 2  # the same opinion on half the scale
    for bonus in guide_bonuses(rows):
        assert bonus.guide.mean == pytest.approx(bonus.judge.mean / 2)
        assert bonus.bonus.mean == pytest.approx(0.0, abs=1e-9)


# --- provenance -------------------------------------------------------------------------------------------------------


def test_a_whole_recording_has_no_inconsistencies(recording):
    assert inconsistencies(recording) == []


def changed(column, row, value):
    def damage(rows, about):
        rows.loc[rows.index[row], column] = value
        return rows

    return damage


def renamed_seed(rows, about):
    return rows.assign(seed=rows.seed.replace(2, 5))


def other_training(**values):
    def damage(rows, about):
        about["runs"][3].update(values)
        return rows

    return damage


def forgotten_run(rows, about):
    del about["runs"][-1]
    return rows


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda rows, about: rows[rows.run != "none-1"], "provenance of"),
        (lambda rows, about: rows.drop(index=rows.index[40]), "expected 24"),
        (renamed_seed, "another scale or seed"),
        (forgotten_run, "the same seeds"),
        (other_training(steps=90), "differ in steps"),
        (other_training(weight=1.0), "differ in weight"),
        (changed("status", 5, "failed"), "failed"),
        (changed("psnr", 5, np.nan), "no score"),
        (changed("ids", 5, 1.5), "outside"),
        (lambda rows, about: rows.drop(columns="ssim"), "no column"),
    ],
)
def test_damage_is_found(recording, damage, words):
    about = copy.deepcopy(recording.about)
    rows = damage(recording.rows.copy(), about["settings"])
    found = inconsistencies(type(recording)(recording.name, rows, about))
    assert any(words in each for each in found), found


# --- tables and figures -----------------------------------------------------------------------------------------------


def test_rows_of_the_tables_carry_the_papers_numbers_and_ours(recording):
    loss_table, scale_table = ablation_tables(recording.rows)
    rows = figures.beside_poster(loss_table)
    assert [row["IDS, paper"] for row in rows] == ["0.52", "0.69", "0.65"]
    assert rows[1]["niqe-toy, toy"].startswith("6.5") and len(figures.beside_poster(scale_table)) == 3
    verdicts = figures.claim_rows(claims(recording.rows))
    assert verdicts[0]["paper"] == "+0.17" and verdicts[0]["toy: each training seed"].count(",") == 2
    assert len(figures.bonus_rows(guide_bonuses(recording.rows))) == len(SCALES) - 1


def test_figures_of_the_recording_show_every_seed_against_the_same_seed(recording):
    figure = figures.scales_figure(recording.rows, {"ids": "IDS", "niqe-toy": "NIQE"})
    circles = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    means = recording.rows.groupby("run").ids.mean()
    expected = [means[f"constant-{seed}"] - means[f"none-{seed}"] for seed in (0, 1, 2)]
    assert len(circles) == 4 and list(circles[0].get_ydata()) == pytest.approx(expected)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][:2] == ["not fine-tuned", "scale 1"]
    points = [line for line in figures.bonus_figure(recording.rows).axes[0].lines if len(line.get_xdata()) == 3]
    missing = 1 - recording.rows[recording.rows.scale == "none"].ids.mean()
    assert len(points) == 4 and list(points[0].get_xdata()) == pytest.approx([100 * e / missing for e in expected])


def test_an_interval_as_text_has_no_minus_zero():
    assert figures.ends(Interval(-1e-9, -0.5, 0.25, 10)) == "+0.000 [-0.500, +0.250]"


def manifold(departs: float) -> ManifoldStudy:
    """A study whose predictions depart from clean faces by `departs` at the last timestep; inputs by 0.3."""
    draws, lines = np.random.default_rng(1), []
    kinds = (("truth", -1, 0), ("reconstruction", -1, 0), ("input", -1, 0.3), ("prediction", 20, 0))
    for kind, t, shift in (*kinds, ("prediction", 980, departs)):
        for person in range(12):
            lines.append({"embedder": "guide", "person": person, "kind": kind, "t": t, "cosine": 0.9 - shift,
                          "neighbours": 0.5 + shift + 0.001 * draws.normal(), "mahalanobis": 1.0,
                          "norm": 1 - shift + 0.001 * draws.normal(), "niqe-toy": 3 + abs(shift)})  # fmt: skip
    blank, settings = torch.zeros(12, 3, 8, 8), {"embedders": ["guide"]}
    return ManifoldStudy(pd.DataFrame(lines), torch.zeros(2, 12, 3, 8, 8), blank, blank, (20, 980), settings)


def test_findings_follow_the_numbers():
    away, towards = (figures.manifold_findings(manifold(departs)) for departs in (0.1, -0.1))
    assert "predictions" in away[1] and "farther from clean faces" in away[1] and "nearer" in towards[1]
    assert "ruined inputs" in towards[2] and "farther from clean faces" in towards[2]
    assert "a shorter embedding" in away[3] and "a longer embedding" in towards[3]
    assert "less like a clean face" in away[-1]
    assert figures.departure(manifold(0.1), "guide", "niqe-toy", 980).mean == pytest.approx(0.1)
    assert "no difference beyond chance" in figures.manifold_findings(manifold(0.1), late=20)[1]
    assert len(figures.manifold_figure(manifold(0.1)).axes) == 4


def test_gradient_figure_draws_every_batch():
    norms = {"denoising loss": np.ones((3, 2)), "identity loss": np.full((3, 2), 0.1)}
    figure = figures.gradient_figure((20, 500), norms, {"constant": np.array([0.1, 0.2])})
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == ".") == 12


# --- live training ----------------------------------------------------------------------------------------------------


def test_reporter_keeps_every_step_and_prints_means(capsys):
    log: list[dict[str, float]] = []
    step_done = figures.reporter(log, every=2)
    for step, identity in enumerate((0.1, 0.3, 0.5), start=1):
        step_done(step, 3, {"denoising": 0.2, "identity": identity})
    printed = capsys.readouterr().out.splitlines()
    assert len(log) == 3 and len(printed) == 2 and "0.2000" in printed[0] and "step   3 of 3" in printed[1]


def test_the_control_appears_only_where_somebody_can_press_it():
    pytest.importorskip("ipywidgets")
    chosen = []
    assert figures.training_control(chosen.append, ["constant", "below_100"], show=False) is None
    control = figures.training_control(lambda scale: chosen.append(scale), ["constant", "below_100"], show=True)
    menu, button = control.children[0], control.children[1]
    assert tuple(menu.options) == ("constant", "below_100") and chosen == []
    button.click()
    assert chosen == ["constant"]
