"""The study of LD-BFR's ablations: what every arm does, rows per severity, verdicts, tables, recording, the command."""

from __future__ import annotations

import math
import types

import numpy as np
import pandas as pd
import pytest
import tiny_ldbfr as tiny
import torch
from typer.testing import CliRunner

from refbfr_core.benchmark import arms as generic
from refbfr_core.benchmark import ldbfr as study
from refbfr_core.benchmark import ldbfr_claims as claims
from refbfr_core.benchmark import ldbfr_steps, ldbfr_tables, recorded, recordings
from refbfr_core.benchmark import severities as levels
from refbfr_core.benchmark.arms import INPUT, ArmSettings, ArmStudy
from refbfr_core.benchmark.cases import Cases
from refbfr_core.cli.app import app
from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.metrics import Interval
from refbfr_core.models.vq_restorer import decode_feature, restore_features

JUDGE = torch.nn.Linear(2, 2)
QUICK = ("psnr", "colour-bias", "bias-red")
DEPTH = {"toy-ldbfr-mild": 0.1, "toy-ldbfr-medium": 0.3, "toy-ldbfr-severe": 0.5}


@pytest.fixture(autouse=True)
def quick_cases(monkeypatch):
    """Smooth random pictures in place of drawn faces; severities mix in more of another picture."""

    def make(people, total, *, preset, references, seed, split, resolution):
        truth = torch.cat([tiny.faces(1, 1000 * seed + person) for person in people])
        other = torch.cat([tiny.faces(1, 500 + 1000 * seed + person) for person in people])
        lq = truth + DEPTH[preset] * (other - truth)
        seeds = [seed * 10**6 + person for person in people]
        return Cases(tuple(people), truth, lq, truth[:, None], other[:, None], seeds, [None] * len(people))

    monkeypatch.setattr(generic, "make_cases", make)


@pytest.fixture(scope="module")
def methods():
    pipe = tiny.ldbfr(num_inference_steps=2)
    injections = {variant: tiny.injection(pipe.unet, variant, seed) for seed, variant in enumerate("ABCD", 4)}
    coarse = types.SimpleNamespace(device=torch.device("cpu"), restore=lambda images: -images)
    return study.LDBFRMethods(pipe, tiny.restorer(pipe.vqc, 9, dual=False), injections, coarse)


@pytest.fixture
def cases():
    return generic.make_cases(
        [0, 1], 4, preset="toy-ldbfr-severe", references=1, seed=1, split="test", resolution=tiny.SIDE
    )


def run(methods, arms, severities=("mild", "severe"), **options):
    options = {"judge": JUDGE, "metrics": QUICK, "progress": False, "batch": 2, **options}
    networks = study.LDBFRMethods(methods.pipe, methods.plain, methods.injections, None)
    return study.run_ldbfr_study(3, severities, arms=arms, methods=networks, **options)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_stage_one_arms_decode_what_they_say(methods, cases):
    own = study.ldbfr_arms(methods, [study.PLAIN, study.STAGE_ONE, study.SPATIAL, study.CHANNEL])
    pipe, images = methods.pipe, cases.lq * 2 - 1

    def expected(restorer, use):
        with torch.no_grad():
            return (decode_feature(pipe.vqc, restore_features(restorer, pipe.vqc, images, use).restored) + 1) / 2

    both = ("spatial", "channel")
    for name, restorer, use in (
        (study.PLAIN, methods.plain, both), (study.STAGE_ONE, pipe.restorer, both),
        (study.SPATIAL, pipe.restorer, ("spatial",)), (study.CHANNEL, pipe.restorer, ("channel",)),
    ):  # fmt: skip
        torch.testing.assert_close(own[name](cases), expected(restorer, use).clamp(0, 1), atol=1e-5, rtol=1e-4)
    pictures = [arm(cases) for arm in own.values()]
    assert all((one - two).abs().max() > 1e-3 for k, one in enumerate(pictures) for two in pictures[:k])


def test_every_variant_has_its_own_injection_and_the_cases_seeds(methods, cases):
    own = study.ldbfr_arms(methods, list("ABCD"), num_inference_steps=4)
    pictures = {}
    for variant, arm in own.items():
        pipe = methods.pipe.with_parts(injection=methods.injections[variant])
        pictures[variant] = arm(cases)
        expected = pipe(cases.lq, seed=cases.seeds, num_inference_steps=4).images
        assert torch.equal(pictures[variant], expected), variant
    names = list(pictures)
    assert all((pictures[a] - pictures[b]).abs().max() > 1e-3 for k, a in enumerate(names) for b in names[:k])


