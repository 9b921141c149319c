"""The comparison of mechanisms: the memory meter, the costs, a study that survives a kill, and its tables."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch import nn
from typer.testing import CliRunner

from refbfr_core.benchmark import cost_ratios, measure_costs, mechanisms_beside_paper, peak_memory, recorded
from refbfr_core.benchmark import run_mechanism_study as study
from refbfr_core.benchmark.mechanisms import record_study
from refbfr_core.benchmark.mechanisms_cost import MIB, random_network, record_costs
from refbfr_core.benchmark.mechanisms_restore import load_arm, restore
from refbfr_core.benchmark.mechanisms_table import arm_name, quality_contrasts
from refbfr_core.cli.app import app
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.models.mechanisms import MECHANISMS, make_mechanism, save_mechanism

RECIPE = {"schedule": "refldm", "prediction": "v_prediction", "patch_size": 2, "steps": 1}
FAST = {"people": 2, "counts": (0, 1, 2), "steps": 1, "metrics": ("ids", "psnr"), "progress": False, "batch": 2}


class ColourJudge(nn.Module):
    """Embeds a face as the colours of its quarters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def embed(self, images):
        coloured = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) * self.weight
        return nn.functional.normalize(coloured, dim=1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A tiny first stage, a judge, and a folder with three tiny arms that restore 64 px pictures."""
    torch.manual_seed(2)
    vq = VQModel(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=1, num_vq_embeddings=8, sample_size=64,
    ).eval().requires_grad_(False)  # fmt: skip
    unet = UNet2DModel(
        sample_size=8, in_channels=8, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, norm_num_groups=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("arms")
    for name in ("none", "cachekv", "channel"):
        save_mechanism(make_mechanism(name, unet, max_references=1), folder / name, {"recipe": RECIPE})
    return {"folders": folder, "vq": vq, "judge": ColourJudge().eval()}


def test_memory_meter_sees_a_tensor_that_is_gone_again():
    """1 MiB kept, 2 MiB more for a moment, whatever was there before."""
    before = torch.ones(MIB)

    def work():
        passing = before[: MIB // 2] * 2
        passing = None  # noqa: F841
        return torch.ones(MIB // 4)

    result, peak, kept = peak_memory(work)
    assert result.numel() == MIB // 4
    assert peak == pytest.approx(2 * MIB, rel=0.01)
    assert kept == pytest.approx(MIB, rel=0.01)


def test_memory_meter_tells_a_doubled_activation():
    layer = nn.Conv2d(4, 64, 3, padding=1).requires_grad_(False)
    small, large = (peak_memory(lambda n=n: layer(torch.ones(n, 4, 64, 64)).relu()).peak for n in (2, 4))
    assert large == pytest.approx(2 * small, rel=0.02)
    assert small >= 2 * 2 * 64 * 64 * 64 * 4, "two activations at the same moment"


def test_costs_grow_as_the_mechanisms_say():
    costs = measure_costs((0, 2, 4), repeats=1, clock="cpu", device="cpu", progress=False)
    assert len(costs) == 1 + 4 * 3
    by = costs.set_index(["mechanism", "references"])
    growth = {name: by.working_mib[name, 4] - by.working_mib[name, 2] for name in MECHANISMS if name != "none"}
    assert growth["channel"] == pytest.approx(0, abs=0.01), "channels are there whether used or not"
    assert growth["spatial"] > 1 and growth["cachekv"] > 0.9 and growth["cross"] > 1
    cache = by.context_mib["cachekv", 4]
    assert cache == pytest.approx(2 * by.context_mib["cachekv", 2], rel=0.01)
    assert by.context_mib["spatial", 4] < 0.1 * cache, "spatial concatenation keeps nothing but the latents"
    assert by.step_seconds["spatial", 4] > 2 * by.step_seconds["spatial", 0]
    assert by.prepare_seconds["cachekv", 4] > by.prepare_seconds["channel", 4]
    row = by.loc["cachekv", 4]
    assert row.seconds_per_image == pytest.approx(row.prepare_seconds + 10 * row.step_seconds)
    ratios = cost_ratios(costs)
    assert ratios["memory", "none"].dropna().tolist() == [1.0] and ratios["time", "spatial"][4] > 2


def test_score_matrices_are_seen_when_they_are_held():
    options = {"mechanisms": ("none", "spatial"), "repeats": 1, "device": "cpu", "progress": False}
    fused, scores = (measure_costs((4,), attention=kind, **options).iloc[-1] for kind in ("fused", "scores"))
    matrix = (5 * 256) ** 2 * 4 / MIB  # one head of the finest layer, 4 bytes a number
    assert scores.working_mib - fused.working_mib > 0.9 * matrix
    with pytest.raises(UnknownNameError, match="fused"):
        measure_costs(attention="fussed")


def test_the_full_size_is_the_published_one():
    with torch.device("meta"):
        made = random_network("paper")
    assert sum(weight.numel() for weight in made.parameters()) == 117_759_368
    with pytest.raises(UnknownNameError, match="paper"):
        random_network("papre")
    with pytest.raises(ConfigError, match="at least one repeat"):
        measure_costs(repeats=0)
    with pytest.raises(UnknownNameError, match="wall"):
        measure_costs(clock="wal")
    with pytest.raises(UnknownNameError, match="cross"):
        measure_costs(mechanisms=("crosss",))


def test_costs_are_recorded_one_size_at_a_time(tmp_path):
    costs = measure_costs((0, 1), mechanisms=("none", "channel"), repeats=1, device="cpu", progress=False)
    record_costs(costs, "refbfr evaluate mechanism-costs", tmp_path)
    back = recorded("mechanisms-cost-toy", tmp_path)
    assert back.rows.mechanism.tolist() == ["none", "channel", "channel"]
    assert back.about["settings"]["threads"] == torch.get_num_threads()
    with pytest.raises(ConfigError, match="one size at a time"):
        record_costs(pd.concat([costs, costs.assign(size="paper")]), "c", tmp_path)


def test_study_scores_every_possible_arm_of_everybody(networks, tmp_path):
    found = study(**networks, **FAST, out=tmp_path / "out")
    arms = ["input", "none", "cachekv 0", "cachekv 1", "cachekv 2", "channel 0", "channel 1"]
    assert list(found.table.index) == arms, "channel has one slot, so two references are no arm of it"
    assert len(found.rows) == 2 * len(arms) and not len(found.failures)
    one = found.rows[found.rows.arm == "none"].set_index("person")
    # Untrained arms that add no weights are the plain network as long as there are no references.
    same = found.rows[found.rows.arm == "cachekv 0"].set_index("person")
    assert np.allclose(one.psnr, same.psnr, atol=1e-4)
    assert not np.allclose(one.psnr, found.rows[found.rows.arm == "cachekv 2"].psnr, atol=1e-4)
    assert str(found) + "\n" == (tmp_path / "out" / "table.txt").read_text(encoding="utf-8")
    record_study(found, "refbfr evaluate mechanisms", tmp_path / "recorded")
    back = recorded("mechanisms-quality", tmp_path / "recorded")
    assert [str(each) for each in quality_contrasts(back.rows)] == [str(each) for each in found.contrasts]
    assert len(back.about["arms"]["cachekv"]["weights"]) == 12


def test_interrupted_study_goes_on_and_gives_the_same_rows(networks, tmp_path, monkeypatch):
    options = {**FAST, "batch": 1}
    whole = study(**networks, **options)
    from refbfr_core.benchmark import mechanisms

    original, calls = mechanisms._run_arms, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mechanisms, "_run_arms", killed)
        with pytest.raises(KeyboardInterrupt):
            study(**networks, **options, out=tmp_path)
    kept = (tmp_path / "rows.csv").read_text(encoding="utf-8").count("\n") - 1
    assert kept == 7
    resumed = study(**networks, **options, out=tmp_path)
    scores = ["person", "arm", "status", "ids", "psnr"]
    pd.testing.assert_frame_equal(whole.rows[scores], resumed.rows[scores], atol=1e-6)
    with pytest.raises(ConfigError, match="steps: 1 there, 3 now"):
        study(**networks, **{**FAST, "steps": 3}, out=tmp_path)


def test_a_failing_case_becomes_a_row_with_its_reason(networks, monkeypatch):
    from refbfr_core.benchmark import mechanisms

    original = mechanisms.restore_encoded

    def fails(arm, encoded, count, steps, guidance, seeds):
        if arm.network.name == "cachekv" and count == 2 and 1 in seeds:
            raise RuntimeError("out of memory")
        return original(arm, encoded, count, steps, guidance, seeds)

    monkeypatch.setattr(mechanisms, "restore_encoded", fails)
    found = study(**networks, **FAST)
    assert found.failures[["person", "arm", "reason"]].values.tolist() == [
        [1, "cachekv 2", "RuntimeError: out of memory"]
    ]
    assert "failed 1 times: RuntimeError" in str(found)
    with pytest.raises(ConfigError, match="1 rows of the study failed"):
        record_study(found, "c", "nowhere")


def test_guidance_works_against_null_references(networks):
    arm = load_arm(networks["folders"] / "cachekv", "cpu")
    generator = torch.Generator().manual_seed(1)
    lq, references = (torch.rand(2, *rest, generator=generator) for rest in ((3, 64, 64), (1, 3, 64, 64)))

    def run(references, **options):
        return restore(arm, networks["vq"], lq, references, steps=2, seeds=[0, 1], **options)

    assert not torch.equal(run(references), run(references, guidance=3.0))
    assert torch.equal(run(None), run(None, guidance=3.0)), "nothing to guide with"
    assert run(references).shape == (2, 3, 64, 64)


def test_bad_settings_are_refused(networks, tmp_path):
    with pytest.raises(ConfigError, match="holds no arm"):
        study(tmp_path, **FAST)
    with pytest.raises(UnknownNameError, match="cachekv"):
        study({"cachekw": tmp_path}, **FAST)
    with pytest.raises(ConfigError, match="people=1"):
        study(**networks, **{**FAST, "people": 1})
    with pytest.raises(ConfigError, match="how it was trained"):
        load_arm(save_mechanism(load_arm(networks["folders"] / "none", "cpu").network, tmp_path, {}), "cpu")


def test_table_2_stands_beside_ours():
    rows = pd.DataFrame(
        {
            "person": [0, 1, 0, 1],
            "mechanism": ["cachekv", "cachekv", "spatial", "spatial"],
            "references": 5,
            "status": "ok",
            "ids": [0.5, 0.7, 0.4, 0.4],
        }
    )
    rows["arm"] = [arm_name(*each) for each in zip(rows.mechanism, rows.references, strict=True)]
    cost = {"mechanism": "cachekv", "references": 5, "attention": "fused", "seconds_per_image": 2.5, "peak_mib": 9.0}
    costs = pd.DataFrame([{**cost, "size": "toy"}])
    table = mechanisms_beside_paper(rows, costs)
    assert table.loc["CacheKV", ("IDS", "paper")] == 0.65
    assert table.loc["CacheKV", ("IDS", "toy, measured")] == pytest.approx(0.6)
    assert table.loc["Spatial-concatenation", ("seconds an image", "paper")] == 58.36
    assert table.loc["CacheKV", ("seconds an image", "toy, measured")] == 2.5
    assert np.isnan(table.loc["Cross-attention", ("IDS", "toy, measured")])
    full = mechanisms_beside_paper(None, costs.assign(size="paper"))
    assert full.loc["CacheKV", ("seconds an image", "full size, measured")] == 2.5
    assert json.loads(table.to_json(orient="values"))  # plain numbers throughout


def test_the_commands_print_tables(networks, tmp_path, monkeypatch):
    import refbfr_core.benchmark as benchmark

    def invoke(*arguments):
        return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])

    def small(runs, people, counts, steps, guidance, **options):
        assert (people, counts, guidance, options["preset"]) == (2, (0, 1), 1.0, "toy-refldm-severe")
        return study(runs, people, counts, steps, guidance, **options, vq=networks["vq"], judge=networks["judge"],
                     metrics=("psnr",), progress=False)  # fmt: skip

    monkeypatch.setattr(benchmark, "run_mechanism_study", small, raising=False)
    done = invoke(
        "mechanisms", "--runs", networks["folders"], "--people", 2, "--counts", 1, "--steps", 1, "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    assert "channel 1" in done.stdout and (tmp_path / "out" / "rows.csv").is_file()
    costs = measure_costs((0, 1), mechanisms=("none", "channel"), repeats=1, device="cpu", progress=False)
    monkeypatch.setattr(benchmark, "measure_costs", lambda *a, **k: costs, raising=False)
    done = invoke("mechanism-costs", "--counts", 1)
    assert done.exit_code == 0 and "seconds_per_image" in done.stdout
    assert invoke("mechanism-costs", "--counts", "one").exit_code == 1
