"""The study of PDGrad's ablations: rows that survive failures and kills, what every arm passes, tables, the command."""

from __future__ import annotations

import math
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_pdgrad import SIDE, difface, pdgrad, pgdiff
from typer.testing import CliRunner

from refbfr_core import benchmark
from refbfr_core.benchmark import ablation_table, arms, claim_table, recorded, run_arms
from refbfr_core.benchmark import pdgrad as study
from refbfr_core.benchmark.arms import INPUT, ArmSettings, ArmStudy
from refbfr_core.benchmark.cases import Cases
from refbfr_core.cli.app import app
from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.metrics import Interval
from refbfr_core.pipelines.pivot_losses import LossWeights

SETTINGS = ArmSettings(people=5, preset="toy-pdgrad", metrics=("psnr", "ssim"), method="fake")


@pytest.fixture(autouse=True)
def quick_cases(monkeypatch):
    """Random squares in place of drawn faces; a person's pictures depend on the person and the seed only."""

    def make(people, total, *, preset, references, seed, split, resolution):
        pictures = []
        for person in people:
            draws = torch.Generator().manual_seed(1000 * seed + person)
            pictures.append(torch.rand(2 + 2 * references, 3, resolution, resolution, generator=draws))
        stack = torch.stack(pictures)
        right, wrong = stack[:, 2 : 2 + references], stack[:, 2 + references :]
        seeds = [seed * 10**6 + person for person in people]
        return Cases(tuple(people), stack[:, 0], stack[:, 1], right, wrong, seeds, [None] * len(people))

    monkeypatch.setattr(arms, "make_cases", make)


def judge():
    return torch.nn.Linear(2, 2)


JUDGE = judge()


def run(own, settings=SETTINGS, **options):
    return run_arms(own, settings, [], JUDGE, **{"resolution": SIDE, "batch": 2, "progress": False, **options})


def halfway(cases):
    return (cases.lq + cases.truth) / 2


def fails_for(*people):
    def arm(cases):
        if set(people) & set(cases.people):
            raise NonFiniteError("the arm holds NaN")
        return halfway(cases)

    return arm


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_person_has_a_row_in_every_arm():
    result = run({"half": halfway})
    assert result.arms == [INPUT, "half"] and len(result.rows) == 10 and not len(result.failures)
    means = result.rows.groupby("arm").psnr.mean()
    # Half the error is 6.02 dB.
    assert means["half"] - means[INPUT] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert result.table().loc["half", "people"] == 5 and "±" in result.table().loc["half", "psnr"]


def test_a_failing_case_is_a_row_with_a_reason_and_spares_its_batch():
    result = run({"fragile": fails_for(1), "half": halfway}, batch=5)
    fragile = result.rows[result.rows.arm == "fragile"].set_index("person")
    assert list(fragile.status) == ["ok", "failed", "ok", "ok", "ok"]
    assert fragile.reason[1] == "NonFiniteError: the arm holds NaN" and math.isnan(fragile.psnr[1])
    assert np.isfinite(fragile.psnr.drop(1)).all()
    assert list(result.failures.person) == [1] and result.table().loc["fragile", "failed"] == 1
    assert (result.rows[result.rows.arm == "half"].status == "ok").all()


def test_pictures_that_cannot_be_scored_are_failures():
    result = run({"small": lambda cases: cases.lq[..., :16, :16], "nan": lambda cases: cases.lq * math.nan})
    assert set(result.failures.arm) == {"small", "nan"} and len(result.failures) == 10


def test_mistakes_of_the_programmer_are_not_hidden():
    def typo(cases):
        return cases.left

    with pytest.raises(AttributeError, match="left"):
        run({"typo": typo})


def test_a_killed_run_is_continued_and_gives_the_same_rows(tmp_path):
    class KilledError(BaseException):
        pass

    calls = []

    def killed(cases):
        calls.append(cases.people)
        if 3 in cases.people and len(calls) == 2:
            raise KilledError
        return halfway(cases)

    with pytest.raises(KilledError):
        run({"half": killed, "fragile": fails_for(1)}, out=tmp_path)
    continued = run({"half": killed, "fragile": fails_for(1)}, out=tmp_path)
    # Finished people are not restored again.
    assert calls == [(0, 1), (2, 3), (2, 3), (4,)]
    whole = run({"half": halfway, "fragile": fails_for(1)})
    pd.testing.assert_frame_equal(
        continued.rows.drop(columns="seconds"), whole.rows.drop(columns="seconds"), check_exact=True
    )
    assert len(run({"half": killed, "fragile": fails_for(1)}, out=tmp_path).rows) == 15 and len(calls) == 4