def test_the_coarse_network_and_refldm_stand_beside(methods, cases):
    calls = []

    class ReFLDM:
        vq = unet = torch.nn.Linear(1, 1)

        def set_progress_bar_config(self, disable):
            assert disable

        def __call__(self, lq, **options):
            calls.append(options)
            return types.SimpleNamespace(images=1 - lq)

    own = study.LDBFRMethods(methods.pipe, coarse=methods.coarse, refldm=ReFLDM())
    arms = study.ldbfr_arms(own, [study.COARSE, study.REFLDM])
    for name in arms:
        torch.testing.assert_close(arms[name](cases), 1 - cases.lq)
    assert calls == [{"seed": cases.seeds}]


def test_unknown_and_impossible_arms_are_refused(methods):
    with pytest.raises(UnknownNameError, match="stage1-plain"):
        study.ldbfr_arms(methods, ["stage1-plane"])
    for name, part in ((study.PLAIN, "plain"), ("B", "injections"), (study.COARSE, "coarse"), ("refldm", "refldm")):
        with pytest.raises(ConfigError, match=f"LDBFRMethods\\({part}="):
            study.ldbfr_arms(study.LDBFRMethods(methods.pipe), [name])


def test_arms_and_severities_are_read_from_text():
    assert study.arm_names("all") == (*study.ABLATIONS, "coarse") and len(study.ABLATIONS) == 8
    assert study.arm_names("all, refldm,D") == (*study.SETS["all"], "refldm")
    assert levels.severity_names("all") == ("mild", "medium", "severe")
    assert levels.severity_names("severe,mild") == ("mild", "severe")
    with pytest.raises(UnknownNameError, match="medium"):
        levels.severity_names("mediun")
    with pytest.raises(ConfigError, match="names no arm"):
        study.arm_names(" ,")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_severity_has_its_rows_from_the_same_people(methods):
    studies = run(methods, ("stage1", "A", "D"))
    rows = levels.study_rows(studies)
    assert list(studies) == ["mild", "severe"] and len(rows) == 2 * 3 * 4
    assert not any(len(each.failures) for each in studies.values())
    assert studies["mild"].arms == [INPUT, "stage1", "A", "D"]
    inputs = rows[rows.arm == INPUT].pivot(index="person", columns="severity", values="psnr")
    # Five times the error is 13.98 dB.
    assert (inputs.mild - inputs.severe).to_numpy() == pytest.approx(20 * math.log10(5), abs=1e-3)
    assert "num_inference_steps 2" in studies["mild"].settings.method
    assert studies["mild"].weights == studies["severe"].weights


def test_severities_run_apart_in_one_folder_and_are_put_together(methods, tmp_path, monkeypatch):
    arms = ("stage1", "D")
    apart = [run(methods, arms, (severity,), out=tmp_path) for severity in ("severe", "mild")]

    def idle(*_, **__):
        raise AssertionError("everything is there")

    monkeypatch.setattr(generic, "make_cases", idle)
    together = run(methods, arms, ("mild", "severe"), out=tmp_path)
    assert together["severe"].rows.psnr.tolist() == apart[0]["severe"].rows.psnr.tolist()
    assert together["mild"].rows.psnr.tolist() == apart[1]["mild"].rows.psnr.tolist()
    with pytest.raises(ConfigError, match="arms"):
        run(methods, ("stage1",), ("mild",), out=tmp_path)


def test_other_networks_never_continue_a_run(methods, tmp_path):
    run(methods, ("stage1",), ("mild",), out=tmp_path)
    changed = study.LDBFRMethods(methods.pipe, tiny.restorer(methods.pipe.vqc, 33, dual=False), methods.injections)
    with pytest.raises(ConfigError, match="weights"):
        run(changed, ("stage1",), ("mild",), out=tmp_path)


