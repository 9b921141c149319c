"""The papers' numbers and the recordings of long runs."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from refbfr_core import benchmark
from refbfr_core.benchmark import papers
from refbfr_core.errors import CacheError, ConfigError, UnknownNameError

KEY = ["paper", "table", "dataset", "method", "metric", "source"]


def test_published_numbers_are_tidy():
    rows = benchmark.published()
    assert set(rows.paper) == set(benchmark.PAPERS)
    assert rows.direction.isin(["up", "down", "none"]).all()
    assert rows.value.dtype == float and rows.value.notna().all()
    assert not rows.source.str.contains(r"\.txt$").any()
    # Counted by hand in the sources' tables.
    assert rows.groupby("paper").size().to_dict() == {"DiffMAC": 345, "LD-BFR": 108, "PDGrad": 67, "ReF-LDM": 189}


@pytest.mark.parametrize(
    ("table", "method", "metric", "value"),
    [
        ("Table 2", "CacheKV", "IDS", 0.65),
        ("Table 2", "Spatial-concatenation", "inference time", 58.36),
        ("Table 5", "max 8 refs", "IDS", 0.66),
        ("identity-loss ablation", "L_LDM + L_ID", "NIQE", 6.56),
        ("id-loss scale ablation", "scale 1[t<500]", "IDS", 0.61),
    ],
)
def test_single_numbers(table, method, metric, value):
    assert benchmark.published_value("ReF-LDM", table, method, metric) == value


def test_a_number_that_is_not_there_is_not_invented():
    with pytest.raises(ConfigError, match="0 published numbers fit"):
        benchmark.published_value("PDGrad", "Table 6", "PDGrad", "LPIPS")
    with pytest.raises(UnknownNameError, match="ReF-LDM"):
        benchmark.published("RefLDM")


def test_missing_cells_are_rows_without_a_value_that_say_why():
    rows, whole = benchmark.published(), benchmark.published(missing=True)
    assert rows.value.notna().all() and not rows.note.str.startswith(papers.MISSING).any()
    missing = whole[whole.value.isna()]
    assert len(whole) == len(rows) + len(missing)
    assert missing.note.str.startswith(papers.MISSING).all() and missing.note.str.len().min() > 30
    assert missing.source.str.len().min() > 0
    assert not whole.duplicated(KEY).any()
    # A cell is either known or missing, whatever its source.
    assert not whole.duplicated(["paper", "table", "dataset", "method", "metric"]).any()
    # Every method of Tables 1 to 6 has all seven columns of the article's list of metrics, known or missing.
    tables = whole[(whole.paper == "PDGrad") & whole.table.str.startswith("Table") & (whole.unit != "percent")]
    tables = tables[~tables.method.str.startswith("second best")]
    assert tables.groupby(["table", "method"]).size().unique().tolist() == [7]
    assert tables.groupby("table").method.nunique().tolist() == [4, 2, 6, 3, 3, 3]
    assert tables[tables.table == "Table 6"].value.isna().all()
    assert benchmark.published("PDGrad", missing=True).paper.unique().tolist() == ["PDGrad"]


def test_a_value_and_a_reason_for_its_absence_exclude_each_other(tmp_path):
    line = "PDGrad,Table 1,d,m,LPIPS,down,{},,s,{}\n"
    for value, note in (("", "a note"), ("0.5", "missing: nobody knows")):
        (tmp_path / "x.csv").write_text(",".join(papers.COLUMNS) + "\n" + line.format(value, note))
        with pytest.raises(CacheError, match="or with both"):
            papers._read(tmp_path / "x.csv")


def test_every_row_of_the_collection_ships_with_the_same_value(shared_dir):
    files = sorted((shared_dir / "published").glob("*.csv"))
    theirs = pd.concat([pd.read_csv(path, keep_default_na=False, dtype={"value": float}) for path in files])
    # Sources have other names there: file names here became titles.
    own = [column for column in papers.COLUMNS if column not in ("source", "note")]
    ours = benchmark.published()
    assert len(files) == 4 and len(theirs) == len(ours)
    order = [column for column in own if column != "value"]
    pd.testing.assert_frame_equal(
        theirs[own].sort_values(order, ignore_index=True), ours[own].sort_values(order, ignore_index=True)
    )


def test_recording_comes_back_as_written(tmp_path):
    rows = pd.DataFrame({"arm": ["a", "b"], "ids": [0.125, 0.5], "failed": [False, True]})
    benchmark.record("some-run", rows, {"command": "refbfr some", "settings": {"seed": 3}}, tmp_path)
    again = benchmark.recorded("some-run", tmp_path)
    pd.testing.assert_frame_equal(again.rows, rows)
    assert again.about["settings"] == {"seed": 3}
    assert again.about["machine"]["cores"] >= 1
    assert "`refbfr some`" in str(again)
    assert benchmark.recordings(tmp_path) == ["some-run"]


def test_bad_recordings_are_refused(tmp_path):
    rows = pd.DataFrame({"x": [1, 2]})
    with pytest.raises(ConfigError, match="no rows"):
        benchmark.record("empty", rows[:0], {"command": "c", "settings": {}}, tmp_path)
    with pytest.raises(ConfigError, match="settings"):
        benchmark.record("partial", rows, {"command": "c"}, tmp_path)
    with pytest.raises(UnknownNameError, match="recording"):
        benchmark.recorded("nothing", tmp_path)
    benchmark.record("good", rows, {"command": "c", "settings": {}}, tmp_path)
    (tmp_path / "good.csv").write_text("x\n1\n")  # a row was lost
    with pytest.raises(CacheError, match="1 rows"):
        benchmark.recorded("good", tmp_path)
    (tmp_path / "good.json").write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        benchmark.recorded("good", tmp_path)


def test_the_shipped_recordings_say_what_made_them():
    for name in benchmark.recordings():
        about = benchmark.recorded(name).about
        assert about["command"] and about["settings"], name
        assert "/work" not in json.dumps(about) and "/root" not in json.dumps(about), name
