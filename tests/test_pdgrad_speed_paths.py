"""The scripts pdgrad_speed.py and pdgrad_gpu.py on tiny networks: what they time is the same work, what they print."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny_pdgrad import SIDE, components, faces, pdgrad

import refbfr_core
from refbfr_core.benchmark import recorded
from refbfr_core.errors import WeightsError
from refbfr_core.pipelines.pivot_guidance import GRADIENTS


def load(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def speed(monkeypatch):
    return load("pdgrad_speed", monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    return load("pdgrad_gpu", monkeypatch)


def networks() -> dict[str, torch.nn.Module]:
    parts = components()
    return {name: parts[name].requires_grad_(False) for name in ("unet", "embedder", "perceptual")}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal up to rounding, relative to the largest value."""
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


@pytest.mark.parametrize("reference", [True, False])
def test_the_bare_networks_give_the_gradients_of_the_hook(speed, reference):
    step = speed.Step(networks(), 2, reference, SIDE)
    _, gradients = step.guidance.gradients(step.x0)
    low, high = step.each_backward()
    for got in ((low, high), step.stacked()):
        assert len(got[0]) == len(got[1]) == (2 if reference else 1)
        for letter, *levels in zip("cr", *got, strict=False):
            for level, value in zip(("low", "high"), levels, strict=True):
                close(value, gradients[f"{level}_{letter}"])
    close(step.one_backward(), sum(gradients[name] for name in GRADIENTS))
    # They are gradients of different losses: the comparison would notice a mix-up.
    assert float((low[0] - high[0]).abs().max() / low[0].abs().max()) > 1e-2


def test_one_forward_pass_serves_all_four_gradients(speed, monkeypatch):
    step, calls = speed.Step(networks(), 2, True, SIDE), []
    for network in (step.embedder, step.perceptual):
        inner = network.guidance_features
        monkeypatch.setattr(
            network, "guidance_features", lambda images, inner=inner: (calls.append(len(images)), inner(images))[1]
        )
    step.guidance(step.state)
    assert calls == [2, 2]


def test_speed_prints_tables_and_keeps_them(speed, monkeypatch, tmp_path, capsys):
    def pipeline(name, device):
        if name == "pgdiff":
            raise WeightsError("no weights of this network")
        return pdgrad()

    monkeypatch.setattr(speed, "shipped_networks", networks)
    monkeypatch.setattr(speed, "case", lambda count, side: (faces(count, 1), faces(count, 2, 1)))
    monkeypatch.setattr(refbfr_core, "load_pipeline", pipeline)
    what = ["--batches", "1", "2", "--repeats", "1", "--pipelines", "pdgrad", "pgdiff", "--together", "2"]
    monkeypatch.setattr(sys, "argv", ["pdgrad_speed.py", *what, "--record", "tried", "--folder", str(tmp_path)])
    speed.main()
    printed = capsys.readouterr().out
    assert "| 1 | yes | " in printed and "| 2 | no | " in printed and "Goal: 1.25 times" in printed
    assert "pgdiff is left out: no weights" in printed and "| pdgrad | 5 | " in printed
    steps, whole = recorded("tried", tmp_path).rows, recorded("tried-restorations", tmp_path).rows
    assert steps[["batch", "reference"]].values.tolist() == [[1, True], [1, False], [2, True], [2, False]]
    assert (steps["hook [s]"] > 0).all() and (steps["hook / one backward"] > 0).all()
    assert whole["pipeline"].tolist() == ["pdgrad"] and whole["steps"].tolist() == [5]
    assert (whole["together [s]"] > 0).all() and (whole["singly [s]"] > whole["one face [s]"] / 2).all()


def test_the_gpu_table_works_tiny_and_refuses_without_a_gpu(gpu, monkeypatch, tmp_path, capsys):
    keep = ["--record", "tried", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pdgrad_gpu.py", "--tiny", "--pictures", "1", "2", *keep])
    gpu.main()
    printed = capsys.readouterr().out
    assert "numbers say nothing about a GPU" in printed and "32 px, tau = 700" in printed
    assert "14 steps: 2 pictures together cost " in printed and "| 7 | 10 | 2 | " in printed
    rows = recorded("tried", tmp_path).rows
    assert rows[["steps", "executed", "pictures"]].values.tolist() == [[20, 14, 1], [10, 7, 1], [20, 14, 2], [10, 7, 2]]
    assert (rows.seconds > 0).all() and (rows.step_ms > 0).all() and rows.peak_gib.isna().all()
    monkeypatch.setattr(sys, "argv", ["pdgrad_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "try the script with --tiny" in capsys.readouterr().err


def test_the_published_run_takes_700_175_and_70_steps():
    from refbfr_core.diffusion import make_schedule
    from refbfr_core.pipelines.prior import prior_timesteps

    schedule = make_schedule("pdgrad")
    assert [len(prior_timesteps(schedule, "adm", steps, 700)) for steps in (1000, 250, 100)] == [700, 175, 70]
