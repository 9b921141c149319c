"""What the study of DiffMAC's ablations ends in: verdicts, tables, Table 3 beside ours, the recording, the command."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from refbfr_core.benchmark import diffmac as study
from refbfr_core.benchmark import diffmac_claims as claims
from refbfr_core.benchmark import diffmac_tables as tables
from refbfr_core.benchmark import recorded, recordings
from refbfr_core.benchmark.arms import INPUT, ArmSettings, ArmStudy
from refbfr_core.benchmark.ldbfr_claims import verdict_grid
from refbfr_core.cli.app import app
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(claims, "_RESAMPLES", 2000)


# --- verdicts ---------------------------------------------------------------------------------------------------------

SCORES = {"psnr": 1, "ssim": 0.05, "ids": 0.1, "textures": -0.1, "colour-bias": -1}
GOOD = {INPUT: 0.0, **dict.fromkeys(study.ABLATIONS, 3.0), study.METHOD: 6.0, study.COARSE: 1.0}
GOOD |= {"0.01_id": 2.5, "0.1_id": 2.0}
GOOD |= {f"{row}+{way}": GOOD[row] + gain for row in ("0.001_id", "0.1_id", "0.01_id")
         for way, gain in (("ref", 1.0), ("refs", 1.5), ("wrong", -1.0), ("true", 2.0), ("oracle", 3.0))}  # fmt: skip
GOOD |= {"0.001_id+Z": 1.0, "0.001_id+Z oracle": 4.0}


@functools.cache
def printed_niqe(row):
    try:
        return claims.printed(row)
    except ConfigError:
        return 5.5


def rows_of(people=16, severities=study.SEVERITIES, sign=1):
    """Rows in which an arm is as good as `GOOD` says and has the NIQE of Table 3; people differ more than arms. A
    `sign` of -1 turns every order around."""
    draws, lines = np.random.default_rng(0), []
    for severity in severities:
        level = draws.normal(0, 3, people)
        for arm, value in GOOD.items():
            row = arm.split("+")[0]
            niqe = printed_niqe(row)
            weight = next((float(each) for each in study.WEIGHTS if f"{each}_" in row), 0.0)
            for person in range(people):
                noise = draws.normal(0, 0.005)
                scores = {name: 20 + unit * (sign * value + level[person] + noise) for name, unit in SCORES.items()}
                scores["niqe-toy"] = sign * niqe + level[person] + noise
                share = 0.5 - sign * 0.1 * np.log10(weight) + noise if weight else np.nan
                more = {"share": share, "share-means": share, "share-variances": share, "information": 2 * share}
                lines.append({"severity": severity, "person": person, "arm": arm, "status": "ok", "reason": "",
                              **scores, "seconds": 0.5, **more, "latent-error": 20 - value})  # fmt: skip
    return pd.DataFrame(lines)


def test_rows_like_the_paper_confirm_every_claim():
    table = claims.claim_table(rows_of())
    assert list(table.columns) == ["severity", "figure", "claim", "metric", "verdict", "difference"]
    assert len(table) == 3 * len(claims.claims()) and set(table.verdict) == {"confirmed"}
    first = table.difference[0]
    assert isinstance(first, Interval) and first.mean == pytest.approx(5.785 - 5.815, abs=0.01) and first.n == 16
    assert first.level == pytest.approx(1 - 0.05 / len(table))
    grid = verdict_grid(table)
    assert list(grid.columns) == ["claim", "figure", "metric", *study.SEVERITIES]
    assert list(grid.claim) == [claim.text for claim in claims.claims()]


def test_the_opposite_contradicts_every_claim():
    table = claims.claim_table(rows_of(severities=("severe",), sign=-1))
    assert set(table.verdict) == {"contradicted"}


def test_what_is_missing_gives_no_verdict_and_the_extension_only_counts_where_it_is():
    assert set(claims.claim_table(rows_of(9, ("mild",))).verdict) == {"too few people"}
    rows = rows_of(severities=("severe",))
    some = claims.claim_table(rows[rows.arm != "0.1_n"].drop(columns="niqe-toy")).set_index("claim").verdict
    assert some["mean lambda falls from lambda_info 0.01 to 0.1 (noise)"] == "not measured"
    assert some["NIQE of the adopted setting is lower than with stage I alone"] == "not measured"
    assert some["0.001_id: another photo of the person brings identity"] == "confirmed"
    more = pd.concat([rows, rows[rows.arm == study.METHOD].assign(arm=study.EXTENSION)])
    own = claims.claim_table(more)
    assert len(own) == len(claims.claims()) + 3 and own.claim.str.startswith("0.01_ref").sum() == 3


def test_claims_follow_the_printed_numbers():
    signs = {claim.other: claim.sign for claim in claims.claims() if claim.metric == "niqe-toy"}
    assert signs == {"stage1": -1, "0.001_none": 1, "0.001_n": 1, "no1_0.001_n": -1, "0.01_id": 1, "0.1_id": 1}
    assert claims.printed("0.001_none") == 5.628 and claims.printed("2AdaIN") == claims.printed(study.METHOD) == 5.785


def test_ranks_count_the_rows_of_table_3_only():
    ranked = claims.with_ranks(rows_of(severities=("mild",)))
    means = ranked.groupby("arm")["rank"].mean()
    # Best in five scores, and behind six arms in NIQE, of which one is equal.
    assert means["0.001_id"] == means.min() and means["0.01_id"] > means["2AdaIN"]
    assert means[[INPUT, "coarse", "0.001_id+ref"]].isna().all()
    assert means[list(study.ABLATIONS)].mean() == pytest.approx(7.5)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_of_means_differences_and_lambda():
    rows = rows_of()
    means = tables.severity_table(rows, ("psnr", "share")).set_index(["severity", "arm"])
    own = rows[(rows.severity == "medium") & (rows.arm == "0.1_n")]
    line = means.loc[("medium", "0.1_n")]
    assert line.psnr.mean == pytest.approx(own.psnr.mean()) and line.people == 16 and line.seconds == 0.5
    some = ("stage1", study.METHOD, "0.1_n")
    assert line.share.mean == pytest.approx(0.6, abs=0.01) and means.loc[("mild", INPUT), "share"] is None
    differences = tables.difference_table(rows[rows.arm.isin(some)], metrics=("ids", "share"))
    differences = differences.set_index(["severity", "arm"])
    assert differences.loc[("severe", "stage1"), "ids"].mean == pytest.approx(-0.3, abs=0.01)
    assert differences.loc[("severe", "stage1"), "share"] is None
    shares = tables.share_table(rows[rows.arm != "0.1_none"])
    assert len(shares) == 3 * 11 and set(shares.compensation) == set(claims.FAMILIES)
    mild = shares[(shares.severity == "mild") & (shares.compensation == "identity")]
    assert mild.lambda_info.tolist() == [0.1, 0.01, 0.001]
    assert [each.mean for each in mild.share] == pytest.approx([0.6, 0.7, 0.8], abs=0.01)
    with pytest.raises(ConfigError, match="share-means"):
        tables.share_table(rows.drop(columns="share-means"))


def test_the_identity_table_pairs_with_the_own_identity():
    table = tables.identity_table(rows_of(severities=("severe",))).set_index(["arm", "injected"])
    assert len(table) == 16 and table.loc[("0.001_id", "ref"), "ids"].mean == pytest.approx(0.1, abs=0.01)
    assert table.loc[("0.1_id", "wrong"), "psnr"].mean == pytest.approx(-1, abs=0.02)
    assert table.loc[("0.001_id", "Z oracle"), "latent-error"].mean == pytest.approx(-3)


def test_ours_stands_beside_table_3():
    rows = rows_of()
    rows.loc[(rows.severity == "mild") & (rows.arm == "0.001_id") & (rows.person == 0), "status"] = "failed"
    table = tables.beside_paper(rows).set_index("row")
    assert len(table) == 14 and list(table.columns) == [*tables.PAPER_SCORES, *tables.OUR_SCORES]
    assert table.loc["stage I", list(tables.PAPER_SCORES)].tolist() == [117.27, 5.815, 65.79]
    assert table.loc["MIB w/o n|id", "FID"] == 123.53 and np.isnan(table.loc["0.1_none", "FID"])
    assert table.loc["0.001_id", "psnr"].n == 15 and table.loc["2AdaIN", "ids"].n == 16
    with pytest.raises(ConfigError, match="mild"):
        tables.beside_paper(rows[rows.severity != "mild"])


# --- recording and command --------------------------------------------------------------------------------------------


def finished(failing=()):
    out = {}
    for severity in study.SEVERITIES:
        rows = rows_of(12, (severity,)).drop(columns="severity")
        if severity in failing:
            rows.loc[3, ["status", "reason"]] = ["failed", "NonFiniteError: NaN"]
        metrics = (*SCORES, "niqe-toy")
        settings = ArmSettings(12, f"toy-ldbfr-{severity}", 4, metrics=metrics, method="DiffMAC with s")
        out[severity] = ArmStudy(settings, rows, "abc")
    return out


def test_a_study_is_recorded_with_its_columns(tmp_path):
    study.record_study(finished(), "refbfr evaluate diffmac", tmp_path)
    kept = recorded(study.RECORDING, tmp_path)
    assert kept.about["settings"]["weights"] == "abc" and kept.about["settings"]["arms"] == list(GOOD)
    assert len(kept.rows) == 3 * 12 * len(GOOD) and set(study.COLUMNS) < set(kept.rows.columns)
    assert kept.rows[kept.rows.arm == INPUT].share.isna().all()
    assert set(claims.claim_table(kept.rows).verdict) == {"confirmed"}
    with pytest.raises(ConfigError, match="1 rows failed"):
        study.record_study(finished(["medium"]), "command", tmp_path / "other")


def invoke(monkeypatch, result, *arguments):
    calls = []
    monkeypatch.setattr(study, "run_diffmac_study", lambda *a, **k: calls.append((a, k)) or result)
    return CliRunner().invoke(app, ["evaluate", "diffmac", *map(str, arguments)]), calls


def test_the_command_prints_names_failures_and_records(monkeypatch, tmp_path):
    only = {"severe": finished(["severe"])["severe"]}
    done, calls = invoke(monkeypatch, only, "--people", 12, "--severity", "severe", "--seed", 3, "--arms",
                         "stage1,0.001_id+ref", "-o", tmp_path)  # fmt: skip
    assert done.exit_code == 1 and "failed: severe, person 3, input: NonFiniteError: NaN" in done.stdout
    assert "±" in done.stdout and "confirmed" in done.stdout
    arms = ("stage1", "0.001_id+ref")
    assert calls == [((12, ("severe",), 3, tmp_path), {"arms": arms, "device": None, "root": None})]
    kept = []
    monkeypatch.setattr(study, "record_study", lambda result, command: kept.append(command) or tmp_path)
    done, calls = invoke(monkeypatch, finished(), "--record")
    assert done.exit_code == 0 and "recorded:" in done.stdout and calls[0][1]["arms"] == study.SETS["all"]
    assert kept == ["refbfr evaluate diffmac --people 64 --severity all --arms all --seed 0 --record"]
    done, calls = invoke(monkeypatch, finished(), "--severity", "mild", "--record")
    assert done.exit_code == 1 and not calls and "all severities" in done.output


@pytest.mark.skipif(study.RECORDING not in recordings(), reason="the study has not been recorded")
def test_the_recording_that_ships_is_whole():
    kept = recorded(study.RECORDING)
    settings, rows = kept.about["settings"], kept.rows
    assert set(settings["arms"]) >= {INPUT, *study.SETS["all"]} and set(study.METRICS) <= set(rows.columns)
    counts = rows.groupby(["severity", "arm"]).person.nunique()
    assert set(counts) == {settings["people"]} and len(counts) == 3 * len(settings["arms"])
    assert (rows.status == "ok").all() and np.isfinite(rows[settings["metrics"]].to_numpy()).all()
    assert "not measured" not in set(claims.claim_table(rows).verdict)
