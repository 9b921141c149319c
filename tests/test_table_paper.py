"""A paper's table from end to end on a miniature release: results from folders, what is missing named, print beside."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_datasets import make_ffhq_ref

from refbfr_core.benchmark import published_value
from refbfr_core.benchmark.tables import table_dataset
from refbfr_core.benchmark.tables.make import Choices, MadeTable, make_table
from refbfr_core.benchmark.tables.store import read_rows
from refbfr_core.errors import ConfigError
from refbfr_core.images import write_image


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeTable:
    """ReF-LDM's table with one dataset here, one system's results, one of its pictures missing, and no weights."""
    for variable in ("REFBFR_WEIGHTS", "TORCH_HOME", "REFBFR_INSIGHTFACE_ROOT"):
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    root = make_ffhq_ref(tmp_path / "ffhq", people=(1, 1, 2), views=2).root
    items = table_dataset("ffhq-ref-severe", root).items
    for item in items[1:]:
        write_image(tmp_path / "theirs" / f"{item.name}.png", item.load().truth)
    choices = Choices(roots={"ffhq-ref-severe": root}, results={"VQFR": tmp_path / "theirs"})
    return make_table("refldm-results", choices, out=tmp_path / "out", progress=False)


def test_what_is_here_is_measured_and_what_is_not_is_named(made: MadeTable, tmp_path: Path) -> None:
    rows = read_rows(tmp_path / "out" / "rows.parquet")
    assert set(rows.system) == {"VQFR"} and list(rows.status).count("failed") == 1
    assert "holds no" in rows.reason[rows.status == "failed"].iloc[0]
    assert set(made.absent) == {"ffhq-ref-moderate", "celeba-test-ref"} and not made.whole
    assert {"CodeFormer", "DAEFR", "LDM", "DMDNet", "ReF-LDM"} <= set(made.run.not_run)
    assert "refbfr weights get codeformer" in made.run.not_run["CodeFormer"]
    assert "--results DAEFR=FOLDER" in made.run.not_run["DAEFR"]
    remarks = "\n".join(made.remarks())
    assert "not measured on ffhq-ref-severe: ids" in remarks and "InsightFace" in remarks
    assert "not here: celeba-test-ref" in remarks


def test_printed_and_measured_stand_side_by_side(made: MadeTable) -> None:
    frame = made.report.frame().set_index(["dataset", "system", "metric"])
    for dataset, printed, system in (
        ("ffhq-ref-severe", "FFHQ-Ref-Severe", "VQFR"),
        ("celeba-test-ref", "CelebA-Test-Ref", "ReF-LDM"),  # not here, and its number is not lost
    ):
        value = published_value("ReF-LDM", "results", system, "IDS", printed)
        assert frame.published[dataset, system, "ids"] == value
    for shown in (made.report.text(), made.report.markdown(), made.report.html()):
        assert "DAEFR" in shown and "published" in shown.lower()
    log = made.report.discrepancies()
    assert len(log), "failures and missing people are discrepancies"


def test_identity_on_photographs(shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared_dir / "faces" / "models" / "torch_home"))
    root = make_ffhq_ref(tmp_path / "ffhq", people=(1, 1, 2), views=2).root
    items = table_dataset("ffhq-ref-severe", root, limit=1).items
    write_image(tmp_path / "theirs" / f"{items[0].name}.png", items[0].load().truth)
    judge = shared_dir / "faces/models/insightface/models/kit/w_mobilefacenet128.onnx"
    choices = Choices(
        roots={"ffhq-ref-severe": root}, results={"VQFR": tmp_path / "theirs"}, systems=("VQFR",), limit=1, judge=judge
    )
    rows = make_table("refldm-results", choices, progress=False).run.rows
    assert rows.ids.iloc[0] == pytest.approx(1, abs=1e-3), "the truth itself, saved with 8 bits"


def test_nothing_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--root ffhq-ref-severe=FOLDER"):
        make_table("refldm-results", Choices(), out=tmp_path)