def test_a_failing_person_is_a_row_with_a_reason(methods, monkeypatch):
    inner = type(methods.pipe).__call__

    def fragile(self, lq, **options):
        if 1 in options["seed"] and self.injection.variant == "A":
            raise NonFiniteError("latents hold NaN")
        return inner(self, lq, **options)

    monkeypatch.setattr(type(methods.pipe), "__call__", fragile)
    studies = run(methods, ("A", "D"), ("mild",))
    failed = studies["mild"].failures
    assert list(failed.person) == [1] and list(failed.arm) == ["A"] and "latents hold NaN" in failed.reason.iloc[0]
    with pytest.raises(ConfigError, match="lacks medium, severe"):
        study.record_study(studies, "command")


# --- verdicts ---------------------------------------------------------------------------------------------------------

SIGN = {"psnr": 1, "ssim": 0.05, "ids": 0.1, "textures": -0.1, "niqe-toy": -0.5, "colour-bias": -1}
GOOD = {"input": 0.0, "stage1-plain": 1.0, "stage1": 2.0, "A": 2.5, "B": 3.0, "C": 2.7, "D": 4.0, "coarse": 2.2}


def rows_of(people=16, severities=levels.SEVERITIES, good=GOOD):
    """Rows in which an arm is as good as `good` says in every score; people differ more than arms."""
    draws, lines = np.random.default_rng(0), []
    for severity in severities:
        level = draws.normal(0, 3, people)
        for arm, value in good.items():
            for person in range(people):
                own = value + level[person] + draws.normal(0, 0.05)
                scores = {name: 20 + sign * own for name, sign in SIGN.items()}
                biases = {"bias-red": value, "bias-green": -value, "bias-blue": 0.0}
                lines.append({"severity": severity, "person": person, "arm": arm, "status": "ok", "reason": "",
                              **scores, **biases, "seconds": 0.5})  # fmt: skip
    return pd.DataFrame(lines)


def test_rows_like_the_paper_confirm_every_claim():
    table = claims.claim_table(rows_of())
    assert list(table.columns) == ["severity", "figure", "claim", "metric", "verdict", "difference"]
    assert len(table) == 3 * len(claims.CLAIMS) and set(table.verdict) == {"confirmed"}
    first = table.difference[0]
    assert isinstance(first, Interval) and first.mean == pytest.approx(0.1, abs=0.01)
    assert first.level == pytest.approx(1 - 0.05 / len(table)) and first.n == 16
    grid = claims.verdict_grid(table)
    assert list(grid.columns) == ["claim", "figure", "metric", *levels.SEVERITIES]
    assert list(grid.claim) == [claim.text for claim in claims.CLAIMS]


def test_the_opposite_contradicts_and_every_claim_can_turn():
    opposite = {arm: -value for arm, value in GOOD.items()}
    assert set(claims.claim_table(rows_of(good=opposite)).verdict) == {"contradicted"}


def test_what_chance_can_explain_stays_open():
    rows = rows_of(good=dict.fromkeys(GOOD, 2.0))
    swing = np.where(rows.person % 2, 1, -1) * rows.arm.map({arm: k for k, arm in enumerate(GOOD)})
    for name, sign in SIGN.items():
        rows[name] = 20 + 0.01 * sign * swing
    assert set(claims.claim_table(rows).verdict) == {"open"}


def test_verdicts_may_differ_between_severities():
    mild = rows_of(severities=("mild",), good=GOOD | {"B": 5.0})
    grid = claims.verdict_grid(claims.claim_table(pd.concat([mild, rows_of(severities=("severe",))])))
    line = grid.set_index("claim").loc["B shifts colours, more than D"]
    assert line.mild == "contradicted" and line.severe == "confirmed"


def test_what_is_missing_gives_no_verdict():
    assert set(claims.claim_table(rows_of(people=9)).verdict) == {"too few people"}
    without = rows_of(severities=("severe",)).drop(columns=["niqe-toy", "textures"])
    table = claims.claim_table(without[without.arm != "B"]).set_index("claim").verdict
    assert table["the diffusion removes artefacts"] == table["B shifts colours, more than D"] == "not measured"
    assert table["D is better than A overall (mean rank)"] == "not measured"
    assert table["the diffusion brings identity"] == "confirmed"


