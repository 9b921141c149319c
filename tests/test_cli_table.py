"""`refbfr table`: one and several processes, kills, folders of results, and requests that cannot be met."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refbfr_core.benchmark import recorded
from refbfr_core.benchmark.tables import SYSTEMS, TABLES, Arm, drawn_dataset, make
from refbfr_core.benchmark.tables.engine import run_table
from refbfr_core.benchmark.tables.results import picture_path
from refbfr_core.benchmark.tables.store import read_rows
from refbfr_core.benchmark.tables.workers import launch, started_by_launch
from refbfr_core.cli.app import app
from refbfr_core.errors import ConfigError, UnknownNameError

QUICK = ["table", "toy", "--people", "3", "--dataset", "drawn-severe"]
QUICK += ["--system", "Input", "--system", "Coarse network"]


def command(*arguments: object, **options: object) -> subprocess.Popen:
    """The command in a session of its own."""
    line = [sys.executable, "-m", "refbfr_core.cli", *map(str, arguments)]
    return subprocess.Popen(line, start_new_session=True, text=True, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick table by one process."""
    out = tmp_path_factory.mktemp("alone")
    done = CliRunner().invoke(app, [*QUICK, "--processes", "1", "--out", str(out), "--figures", str(out / "figures")])
    assert done.exit_code == 0, done.output
    (out / "printed.txt").write_text(done.stdout, encoding="utf-8")
    return out


def test_table_and_report(alone: Path) -> None:
    printed = (alone / "printed.txt").read_text(encoding="utf-8")
    assert "Coarse network" in printed and "Input" in printed and "psnr" in printed and "±" in printed
    assert {path.name for path in (alone / "report").iterdir()} >= {"table.md", "table.tex", "table.html", "table.csv"}
    assert any((alone / "figures").glob("*.json"))
    about = json.loads((alone / "settings.json").read_text(encoding="utf-8"))
    assert about["methods"]["Coarse network"]["weights"] and about["datasets"]["drawn-severe"]["items"] == 3


def test_two_processes_survive_a_kill_and_give_the_same_rows(alone: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = command(*QUICK, "--processes", "2", "--out", tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (store.is_dir() and list(store.glob("part-*"))):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last = command(*QUICK, "--processes", "2", "--out", tmp_path, stdout=subprocess.PIPE)
    printed = last.communicate()[0]
    assert last.returncode == 0
    assert printed.rstrip() == (alone / "printed.txt").read_text(encoding="utf-8").rstrip()
    assert (tmp_path / "rows.parquet").read_bytes() == (alone / "rows.parquet").read_bytes()
    assert (tmp_path / "report" / "table.md").read_bytes() == (alone / "report" / "table.md").read_bytes()


def test_a_folder_of_results_with_a_missing_picture(alone: Path, tmp_path: Path) -> None:
    """The folder has what the coarse network made, so it gets the coarse network's scores, to within 8 bits."""
    data = drawn_dataset("severe", 3)
    run_table([data], [Arm("Coarse network")], ("psnr",), out=tmp_path, pictures=True, progress=False)
    folder = picture_path(tmp_path, "drawn-severe", "Coarse network", "person-000").parent
    (folder / "person-001.png").unlink()
    options = ["--results", f"Theirs={folder}", "--out", str(tmp_path / "run"), "--processes", "1"]
    done = CliRunner().invoke(app, [*QUICK, *options])
    assert done.exit_code == 1 and "person-001" in done.stdout
    rows = read_rows(tmp_path / "run" / "rows.parquet").set_index(["system", "item"])
    assert list(rows.loc["Theirs"].status) == ["ok", "failed", "ok"]
    assert rows.psnr["Theirs", "person-002"] == pytest.approx(rows.psnr["Coarse network", "person-002"], abs=0.02)


def test_sets_that_are_too_small_are_named(alone: Path) -> None:
    done = CliRunner().invoke(app, [*QUICK, "--processes", "1", "--out", str(alone), "--sets", "--quiet"])
    assert done.exit_code == 0 and "kid-toy of 2 arms: 3 pictures; sets below 64" in done.output


@pytest.mark.parametrize("style", ["markdown", "latex", "html", "csv"])
def test_formats(alone: Path, style: str) -> None:
    done = CliRunner().invoke(app, [*QUICK, "--processes", "1", "--out", str(alone), "--format", style, "--quiet"])
    sign = {"markdown": "| ", "latex": "\\toprule", "html": "<table", "csv": ","}[style]
    assert done.exit_code == 0 and sign in done.stdout


def test_list_names_every_table_and_system() -> None:
    done = CliRunner().invoke(app, ["table"])
    assert done.exit_code == 0 and all(f"{name}:" in done.stdout for name in TABLES)
    done = CliRunner().invoke(app, ["table", "systems"])
    assert done.exit_code == 0 and all(f"{name}:" in done.stdout for name in SYSTEMS)


@pytest.mark.parametrize("arguments", [["diffmac-4"], ["diffmac-1", "--printed"]])
def test_printed_tables(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["table", *arguments])
    assert done.exit_code == 0 and "DiffBIR" in done.stdout and "DiffMAC" in done.stdout


def test_a_recording_keeps_rows_and_command(alone: Path, tmp_path: Path) -> None:
    made = make.make_table("toy", make.Choices(people=3, datasets=("drawn-severe",), systems=("Input",)), out=alone)
    make.record_table(made, "some-table", "refbfr table toy", tmp_path)
    kept = recorded("some-table", tmp_path)
    assert list(kept.rows.system) == ["Input"] * 3 and kept.rows.seconds.notna().all()
    assert kept.about["settings"]["methods"]["Input"]["name"] == "Input"
    made.run.not_run["PDGrad"] = "no weights"
    with pytest.raises(ConfigError, match="not everything ran"):
        make.record_table(made, "other", "refbfr table toy", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "tpy"], "toy"),
        (["table", "toy", "--format", "word"], "markdown"),
        (["table", "toy", "--system", "CodeFromer", "--processes", "1"], "system of the table"),
        (["table", "toy", "--results", "folder"], "NAME=FOLDER"),
        (["table", "refldm-results"], "--root ffhq-ref-severe=FOLDER"),
    ],
)
def test_requests_that_cannot_be_met(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*arguments, *(["--out", str(tmp_path)] if len(arguments) > 1 else [])])
    assert done.exit_code != 0 and message in done.output


def test_choices() -> None:
    spec = TABLES["toy"]
    arms, _ = make.chosen_arms(spec, make.Choices(systems=("PDGrad, right", "LDM")))
    assert arms == tuple(arm for arm in spec.arms if str(arm) in ("PDGrad, right", "LDM"))
    with pytest.raises(UnknownNameError, match="drawn-severe"):
        make.open_datasets(spec, make.Choices(datasets=("drawn-sever",)))
    spec = TABLES["refldm-results"]
    datasets, absent = make.open_datasets(spec, make.Choices(roots={"celeba-test-ref": Path("nowhere")}))
    assert not datasets and "nowhere" in absent["celeba-test-ref"] and "--root" in absent["ffhq-ref-severe"]


def test_processes_never_start_each_other_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFBFR_TABLE_STARTER", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="unset it"):
        started_by_launch()
    with pytest.raises(ConfigError, match="at least 2"):
        launch(1, [])
