"""The scripts ldbfr_speed.py and ldbfr_gpu.py on small networks: what they time, what they print, what they keep."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny_ldbfr import faces, ldbfr

import refbfr_core
from refbfr_core.benchmark import recorded
from refbfr_core.models.ldbfr_full_size import full_size_networks


def load(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    for each in (name, "pdgrad_speed", "pdgrad_gpu", "refldm_speed", "refldm_gpu"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def speed(monkeypatch):
    return load("ldbfr_speed", monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    return load("ldbfr_gpu", monkeypatch)


def test_the_pieces_are_those_of_the_pipeline(speed):
    pipe, lq = ldbfr(), faces(1, 1)
    pieces = speed.works(pipe, lq)
    out = pipe(lq, seed=0)
    assert torch.equal(pieces["stage 1"](), out.stage_one)
    assert torch.equal(pieces["whole"]().images, out.images)
    plain, injected = pieces["denoiser"](), pieces["injected denoiser"]()
    assert plain.shape == injected.shape == (1, 3, 16, 16) and not torch.allclose(plain, injected, atol=1e-2)
    assert pieces["decoder"]().shape == lq.shape
    assert not any(each.requires_grad for each in (plain, injected, pieces["decoder"]()))


def test_speed_prints_tables_and_bounds_and_keeps_rows(speed, monkeypatch, tmp_path, capsys):
    asked: list[int] = []
    monkeypatch.setattr(sys.modules["pdgrad_speed"], "case", lambda count, side: (faces(count, 1), faces(count, 2, 1)))
    monkeypatch.setattr(speed, "case", sys.modules["pdgrad_speed"].case)
    monkeypatch.setattr(refbfr_core, "load_pipeline", lambda name, device: ldbfr())
    # One thread in both rows: two of them on a busy machine would only wait for each other.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    what = ["--threads", "1", "2", "--repeats", "1", "--beside", "ldbfr", "--together", "2"]
    monkeypatch.setattr(sys, "argv", ["ldbfr_speed.py", *what, "--record", "tried", "--folder", str(tmp_path)])
    speed.main()
    before = torch.get_num_threads()
    assert asked == [1, before, 2, before, 2, before]
    printed = capsys.readouterr().out
    assert "| 1 | cpu | 5 | " in printed and "| 2 | wall | 5 | " in printed and "| ldbfr | 5 | " in printed
    assert "1 thread: stage 1 0." in printed and "2 threads: whole " in printed and "bound 5 s, " in printed
    pieces, whole = recorded("tried", tmp_path).rows, recorded("tried-restorations", tmp_path).rows
    assert pieces.threads.tolist() == [1, 2] and (pieces["whole / stage 1"] > 0).all()
    assert (pieces["whole [s]"] > pieces["denoiser [s]"]).all() and whole.steps.tolist() == [5]


def test_a_bound_that_is_missed_is_called_so(speed):
    row = {"threads": 2, "stage 1 [s]": 0.099, "whole [s]": 5.1}
    kept, missed = speed.bounds(row)
    assert kept == "2 threads: stage 1 0.099 s, bound 0.1 s, kept"
    assert missed == "2 threads: whole 5.1 s, bound 5 s, NOT kept"


def test_the_gpu_table_works_tiny_and_refuses_without_a_gpu(gpu, monkeypatch, tmp_path, capsys):
    chosen = ["--tiny", "--methods", "LD-BFR", "PDGrad", "--pictures", "1", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["ldbfr_gpu.py", *chosen, "--record", "tried", "--folder", str(tmp_path)])
    gpu.main()
    printed = capsys.readouterr().out
    assert "say nothing about a GPU" in printed and "| LD-BFR | 64 | 0 | 4 | 2 | " in printed
    assert "| LD-BFR, stage 1 | 64 | 0 |  | 1 | " in printed and "| PDGrad | 32 | 1 | 3 of 4 | 1 | " in printed
    rows = recorded("tried", tmp_path).rows
    assert rows.method.tolist() == ([gpu.STAGE_ONE, "LD-BFR", "LD-BFR"] * 2 + ["PDGrad"] * 4)
    assert rows.executed.tolist() == [0, 4, 2, 0, 4, 2, 3, 1, 3, 1] and (rows.seconds > 0).all()
    assert rows.step_ms.isna().tolist() == (rows.executed == 0).tolist() and rows.peak_gib.isna().all()
    monkeypatch.setattr(sys, "argv", ["ldbfr_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "try the script with --tiny" in capsys.readouterr().err


def test_all_three_methods_are_asked_as_published(gpu):
    asked = []

    class Recorder:
        def __call__(self, lq, references, **options):
            asked.append((None if references is None else len(references), options))
            return type("Out", (), {"settings": type("Settings", (), {"timesteps": (3, 2, 1)})})

    lq, references = faces(2, 1), faces(2, 2, 1)
    for method in gpu.FULL_SIZE:
        own = references if method.references else None
        assert method.call(Recorder(), lq, own, method.steps[0]) == 3
    assert [count for count, _ in asked] == [None, 2, 2]
    assert [options["num_inference_steps"] for _, options in asked] == [200, 1000, 50]
    assert [options["rows_per_call"] for _, options in asked] == [2, 2, 4]
    assert "coarse" in asked[1][1] and "coarse" not in asked[0][1]


def test_the_full_size_networks_fit_each_other(gpu):
    pipe = gpu.LDBFRPipeline(**vars(full_size_networks("meta")), scheduler=ldbfr().scheduler)
    assert pipe.resolution == 512 and pipe.config.num_inference_steps == 200
    assert pipe.injection.config.condition_side == 16