def test_ranks_count_every_score_once_and_whole_people_only():
    rows = rows_of(severities=("mild",))
    ranked = claims.with_ranks(rows)
    means = ranked.groupby("arm")["rank"].mean()
    assert means[["D", "A"]].tolist() == [1.0, 4.0] and means[["B", "C"]].tolist() == pytest.approx([2, 3], abs=0.1)
    assert means[["input", "stage1"]].isna().all() and "rank" not in rows
    # D has the worst PSNR of the four, and is still best in the other five scores.
    rows.loc[rows.arm == "D", "psnr"] -= 100
    assert claims.with_ranks(rows).groupby("arm")["rank"].mean()["D"] == pytest.approx((4 + 5 * 1) / 6)
    rows.loc[(rows.arm == "C") & (rows.person == 3), "status"] = "failed"
    assert claims.with_ranks(rows).set_index(["person", "arm"]).loc[3, "rank"].isna().all()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_of_means_and_differences():
    rows = rows_of()
    means = ldbfr_tables.severity_table(rows).set_index(["severity", "arm"])
    assert list(dict.fromkeys(means.index.get_level_values(0))) == list(levels.SEVERITIES) and len(means) == 24
    own = rows[(rows.severity == "medium") & (rows.arm == "C")]
    assert means.loc[("medium", "C"), "psnr"].mean == pytest.approx(own.psnr.mean())
    assert means.loc[("medium", "C"), "people"] == 16 and means.loc[("medium", "C"), "seconds"] == 0.5
    differences = ldbfr_tables.difference_table(rows, metrics=("ids",)).set_index(["severity", "arm"])
    assert differences.loc[("severe", "A"), "ids"].mean == pytest.approx(-0.15, abs=0.01)
    assert "D" not in differences.index.get_level_values(1)
    with pytest.raises(ConfigError, match="'D'"):
        ldbfr_tables.difference_table(rows[rows.arm != "D"])


def test_the_colour_table_keeps_the_sign():
    table = ldbfr_tables.colour_table(rows_of(), ("B", "D")).set_index(["severity", "arm"])
    assert len(table) == 6
    line = table.loc[("mild", "D")]
    assert [line[name].mean for name in ldbfr_tables.CHANNELS] == pytest.approx([4.0, -4.0, 0.0])
    assert line["colour-bias"].mean > 0
    with pytest.raises(ConfigError, match="bias-red"):
        ldbfr_tables.colour_table(rows_of().drop(columns="bias-red"))


def test_ours_stands_below_the_papers_table():
    rows = rows_of()
    rows.loc[(rows.severity == "mild") & (rows.arm == "D") & (rows.person == 0), "status"] = "failed"
    table = ldbfr_tables.beside_paper(rows)
    paper = table[table.faces == "CelebA-Test"].set_index("method")
    printed = [22.994, 0.6297, 0.4282, 38.9823]
    assert len(paper) == 7 and paper.loc["LD-BFR", list(ldbfr_tables.PAPER_SCORES)].tolist() == printed
    drawn = table[table.faces == "drawn"].set_index("method")
    ours = ["degraded input", "small regression network", "stage 1 without DCAM", "stage 1", "LD-BFR"]
    assert list(drawn.index) == ours
    whole = rows[(rows.arm == "D") & (rows.person > 0)]
    assert drawn.loc["LD-BFR", "PSNR"].mean == pytest.approx(whole.psnr.mean()) and drawn.loc["LD-BFR", "PSNR"].n == 15
    assert drawn[["LPIPS", "FID"]].isna().all(axis=None)
    with pytest.raises(ConfigError, match="mild"):
        ldbfr_tables.beside_paper(rows[rows.severity != "mild"])


# --- fewer steps ------------------------------------------------------------------------------------------------------


def test_every_arm_takes_its_number_of_steps(tmp_path, methods, monkeypatch):
    asked, inner = [], type(methods.pipe).__call__

    def watched(self, lq, **options):
        asked.append(options["num_inference_steps"])
        return inner(self, lq, **options)

    monkeypatch.setattr(type(methods.pipe), "__call__", watched)
    options = {"pipeline": methods.pipe, "judge": JUDGE, "metrics": ["psnr"], "progress": False}
    made = ldbfr_steps.run_steps_study(2, (2, 4), out=tmp_path, **options)
    assert asked == [2, 4] and made.arms == [INPUT, "2", "4"] and not len(made.failures)
    assert made.settings.preset == "toy-ldbfr-severe" and "LD-BFR D with eta" in made.settings.method
    table = ldbfr_steps.steps_table(made.rows)
    assert list(table.steps) == [2, 4] and table["PSNR - most"][1] is None
    scores = made.rows.pivot(index="person", columns="arm", values="psnr")
    assert table["PSNR - most"][0].mean == pytest.approx((scores["2"] - scores["4"]).mean())
    with pytest.raises(ConfigError, match="at least two"):
        ldbfr_steps.run_steps_study(2, (50, 50))


