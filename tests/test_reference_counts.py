"""Any number of references in the study, and table 5 beside the paper."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from refbfr_core.benchmark import reference_counts, run_reference_study
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.reference_counts import count_table, record_study
from refbfr_core.benchmark.references import StudySettings, parse_counts
from refbfr_core.errors import ConfigError, UnknownNameError


class MeanRestorer:
    """Stands in for a pipeline: the mean of the references, or the input without any. Records how many came."""

    resolution = 64
    config = SimpleNamespace(num_inference_steps=2, guidance_scale=1.5)

    def __init__(self, fail_with=None):
        self.vq, self.unet, self.came, self.fail_with = nn.Linear(1, 1), nn.Linear(1, 1), [], fail_with

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, lq, references, **settings):
        count = 0 if references is None else references.shape[1]
        self.came.append(count)
        if count == self.fail_with:
            raise RuntimeError("out of memory")
        return SimpleNamespace(images=lq if references is None else references.mean(dim=1))


class ColourJudge(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.eval()

    def embed(self, images):
        coloured = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) * self.weight
        return torch.nn.functional.normalize(coloured, dim=1)


def study(restorer, **settings):
    return run_reference_study(
        2, pipeline=restorer, judge=ColourJudge(), grid_people=0, progress=False, **{"counts": (1, 3, 5), **settings}
    )


@pytest.fixture(autouse=True, scope="module")
def _small_and_quick():
    """Every person is drawn once, and LPIPS, which has nothing to do with this file, stays out."""
    drawn = {}

    def remembered(people, total, **keywords):
        key = (tuple(people), total, *sorted(keywords.items()))
        if key not in drawn:
            drawn[key] = make_cases(people, total, **keywords)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refbfr_core.benchmark.references.make_cases", remembered)
        patch.setattr("refbfr_core.benchmark.references.unavailable", lambda name: "not here")
        yield


@pytest.fixture(scope="module")
def restorer():
    return MeanRestorer()


@pytest.fixture(scope="module")
def finished(restorer):
    return study(restorer)


def test_arms_and_contrasts_follow_the_counts(finished, restorer):
    assert list(finished.table.index) == ["input", "none", "wrong", "right 1", "right 3", "right 5"]
    assert restorer.came == [0, 5, 1, 3, 5]
    assert finished.settings.references == 5 and finished.settings.best == "right 5"
    pairs = {(each.one, each.other) for each in finished.contrasts if each.metric == "ids"}
    assert {("right 5", "right 1"), ("right 5", "right 3"), ("right 5", "none")} <= pairs
    rows = finished.rows.set_index(["person", "arm"])
    assert (rows.xs("right 1", level="arm").ids != rows.xs("right 5", level="arm").ids).all()


def test_default_counts_are_what_they_were():
    assert StudySettings().right_counts == [1, 2, 4]
    assert StudySettings(references=1).right_counts == [1]
    assert StudySettings(references=2).right_counts == [1, 2]
    assert StudySettings(references=8, counts=(8, 1, 3)).right_counts == [1, 3, 8]


@pytest.mark.parametrize("counts", [(), (0, 2)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ConfigError):
        study(MeanRestorer(), counts=counts)


def test_counts_from_a_command_line():
    assert parse_counts("1,3, 5") == (1, 3, 5) and parse_counts(None) is None
    for text in ("", "1;3", "1,two", "0,3", "-1"):
        with pytest.raises(ConfigError, match="1,3,5,8"):
            parse_counts(text)


def test_a_finished_folder_does_not_serve_other_counts(tmp_path):
    study(MeanRestorer(), counts=(1,), out=tmp_path)
    with pytest.raises(ConfigError, match="counts"):
        study(MeanRestorer(), counts=None, references=1, out=tmp_path)


def rows_of(**scores):
    return pd.DataFrame(
        [
            {"person": person, "arm": arm.replace("_", " "), "status": "ok", "ids": value}
            for arm, values in scores.items()
            for person, value in enumerate(values)
        ]
    )


def test_table_5_has_means_paired_gains_and_the_papers_numbers():
    rows = rows_of(input=[0.0, 0.0, 0.0], right_3=[0.6, 0.4, 0.5], none=[0.1, 0.2, 0.3], right_1=[0.3, 0.4, 0.5])
    table = count_table(rows).set_index("references")
    assert list(table.index) == [0, 1, 3]
    assert table["IDS, toy"].tolist() == pytest.approx([0.2, 0.4, 0.5])
    assert table.gain.tolist()[1:] == pytest.approx([0.2, 0.1]) and pd.isna(table.gain[0])
    assert table["gain, low"][1] == pytest.approx(0.2) and table["gain, low"][3] < 0.1 < table["gain, high"][3]
    assert table["IDS, paper"].tolist()[1:] == [0.52, 0.62] and pd.isna(table["IDS, paper"][0])
    with pytest.raises(ConfigError, match="right 1"):
        count_table(rows_of(none=[0.1, 0.2]))
    with pytest.raises(ConfigError, match="1 people"):
        count_table(rows_of(right_1=[0.1]))


def test_rows_that_failed_are_left_out_of_the_table_and_refused_as_a_recording(tmp_path):
    failed = study(MeanRestorer(fail_with=3))
    with pytest.raises(ConfigError, match="out of memory"):
        record_study(failed, "command", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recording_gives_the_same_table(finished, tmp_path, monkeypatch):
    record_study(finished, "what to type", tmp_path)
    kept = recorded("reference-counts", tmp_path)
    assert kept.about["settings"]["counts"] == [1, 3, 5] and kept.about["settings"]["weights"] == finished.weights
    monkeypatch.setattr(reference_counts, "recorded", lambda name: recorded(name, tmp_path))
    pd.testing.assert_frame_equal(count_table(), count_table(finished.rows), atol=1e-5)
    with pytest.raises(UnknownNameError):
        recorded("reference-counts", tmp_path / "elsewhere")


def test_the_command_runs_records_and_prints(tmp_path, monkeypatch, capsys, restorer):
    def quick(people, preset, **settings):
        return study(restorer, counts=settings["counts"], seed=settings["seed"])

    monkeypatch.setattr(reference_counts, "run_reference_study", quick)
    reference_counts.main(["--people", "2", "--counts", "1,2", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "right 2" in printed and "IDS, paper" in printed and str(tmp_path) in printed
    assert "--counts 1,2" in recorded("reference-counts", tmp_path).about["command"]
