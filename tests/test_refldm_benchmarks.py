"""The scripts refldm_speed.py and refldm_gpu.py on tiny networks: equal results, what they print and keep."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import parity_refldm as parity
import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch.utils.flop_counter import FlopCounterMode

from refbfr_core.benchmark import recorded
from refbfr_core.diffusion import refldm_schedule, to_scheduler
from refbfr_core.models import ReferenceCache, denoise
from refbfr_core.pipelines import RefLDMPipeline


def load(name: str, monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def speed(monkeypatch):
    return load("refldm_speed", monkeypatch)


@pytest.fixture
def gpu(monkeypatch):
    return load("refldm_gpu", monkeypatch)


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def tiny_pipeline() -> RefLDMPipeline:
    vq = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    return RefLDMPipeline(vq, tiny_unet(), to_scheduler(refldm_schedule()))


def test_the_naive_way_computes_the_same(speed):
    unet, latents, sample = tiny_unet(), torch.randn(2, 3, 4, 8, 8), torch.randn(2, 8, 8, 8)
    for parameter in (p for n, p in unet.named_parameters() if "to_q" in n or "to_k" in n):
        parameter.data.mul_(3)
    with torch.no_grad():
        naive = speed.NaiveReferences(unet, latents)(sample, 300)
        assert speed.difference(denoise(unet, sample, 300, ReferenceCache.build(unet, latents)), naive) < 1e-5
        for other in (None, ReferenceCache.build(unet, latents.flip(0)), ReferenceCache.build(unet, latents[:, :2])):
            with pytest.raises(SystemExit, match="differ by"):
                speed.difference(denoise(unet, sample, 300, other), naive)
        with pytest.raises(SystemExit, match="differ by nan"):
            speed.difference(naive * torch.nan, naive)


def test_the_naive_way_and_shared_null_references_give_the_recorded_arrays(speed, shared_dir):
    folder = shared_dir / "parity" / "refldm"
    unet, io = parity.load(folder).unet, parity.arrays(folder / "unet_io.npz")
    with torch.no_grad():
        naive = speed.NaiveReferences(unet, io["refs"])(parity.inputs(io), io["t"])
        parity.close(naive, io["out_ref3"], parity.NETWORK_TOLERANCE, "naive, three references")
        null = ReferenceCache.null(unet, torch.tensor([2, 2]))
        shared = denoise(unet, parity.inputs(io), io["t"], null)
        parity.close(shared, io["out_zero_ref2"], parity.NETWORK_TOLERANCE, "two null references, shared")
        one = denoise(unet, parity.inputs(io), io["t"], ReferenceCache.null(unet, torch.tensor([1, 1])))
        assert parity.difference(one, io["out_zero_ref2"]) > 30 * parity.NETWORK_TOLERANCE


def test_work_is_timed_in_turn_and_the_first_round_does_not_count(speed, monkeypatch):
    order, clock = [], iter([0.0, 9.0, 0.0, 9.0, 0.0, 1.0, 0.0, 4.0, 0.0, 2.0, 0.0, 6.0])
    monkeypatch.setitem(speed.CLOCKS, "wall", lambda: next(clock))
    works = {"ours": lambda: order.append("ours"), "naive": lambda: order.append("naive")}
    timings = speed.interleaved(works, 2, "wall")
    assert order == ["ours", "naive"] * 3
    assert timings["ours"].seconds == (1.0, 2.0) and timings["naive"].median == 5.0
    assert timings["ours"].faster_than(timings["naive"]) == (3.5, 3.0, 4.0)


def test_speed_prints_a_table_and_keeps_it(speed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "toy_unet", tiny_unet)
    arguments = ["--size", "toy", "--references", "2", "--repeats", "1", "--record", "tried", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["refldm_speed.py", *arguments])
    speed.main()
    printed = capsys.readouterr().out
    assert "processor: " in printed and "threads: 1" in printed and "2 references, float32, clock: cpu" in printed
    assert "| whole network, guided (2 rows) | ours, null shared | " in printed and "Goal: 1.4 times" in printed
    rows = recorded("tried", tmp_path).rows.set_index(["what", "how"])
    assert len(rows) == 2 + 2 + 4 + 3 + 2
    assert (rows.difference.dropna() <= 1e-5).all() and (rows.seconds > 0).all()
    assert (rows.xs("naive", level="how").faster == 1).all()


def test_operations_of_a_run_are_counted(gpu):
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        pipe(*gpu.pictures(pipe, 1, 2), num_inference_steps=4, rows_per_call=2)
    assert gpu.flops_a_picture(pipe, 2, 4) == counter.get_total_flops() > 0
    assert gpu.flops_a_picture(pipe, 3, 4) > gpu.flops_a_picture(pipe, 2, 4)


def test_the_gpu_table_works_without_a_gpu_and_says_so(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "toy_pipeline", tiny_pipeline)
    what = ["--precisions", "fp32", "bf16", "--pictures", "1", "2", "--references", "1", "--steps", "2"]
    keep = ["--repeats", "1", "--device", "cpu", "--record", "tried", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["refldm_gpu.py", *what, *keep])
    gpu.main()
    printed = capsys.readouterr().out
    assert "No GPU is used" in printed and "toy networks, 2 steps" in printed
    assert "| bf16 | 2 | 1 | " in printed and "TFLOP/s" in printed
    kept = recorded("tried", tmp_path)
    assert kept.rows[["precision", "pictures", "steps"]].values.tolist() == [
        *(["fp32", 1, 2], ["fp32", 2, 2], ["bf16", 1, 2], ["bf16", 2, 2]),
    ]
    assert (kept.rows.seconds > 0).all() and (kept.rows.roof > 0).all() and kept.rows.peak_gib.isna().all()
    assert kept.about["settings"]["size"] == "toy" and "refldm_gpu.py" in kept.about["command"]