# --- recording and command --------------------------------------------------------------------------------------------


def finished(failing=()):
    out, names = {}, tuple(SIGN) + ldbfr_tables.CHANNELS
    for severity in levels.SEVERITIES:
        rows = rows_of(12, (severity,)).drop(columns="severity")
        if severity in failing:
            rows.loc[3, ["status", "reason"]] = ["failed", "NonFiniteError: NaN"]
        settings = ArmSettings(12, levels.preset_of(severity), metrics=names, method="LD-BFR with s")
        out[severity] = ArmStudy(settings, rows, "abc")
    return out


def test_a_study_is_recorded_with_its_settings(tmp_path):
    study.record_study(finished(), "refbfr evaluate ldbfr", tmp_path)
    kept = recorded(study.RECORDING, tmp_path)
    assert kept.about["command"] == "refbfr evaluate ldbfr" and len(kept.rows) == 3 * 12 * 8
    settings = kept.about["settings"]
    assert settings["weights"] == "abc" and settings["presets"]["mild"] == "toy-ldbfr-mild"
    assert settings["people"] == 12 and settings["arms"] == list(GOOD)
    assert set(claims.claim_table(kept.rows).verdict) == {"confirmed"}
    with pytest.raises(ConfigError, match="1 rows failed"):
        study.record_study(finished(["medium"]), "command", tmp_path / "other")
    mixed = finished() | {"mild": ArmStudy(finished()["mild"].settings, finished()["mild"].rows, "def")}
    with pytest.raises(ConfigError, match="different settings or networks"):
        study.record_study(mixed, "command", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def invoke(monkeypatch, result, *arguments):
    calls = []
    monkeypatch.setattr(study, "run_ldbfr_study", lambda *a, **k: calls.append((a, k)) or result)
    return CliRunner().invoke(app, ["evaluate", "ldbfr", *map(str, arguments)]), calls


def test_the_command_prints_means_and_verdicts(monkeypatch, tmp_path):
    only = {"severe": finished()["severe"]}
    done, calls = invoke(
        monkeypatch, only, "--people", 12, "--severity", "severe", "--seed", 3, "--arms", "stage1,D", "-o", tmp_path
    )
    assert done.exit_code == 0, done.output
    assert "±" in done.stdout and "confirmed" in done.stdout and "failed:" not in done.stdout
    (((*first, out), options),) = calls
    assert first == [12, ("severe",), 3] and out == tmp_path
    assert options == {"arms": ("stage1", "D"), "device": None, "root": None}


def test_the_command_names_failures_and_records(monkeypatch, tmp_path):
    done, _ = invoke(monkeypatch, {"medium": finished(["medium"])["medium"]})
    assert done.exit_code == 1 and "failed: medium, person 3, input: NonFiniteError: NaN" in done.stdout
    kept = []
    monkeypatch.setattr(study, "record_study", lambda result, command: kept.append(command) or tmp_path)
    done, calls = invoke(monkeypatch, finished(), "--record")
    assert done.exit_code == 0 and "recorded:" in done.stdout and calls[0][1]["arms"] == study.SETS["all"]
    assert kept == ["refbfr evaluate ldbfr --people 64 --severity all --arms all --seed 0 --record"]
    done, calls = invoke(monkeypatch, finished(), "--severity", "mild", "--record")
    assert done.exit_code == 1 and not calls and "all severities" in done.output


@pytest.mark.skipif(study.RECORDING not in recordings(), reason="the study has not been recorded")
def test_the_recording_that_ships_is_whole():
    kept = recorded(study.RECORDING)
    settings, rows = kept.about["settings"], kept.rows
    assert set(settings["arms"]) >= {INPUT, *study.ABLATIONS} and set(study.METRICS) <= set(rows.columns)
    counts = rows.groupby(["severity", "arm"]).person.nunique()
    assert set(counts) == {settings["people"]} and len(counts) == 3 * len(settings["arms"])
    assert (rows.status == "ok").all() and np.isfinite(rows[settings["metrics"]].to_numpy()).all()
    assert "not measured" not in set(claims.claim_table(rows).verdict)
