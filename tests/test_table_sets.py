"""Distances between sets of a table's pictures: protocol in the name, small sets refused, nothing left out silently."""

from __future__ import annotations

from pathlib import Path

import pytest
import table_toys as toys

from refbfr_core.benchmark.tables import TableRun, run_table
from refbfr_core.benchmark.tables.results import picture_path
from refbfr_core.benchmark.tables.set_scores import score_sets
from refbfr_core.errors import ConfigError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TableRun:
    """A run with pictures, in which one restoration failed."""
    methods = toys.restorers()
    methods["Other"].change = lambda made, names: made * float("nan") if names == ["noise/item-2"] else 1 - made
    out = tmp_path_factory.mktemp("sets")
    return run_table(
        [toys.dataset()], toys.arms(), toys.METRICS, out=out, restorers=methods, pictures=True, progress=False
    )


def truths(run: TableRun) -> dict[str, Path]:
    """The folder of true pictures as the reference set."""
    return {"noise": picture_path(run.pictures, "noise", "truth", "item-0").parent}


def test_small_sets_are_refused_with_a_reason(run: TableRun) -> None:
    lines = score_sets(run, ["kid-toy"], truths(run))
    assert len(lines) == 3 and lines.value.isna().all() and lines.reason.str.contains("allow_small").all()


def test_small_sets_are_measured_when_asked_for(run: TableRun) -> None:
    lines = score_sets(run, ["kid-toy", "fid-toy"], truths(run), allow_small=True)
    lines = lines.set_index(["system", "references", "metric"])
    assert list(lines.xs("kid-toy", level="metric").n) == [6, 6, 5], "the failed picture must not count"
    assert lines.value.notna().all() and (lines.reason == "").all()
    assert lines.value["Blend", "none", "kid-toy"] < lines.value["Other", "none", "kid-toy"]
    assert "n=5" in lines.column["Other", "none", "fid-toy"] and "truth" in lines.column["Other", "none", "fid-toy"]


def test_the_toy_twins_compare_with_clean_drawn_people(run: TableRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refbfr_core.benchmark.tables.set_scores.CLEAN_PEOPLE", 4)
    lines = score_sets(run, ["kid-toy"], allow_small=True)
    assert set(lines.reference) == {"clean drawn people of split val"} and lines.value.notna().all()


def test_without_its_network_fid_says_what_to_get(
    run: TableRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lines = score_sets(run, ["fid"], allow_small=True)
    assert lines.value.isna().all() and lines.reason.str.contains("refbfr weights get inception-fid").all()


def test_pictures_are_needed() -> None:
    run = run_table([toys.dataset()], toys.arms(), toys.METRICS, restorers=toys.restorers(), progress=False)
    with pytest.raises(ConfigError, match="pictures=True"):
        score_sets(run, ["kid-toy"])
