"""diffmac_speed.py, diffmac_gpu.py and the study of fewer steps on small networks: what they time, print and keep."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tiny_diffmac import embedder, faces, tiny_pipeline

import refbfr_core
from refbfr_core.benchmark import diffmac_steps, recorded
from refbfr_core.benchmark.arms import INPUT
from refbfr_core.errors import ConfigError
from refbfr_core.models.diffmac_full_size import full_size_networks
from refbfr_core.pipelines import DiffMACPipeline


def load(name: str, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    for each in (name, "ldbfr_speed", "pdgrad_speed", "pdgrad_gpu", "refldm_speed"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def speed(monkeypatch):
    return load("diffmac_speed", monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    return load("diffmac_gpu", monkeypatch)


def test_the_pieces_are_those_of_the_pipeline(speed):
    pipe, lq = tiny_pipeline(), faces(1, 1)
    pieces = speed.works(pipe, lq, 2)
    out = pipe(lq, seed=0)
    assert torch.equal(pieces["stage I"](), out.stage_one)
    assert torch.equal(pieces["bottleneck"]().moments, out.bottleneck.moments)
    assert torch.equal(pieces["stage II"]().images, out.images)
    assert torch.equal(pieces["whole"]().images, out.images)
    slid = pieces["slider"]().settings
    assert (slid.stage_one, slid.share, slid.timesteps) == ("given", 0.5, (999, 0))
    plain, modulated = pieces["denoiser"](), pieces["modulated denoiser"]()
    assert plain.shape == modulated.shape == (1, 4, 16, 16) and not torch.allclose(plain, modulated, atol=1e-2)
    assert pieces["decoder"]().shape == lq.shape
    assert not any(each.requires_grad for each in (plain, modulated, pieces["decoder"]()))


def test_speed_prints_tables_and_bounds_and_keeps_rows(speed, monkeypatch, tmp_path, capsys):
    asked: list[int] = []
    drawn = lambda count, side: (faces(count, 1), faces(count, 2, 1))  # noqa: E731
    for module in (speed, sys.modules["pdgrad_speed"]):
        monkeypatch.setattr(module, "case", drawn)
    monkeypatch.setattr(refbfr_core, "load_pipeline", lambda name, device: tiny_pipeline(num_inference_steps=2))
    # One thread in both rows: two of them on a busy machine would only wait for each other.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    what = ["--threads", "1", "2", "--repeats", "1", "--beside", "diffmac", "--together", "2", "--slider-steps", "1"]
    monkeypatch.setattr(sys, "argv", ["diffmac_speed.py", *what, "--record", "tried", "--folder", str(tmp_path)])
    speed.main()
    before = torch.get_num_threads()
    assert asked == [1, before, 2, before, 2, before]
    printed = capsys.readouterr().out
    assert "| 1 | cpu | 2 | 1 | " in printed and "| 2 | wall | 2 | 1 | " in printed and "| diffmac | 2 | " in printed
    assert "1 thread: whole (2 x 2 steps) " in printed and "2 threads: slider (stage II in 1 steps) " in printed
    pieces, whole = recorded("tried", tmp_path).rows, recorded("tried-restorations", tmp_path).rows
    assert pieces.threads.tolist() == [1, 2] and (pieces["modulated denoiser / denoiser"] > 0).all()
    assert (pieces["whole [s]"] > pieces["denoiser [s]"]).all() and whole.steps.tolist() == [2]


def test_a_bound_that_is_missed_is_called_so(speed):
    row = {"threads": 2, "steps": 25, "slider steps": 5, "whole [s]": 20.1, "slider [s]": 2.99}
    missed, kept = speed.bounds(row)
    assert missed == "2 threads: whole (2 x 25 steps) 20.1 s, bound 20 s, NOT kept"
    assert kept == "2 threads: slider (stage II in 5 steps) 2.99 s, bound 3 s, kept"


def test_the_gpu_table_works_tiny_and_refuses_without_a_gpu(gpu, monkeypatch, tmp_path, capsys):
    chosen = ["--tiny", "--steps", "3", "1", "--pictures", "1", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["diffmac_gpu.py", *chosen, "--record", "tried", "--folder", str(tmp_path)])
    gpu.main()
    printed = capsys.readouterr().out
    assert "says nothing about a GPU" in printed and "| 32 | float32 | 3 | 2 | " in printed
    assert "| 32 | bfloat16 | 1 | 1 | " in printed
    assert "published: 10.78 s on an RTX 3090, two passes of 50 steps; here: not measured" in printed
    rows = recorded("tried", tmp_path).rows
    assert rows.precision.tolist() == ["float32"] * 4 + ["bfloat16"] * 4
    assert rows.steps.tolist() == [3, 1] * 4 and rows.pictures.tolist() == [1, 1, 2, 2] * 2
    assert (rows[["seconds", "stage_one", "stage_two", "call_ms", "plain_ms"]] > 0).all().all()
    assert rows.peak_gib.isna().all()
    full = gpu.Measured(512, "float32", 50, 1, 9.87, 9.8, 9.9, 5.0, 4.8, 90.0, 80.0, 10.0)
    assert "here: 9.87 s in float32" in gpu.beside_paper([full]) and "| 10.0 GiB |" in gpu.markdown([full])
    monkeypatch.setattr(sys, "argv", ["diffmac_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "try the script with --tiny" in capsys.readouterr().err


def test_half_precision_stays_near_full_precision():
    lq, references = faces(2, 1), faces(2, 9, 1)
    full = tiny_pipeline()(lq, references, seed=1, num_inference_steps=2)
    half = tiny_pipeline().to(torch.bfloat16)(lq, references, seed=1, num_inference_steps=2)
    assert "bfloat16" in str(half.settings) and half.images.dtype == torch.float32
    assert half.identity.dtype == half.bottleneck.moments.dtype == torch.float32
    # Eight bits of mantissa, through two random networks of two steps each.
    assert 0 < (half.images - full.images).abs().mean() < 0.03
    assert (half.images - full.images).abs().mean() < 0.25 * (full.images - full.images.flip(0)).abs().mean()


def test_the_full_size_networks_fit_each_other():
    for light in (False, True):
        parts = vars(full_size_networks("meta", light=light))
        pipe = DiffMACPipeline(**parts, scheduler=tiny_pipeline().scheduler, embedder=_wide())
        assert pipe.resolution == 512 and pipe.config.num_inference_steps == 50
        assert pipe.second.bottleneck.config.statistics_side == 64 and pipe.prompt().shape == (1, 77, 1024)


def _wide():
    from refbfr_core.models import IResNet

    with torch.device("meta"):
        return IResNet()


# --- what fewer steps cost --------------------------------------------------------------------------------------------


def study(tmp_path, **options):
    pipe = tiny_pipeline(side=64)
    asked, inner = [], type(pipe).__call__
    settings = {"pipeline": pipe, "judge": embedder(6), "metrics": ["psnr"], "progress": False} | options
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(pipe), "__call__", lambda self, lq, **more: asked.append(more) or inner(self, lq, **more))
        made = diffmac_steps.run_steps_study(2, (1, 3), out=tmp_path, **settings)
    return made, asked


def test_every_arm_takes_its_number_of_steps_in_both_stages(tmp_path):
    made, asked = study(tmp_path)
    assert [more["num_inference_steps"] for more in asked] == [1, 3] and all(more["first"] is None for more in asked)
    assert made.arms == [INPUT, "1", "3"] and not len(made.failures)
    assert made.settings.preset == "toy-ldbfr-severe" and "DiffMAC" in made.settings.method
    table = diffmac_steps.steps_table(made.rows)
    assert list(table.steps) == [1, 3] and table["PSNR - most"][1] is None
    scores = made.rows.pivot(index="person", columns="arm", values="psnr")
    assert table["PSNR - most"][0].mean == pytest.approx((scores["1"] - scores["3"]).mean())
    with pytest.raises(ConfigError, match="at least two"):
        diffmac_steps.run_steps_study(2, (50, 50))


def test_stage_one_may_be_held_fixed(tmp_path):
    made, asked = study(tmp_path, first_steps=2)
    assert torch.equal(asked[0]["first"], asked[1]["first"]) and asked[0]["first"].shape == (2, 3, 64, 64)
    assert made.arms == [INPUT, "stage1", "1", "3"] and "Stage I in 2" in made.settings.method
    assert list(diffmac_steps.steps_table(made.rows).steps) == [1, 3]
    whole, _ = study(tmp_path / "whole")
    other, kept = (each.rows.set_index(["arm", "person"]).psnr for each in (whole, made))
    assert (other["3"] != kept["3"]).all()
    with pytest.raises(ConfigError, match="no Stage I"):
        study(tmp_path / "none", first_steps=2, pipeline=tiny_pipeline("noise", "input", 64))


def test_the_command_prints_and_records(tmp_path, monkeypatch, capsys):
    made, _ = study(tmp_path / "run", first_steps=2)
    asked = {}

    def finished(people, steps, severity, seed, out, **options):
        asked.update(options, people=people, steps=tuple(steps), out=out)
        return made

    monkeypatch.setattr(diffmac_steps, "run_steps_study", finished)
    words = "--people 2 --steps 1 3 --folder"
    diffmac_steps.main([*words.split(), str(tmp_path)])
    assert asked["first_steps"] is None and asked["out"] == Path("runs/diffmac-steps") and asked["steps"] == (1, 3)
    diffmac_steps.main([*words.split(), str(tmp_path), "--first-steps", "2"])
    assert asked["first_steps"] == 2 and "steps" in capsys.readouterr().out
    kept = recorded("diffmac-steps-two", tmp_path)
    assert kept.about["command"].endswith("--people 2 --steps 1 3 --severity severe --first-steps 2 --seed 0")
    assert set(kept.rows.arm) == {INPUT, "stage1", "1", "3"}
    assert "--first-steps" not in recorded("diffmac-steps", tmp_path).about["command"]
