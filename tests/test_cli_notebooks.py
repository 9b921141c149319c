"""Running the series: order, resuming, failures, kills, and that nothing half-written is ever taken for a result."""

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

from refbfr_core.cli import series
from refbfr_core.cli.app import app
from refbfr_core.errors import ConfigError, OutputError, UnknownNameError

pytest.importorskip("papermill")
pytest.importorskip("ipykernel")


@pytest.fixture
def cli():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def _notebook(path: Path, *sources: str, parameters: bool = False, title: str = "A title") -> Path:
    def cell(kind: str, source: str, number: int, tags: tuple[str, ...] = ()) -> dict:
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        return {"cell_type": kind, "id": f"c{number}", "metadata": {"tags": list(tags)}, "source": source, **code}

    cells = [cell("markdown", f"# {title}\ntext", 0)]
    if parameters:
        cells.append(cell("code", 'profile = "none"', 1, ("parameters",)))
    cells += [cell("code", source, number) for number, source in enumerate(sources, start=2)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def _outputs(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


@pytest.fixture(autouse=True)
def _package_stays(monkeypatch):
    """Somebody editing the package while tests run must not make notebooks look changed."""
    monkeypatch.setattr(series, "package_digest", lambda: "fixed")


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "notebooks"
    _notebook(place / "01_second.ipynb", "print('second', 6 * 7)", title="Second")
    _notebook(
        place / "00_first.ipynb",
        "import os, pathlib\nprint(profile, pathlib.Path.cwd().name, pathlib.Path(os.environ['REFBFR_FIGURES']).name)",
        parameters=True,
        title="First",
    )
    return place


def test_list_shows_reading_order_and_titles(cli, folder):
    shown = cli("notebooks", "list", "--notebooks", folder)
    assert shown.exit_code == 0
    assert shown.output.splitlines() == ["00_first   First", "01_second  Second"]


def test_selection_by_number_and_name(folder):
    notebooks = series.find_notebooks(folder)
    names = lambda *only: [one.name for one in series.select(notebooks, only)]  # noqa: E731
    assert names() == ["00_first", "01_second"]
    assert names("1") == names("01") == names("01_second") == names("01_second.ipynb") == ["01_second"]
    assert names("01", "00") == ["00_first", "01_second"]
    with pytest.raises(UnknownNameError, match="Did you mean '01_second'"):
        series.select(notebooks, ["01_secnod"])


def test_a_series_runs_resumes_and_notices_changes(cli, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("REFBFR_FIGURES", raising=False)
    out = tmp_path / "build" / "workbook"
    run = ("notebooks", "run", "--notebooks", folder, "--out", out, "--profile", "toy")
    first = cli(*run)
    assert first.exit_code == 0, first.output
    assert _outputs(out / "00_first.ipynb") == "toy notebooks figures\n"
    assert _outputs(out / "01_second.ipynb") == "second 42\n"
    times = json.loads((out / series.TIMES_FILE).read_text())["notebooks"]
    assert set(times) == {"00_first", "01_second"}
    assert all(entry["seconds"] > 0 and "core" in entry["machine"] for entry in times.values())
    assert "REFBFR_FIGURES" not in os.environ
    assert sorted(path.name for path in out.iterdir()) == ["00_first.ipynb", "01_second.ipynb", "times.json"]

    again = cli(*run)
    assert "0 run in 0.0 s, 2 done before" in again.output

    # Other outputs in the source change nothing; another source does, and so does a damaged result.
    _notebook(folder / "01_second.ipynb", "print('changed')", title="Second")
    changed = cli(*run)
    assert "00_first: done before" in changed.output
    assert _outputs(out / "01_second.ipynb") == "changed\n"
    (out / "01_second.ipynb").write_text("{}")
    assert "01_second: done before" not in cli(*run).output
    assert "1 run" in cli(*run, "--only", "00", "--force").output


def test_a_failing_notebook_stops_the_series_and_leaves_nothing(cli, folder, tmp_path):
    _notebook(folder / "00_first.ipynb", "x = 1", "raise ValueError('the sky is\\ngreen')")
    out = tmp_path / "out"
    shown = cli("notebooks", "run", "--notebooks", folder, "--out", out)
    assert shown.exit_code == 1
    assert shown.stderr.splitlines()[-1].startswith(
        "error: 00_first failed in its code cell 2: ValueError: the sky is green"
    )
    assert "Traceback" not in shown.output
    assert list(out.iterdir()) == []
    _notebook(folder / "00_first.ipynb", "import os; os._exit(3)")
    died = cli("notebooks", "run", "--notebooks", folder, "--out", out)
    assert died.exit_code == 1
    assert "DeadKernelError" in died.stderr
    assert list(out.iterdir()) == []


def test_a_killed_series_goes_on_where_it_was(folder, tmp_path):
    out, started = tmp_path / "out", tmp_path / "started"
    _notebook(
        folder / "01_second.ipynb", f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)"
    )
    code = "import pathlib, sys; from refbfr_core.cli import series; series.package_digest = lambda: 'fixed'\n"
    code += "series.run_series(series.find_notebooks(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(folder), str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.1)
    assert started.exists()
    running.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    running.wait(timeout=30)
    assert (out / "00_first.ipynb").is_file()
    assert not (out / "01_second.ipynb").exists(), "a notebook that was not finished must not look finished"
    _notebook(folder / "01_second.ipynb", "print('calm')")
    said: list[str] = []
    outcomes = series.run_series(series.find_notebooks(folder), out, report=said.append)
    assert [outcome.skipped for outcome in outcomes] == [True, False]
    assert sorted(path.name for path in out.iterdir()) == ["00_first.ipynb", "01_second.ipynb", "times.json"]


def test_bad_places_and_names_are_refused_before_anything_runs(cli, folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError):
        series.run_series(series.find_notebooks(folder), blocked / "out")
    assert (
        "nearest" not in cli("notebooks", "run", "--notebooks", folder, "--only", "7", "--out", tmp_path / "o").output
    )
    unknown = cli("notebooks", "run", "--notebooks", folder, "--profile", "toyy", "--out", tmp_path / "o")
    assert unknown.exit_code == 1
    assert "Did you mean 'toy'?" in unknown.stderr
    assert not (tmp_path / "o").exists()
    assert "no folder" in cli("notebooks", "list", "--notebooks", tmp_path / "absent").stderr
    with pytest.raises(ConfigError, match="no notebooks"):
        series.find_notebooks(tmp_path / "absent")
    (folder / "02_bad.ipynb").write_text("{")
    with pytest.raises(ConfigError, match=r"02_bad\.ipynb is not a readable notebook"):
        series.find_notebooks(folder)


def test_a_damaged_record_is_refused_with_a_cure(folder, tmp_path):
    (tmp_path / series.TIMES_FILE).write_text("[1")
    with pytest.raises(ConfigError, match="delete it"):
        series.run_series(series.find_notebooks(folder), tmp_path)


def test_the_digest_sees_code_and_profile_but_not_outputs(folder):
    path = folder / "01_second.ipynb"
    base = series.content_digest(path, "toy", "p")
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "second 42\n"}]
    content["cells"][1]["execution_count"] = 5
    path.write_text(json.dumps(content))
    assert series.content_digest(path, "toy", "p") == base
    assert series.content_digest(path, "paper", "p") != base
    assert series.content_digest(path, "toy", "q") != base


def test_the_package_digest_covers_code_and_weight_cards(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "cli").mkdir()
    for name in ("a.py", "card.json", "data.csv"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(series, "__file__", str(tmp_path / "cli" / "series.py"))
    before = series.package_digest()
    (tmp_path / "data.csv").write_text("2")
    assert series.package_digest() == before
    (tmp_path / "card.json").write_text("2")
    changed = series.package_digest()
    assert changed != before
    (tmp_path / "a.py").write_text("2")
    assert series.package_digest() != changed