def test_other_settings_networks_or_arms_are_refused(tmp_path):
    run({"half": halfway}, out=tmp_path)
    for changes in ({"seed": 1}, {"method": "other"}, {"metrics": ("psnr",)}, {"references": 2}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            run({"half": halfway}, replace(SETTINGS, **changes), out=tmp_path)
    with pytest.raises(ConfigError, match="arms"):
        run({"other": halfway}, out=tmp_path)
    with pytest.raises(ConfigError, match="weights"):
        run_arms({"half": halfway}, SETTINGS, [judge()], JUDGE, resolution=SIDE, out=tmp_path, progress=False)
    for people, references in ((1, 1), (2, 0)):
        with pytest.raises(ConfigError, match="Use at least 2 and 1"):
            ArmSettings(people, "toy-pdgrad", references)


# --- arms -------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for a pipeline: keeps what it is called with and returns grey pictures."""

    device = torch.device("cpu")

    def __init__(self):
        self.calls = []
        self.coarse = types.SimpleNamespace(restore=lambda images: -images)

    def __call__(self, lq, references=None, **options):
        self.calls.append((lq, references, options))
        return types.SimpleNamespace(images=torch.full_like(lq, 0.5))


@pytest.fixture
def cases():
    return arms.make_cases([0, 1], 4, preset="", references=2, seed=1, split="test", resolution=8)


@pytest.mark.parametrize(
    ("name", "references", "expected"),
    [
        ("A1", "right", {"mode": "A1"}),
        ("A2", "right", {"mode": "A2"}),
        ("PDGrad", "right", {"mode": "full"}),
        ("A3", "right", {"weights": LossWeights(terms=("arc",))}),
        ("A4", "right", {"weights": LossWeights(terms=("vgg",))}),
        ("A5", "right", {"mode": "A5"}),
        ("A6", "right", {"mode": "A6"}),
        ("DifFace start", None, {"scale": 0.0}),
        ("gain 1 (literal)", "right", {"gain": 1.0}),
        ("PDGrad, wrong person", "wrong", {}),
    ],
)
def test_every_arm_of_pdgrad_passes_its_own_keywords(cases, name, references, expected):
    pipe = Recorder()
    restore = study.pdgrad_arms(study.Methods(pipe), [name], start=300, gain=7.0)[name]
    for _ in range(2):  # the second batch is treated as the first
        assert restore(cases).shape == cases.lq.shape
        lq, given, options = pipe.calls.pop()
        assert lq is cases.lq and given is (getattr(cases, references) if references else None)
        assert options == {"seed": cases.seeds, "start": 300, "gain": 7.0, **expected}


def test_the_relatives_and_the_coarse_arm_use_their_own_pipelines(cases):
    methods = study.Methods(Recorder(), Recorder(), Recorder())
    own = study.pdgrad_arms(methods, ["PGDiff", "DifFace"], gain=7.0)
    assert list(own) == ["coarse", "PGDiff", "DifFace"]
    assert torch.allclose(own["coarse"](cases), 1 - cases.lq, atol=1e-6)
    own["PGDiff"](cases)
    own["DifFace"](cases)
    assert not methods.pdgrad.calls
    assert methods.pgdiff.calls[0][1] is cases.right and methods.difface.calls[0][1] is None
    assert all(pipe.calls[0][2] == {"seed": cases.seeds} for pipe in (methods.pgdiff, methods.difface))


def test_unknown_and_impossible_arms_are_refused():
    with pytest.raises(UnknownNameError, match="A1"):
        study.pdgrad_arms(study.Methods(Recorder()), ["A7"])
    with pytest.raises(ConfigError, match="Methods\\(pgdiff="):
        study.pdgrad_arms(study.Methods(Recorder()), ["PGDiff"])


def test_arm_names_are_read_from_text():
    assert study.arm_names("ablations") == tuple(study.ABLATIONS) and study.arm_names("all") == study.SETS["all"]
    assert study.arm_names("A1, PDGrad,A1") == ("A1", "PDGrad")
    assert study.arm_names("PDGrad, wrong person,PDGrad") == ("PDGrad, wrong person", "PDGrad")
    with pytest.raises(UnknownNameError, match="A9"):
        study.arm_names("A1,A9")
    with pytest.raises(ConfigError, match="names no arm"):
        study.arm_names(" ,")


def test_the_study_runs_on_tiny_networks():
    methods = study.Methods(pdgrad(), pgdiff(), difface())
    names = ("PDGrad", "A5", "PDGrad, wrong person", "PGDiff", "DifFace")
    result = study.run_pdgrad_study(
        2, arms=names, methods=methods, judge=JUDGE, metrics=("psnr",), progress=False, num_inference_steps=4
    )
    assert result.arms == [INPUT, "coarse", *names] and not len(result.failures)
    assert "num_inference_steps 4" in result.settings.method and "start 500" in result.settings.method
    scores = result.rows.pivot(index="person", columns="arm", values="psnr")
    assert (scores["PDGrad"] != scores["A5"]).all() and (scores["PDGrad"] != scores["PDGrad, wrong person"]).all()


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(people=12, **means):
    """Rows of arms with (ids, deg, psnr) means; people differ much more than arms do within a person."""
    draws, lines = np.random.default_rng(0), []
    level = draws.normal(0, 0.2, people)
    for arm, (ids, deg, psnr) in means.items():
        for person in range(people):
            jitter = draws.normal(0, 0.01)
            lines.append({"person": person, "arm": arm, "status": "ok", "ids": ids + level[person] + jitter,
                          "deg": deg + 10 * level[person] + jitter, "psnr": psnr + level[person] + jitter})  # fmt: skip
    return pd.DataFrame(lines)


LIKE_PAPER = {
    "A1": (0.50, 59.2, 20.0), "A2": (0.55, 54.5, 20.0), "PDGrad": (0.56, 53.9, 20.0), "A3": (0.5, 60.6, 20.0),
    "A4": (0.5, 61.9, 20.0), "A5": (0.4, 65.0, 20.5), "A6": (0.6, 50.0, 15.0), "PGDiff": (0.5, 56.7, 20.0),
    "coarse": (0.3, 68.0, 21.0), "PDGrad, wrong person": (0.45, 60.0, 20.0),
}  # fmt: skip


def test_the_papers_own_numbers_confirm_its_claims():
    table = claim_table(rows_of(**LIKE_PAPER))
    assert list(table.columns) == ["claim", "verdict", "difference"] and len(table) == len(study.CLAIMS) == 10
    assert set(table.verdict) == {"holds"}
    first = table.difference[0]
    assert isinstance(first, Interval) and first.mean == pytest.approx(54.5 - 59.2, abs=0.05)


def test_the_opposite_contradicts_and_equal_arms_stay_open():
    opposite = {arm: (-ids, -deg, -psnr) for arm, (ids, deg, psnr) in LIKE_PAPER.items()}
    assert set(claim_table(rows_of(**opposite)).verdict) == {"contradicted"}
    rows = rows_of(**dict.fromkeys(LIKE_PAPER, (0.5, 55.0, 20.0)))
    # Whatever chance made of the jitter, the sign of every other person's difference is turned.
    shared = rows.groupby("person")[["ids", "deg", "psnr"]].transform("mean")
    swing = np.where(rows.person % 2, 1, -1) * rows.arm.map({arm: n for n, arm in enumerate(LIKE_PAPER)})
    for metric in ("ids", "deg", "psnr"):
        rows[metric] = shared[metric] + swing
    assert set(claim_table(rows).verdict) == {"open"}


def test_few_people_give_no_verdict():
    assert set(claim_table(rows_of(people=9, **LIKE_PAPER)).verdict) == {"too few people"}


def test_claims_about_missing_arms_are_not_measured():
    rows = rows_of(**{arm: LIKE_PAPER[arm] for arm in ("A1", "A2")})
    table = claim_table(rows)
    assert table.verdict[0] == "holds" and set(table.verdict[1:]) == {"not measured"}
    assert table.difference[1:].isna().all()
    rows.loc[(rows.arm == "A2") & (rows.person > 0), "status"] = "failed"
    assert claim_table(rows).verdict[0] == "not measured"


def test_the_table_sets_ours_beside_the_papers():
    rows = rows_of(**LIKE_PAPER)
    table = ablation_table(rows).set_index("arm")
    assert table["Deg, paper"].dropna().to_dict() == {"A1": 59.24, "A2": 54.02, "PDGrad": 53.9, "A3": 60.6, "A4": 61.87}
    assert table.loc["A5", "IDS - PDGrad"].mean == pytest.approx(-0.16, abs=0.02)
    assert table.loc["A6", "PSNR - PDGrad"].mean == pytest.approx(-5, abs=0.02)
    assert table.loc["PDGrad", "IDS - PDGrad"] is None and (table.people == 12).all()
    own = rows[rows.arm == "A1"].deg.mean()
    assert table.loc["A1", "Deg, toy"].mean == pytest.approx(own)
    rows.loc[rows.arm == "A3", "status"] = "failed"
    assert ablation_table(rows).set_index("arm").loc["A3", ["Deg, toy", "IDS - PDGrad"]].isna().all()
    with pytest.raises(ConfigError, match="'PDGrad'"):
        ablation_table(rows[rows.arm != "PDGrad"])


@pytest.mark.parametrize(
    ("arm", "metric", "value"),
    [("A1", "LPIPS", 0.4513), ("A1", "NIQE", 3.44), ("A2", "LPIPS", 0.4506), ("PDGrad", "Deg", 53.9),
     ("PDGrad", "LMD", 6.36), ("A3", "LPIPS", 0.4616), ("A4", "Deg", 61.87)],
)  # fmt: skip
def test_numbers_of_the_paper(arm, metric, value):
    assert study.paper_value(arm, metric) == value


def test_arms_without_a_published_number_have_none():
    assert all(math.isnan(study.paper_value(arm, "Deg")) for arm in ("A5", "A6", "coarse", "PGDiff"))
    with pytest.raises(ConfigError, match="0 published numbers"):
        study.paper_value("A3", "PSNR")


# --- recording and command --------------------------------------------------------------------------------------------


def finished(*failing) -> ArmStudy:
    rows = rows_of(**LIKE_PAPER).assign(reason="", seconds=0.1)
    for index in failing:
        rows.loc[index, ["status", "reason"]] = ["failed", "NonFiniteError: NaN"]
    return ArmStudy(ArmSettings(12, "toy-pdgrad", metrics=("ids", "deg", "psnr"), method="PDGrad with s"), rows, "abc")


def test_a_study_is_recorded_with_its_settings(tmp_path):
    study.record_study(finished(), "refbfr evaluate pdgrad", tmp_path)
    kept = recorded(study.RECORDING, tmp_path)
    assert kept.about["settings"]["method"] == "PDGrad with s" and kept.about["settings"]["weights"] == "abc"
    assert kept.about["command"] == "refbfr evaluate pdgrad" and len(kept.rows) == 120
    assert set(claim_table(kept.rows).verdict) == {"holds"}
    with pytest.raises(ConfigError, match="1 rows failed"):
        study.record_study(finished(3), "refbfr evaluate pdgrad", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def invoke(monkeypatch, result, *arguments):
    calls = []
    monkeypatch.setattr(
        benchmark, "run_pdgrad_study", lambda *a, **k: calls.append((a, k)) or result, raising=False
    )
    return CliRunner().invoke(app, ["evaluate", "pdgrad", *map(str, arguments)]), calls


def test_the_command_prints_both_tables(monkeypatch, tmp_path):
    done, calls = invoke(monkeypatch, finished(), "--people", 12, "--seed", 3, "--arms", "A1,PDGrad", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert "A1" in done.stdout and "±" in done.stdout and "holds" in done.stdout and "failed:" not in done.stdout
    (((*first, out), options),) = calls
    assert first == [12, "toy-refldm-severe", 1, 3] and out == tmp_path
    assert options == {"arms": ("A1", "PDGrad"), "device": None}
    shown = CliRunner().invoke(app, ["evaluate", "pdgrad", "--help"])
    assert "ontinue" in shown.stdout


def test_the_command_names_failures_and_records(monkeypatch, tmp_path):
    done, _ = invoke(monkeypatch, finished(3))
    assert done.exit_code == 1 and "failed: person 3, A1: NonFiniteError: NaN" in done.stdout
    kept = []
    monkeypatch.setattr(study, "record_study", lambda result, command: kept.append(command) or tmp_path)
    done, calls = invoke(monkeypatch, finished(), "--arms", "ablations", "--record")
    assert done.exit_code == 0 and "recorded:" in done.stdout
    assert calls[0][1]["arms"] == tuple(study.ABLATIONS)
    assert kept == ["refbfr evaluate pdgrad --people 64 --preset toy-refldm-severe --references 1 --seed 0 "
                    "--arms ablations --record"]  # fmt: skip
    assert invoke(monkeypatch, finished(), "--arms", "A9")[0].exit_code == 1
