"""`python benchmarks/run.py`: prints what it measures with the machine's description, and the same as JSON."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "run.py"
    spec = importlib.util.spec_from_file_location("benchmarks_run", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_run", module)
    spec.loader.exec_module(module)
    return module


def test_prints_and_writes_machine_and_measurements(run, monkeypatch, tmp_path, capsys):
    line = run.Measurement("faces drawn", 51.26, "faces/s", goal=40, note="2 processes")
    monkeypatch.setattr(run, "BENCHMARKS", {"faces": lambda: iter([line])})
    monkeypatch.setattr(sys, "argv", ["run.py", "--json", str(tmp_path / "out.json")])
    run.main()
    printed = capsys.readouterr().out
    assert "51.3 faces/s    goal >= 40 faces/s" in printed and "processor" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["machine"]["cores"] >= 1
    assert written["measurements"] == [
        {"name": "faces drawn", "value": 51.26, "unit": "faces/s", "goal": 40, "note": "2 processes"}
    ]


def test_a_goal_for_a_time_is_an_upper_one(run):
    assert "goal <= 0.5 s" in str(run.Measurement("import", 0.1, "s", goal=0.5))


def test_seconds_leaves_the_first_call_out(run, monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))
    calls = []
    assert run.seconds(lambda: calls.append(1), repeats=3) == 2.0
    assert len(calls) == 4


def test_the_package_imports_nothing_heavy(run):
    assert run._import_seconds("import refbfr_core", before="import torch", repeats=1) < 0.5


def test_unknown_benchmarks_are_refused(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "speed"])
    with pytest.raises(SystemExit):
        run.main()
    assert "speed" in capsys.readouterr().err
