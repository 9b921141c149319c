"""The identity study: runs found, rows kept and continued, tables beside the paper's; and the manifold of x0_hat."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from refbfr_core.benchmark import identity, identity_tables
from refbfr_core.benchmark.identity import find_runs, kept_pictures, record_study, run_identity_study
from refbfr_core.benchmark.identity_manifold import describe_clean, raw_embeddings, x0_manifold_study
from refbfr_core.benchmark.identity_tables import ablation_tables, by_person, contrasts, mean_table, seed_table
from refbfr_core.benchmark.recording import recorded
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.models import FaceEmbedder
from refbfr_core.training import recipe
from refbfr_core.training.export import export_network

ARMS = ("none", "constant", "sqrt_alpha_bar", "below_100", "below_500")
HARDWARE = {"device": "test", "processes": 1}


def export_run(folder, scale, seed):
    chosen = recipe("refldm-identity", scale=scale, seed=seed)
    torch.manual_seed(len(scale) + seed)
    unet = UNet2DModel(
        sample_size=4, in_channels=4, out_channels=2, block_out_channels=(4,), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    summary = {"steps": 3, "samples": 48, "seconds": 60, "hardware": HARDWARE, "results": {"val_none": 0.2}}
    about = {"summary": "a test", "limits": "knows nothing"}
    export_network(
        unet, chosen, "refldm-identity", summary, {"people": 1}, about, folder / f"{scale}-{seed}" / "export"
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for scale in ARMS[:3]:
        for seed in (0, 1):
            export_run(folder, scale, seed)
    (folder / "unfinished").mkdir()
    return folder


class Mixer:
    """Stands in for the pipeline: its "denoiser" is how much of the references is mixed into the input."""

    resolution = 64
    config = SimpleNamespace(num_inference_steps=3, guidance_scale=1.0)

    def __init__(self, fail_on=None):
        self.vq, self.unet, self.fail_on, self.calls = load(1.0), load(0.0), fail_on, 0

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, lq, references, *, num_inference_steps, guidance_scale, seed):
        assert (num_inference_steps, guidance_scale) == (3, 1.0)
        self.calls += 1
        if self.fail_on in seed:
            raise ConfigError("this one fails")
        share = float(self.unet.weight.detach())
        return SimpleNamespace(images=(1 - share) * lq + share * references.mean(1))


def load(share):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, share)
    return layer


def load_run(folder):
    name = folder.parent.name
    return load({"none": 0.0, "constant": 0.4, "sqrt_alpha_bar": 0.2}[name[:-2]] + 0.01 * int(name[-1]))


def study(runs, out=None, people=4, **options):
    options = {"pipeline": Mixer(), "load": load_run, "metrics": ("ids", "ids-guide", "psnr"), **options}
    return run_identity_study(runs, people, references=2, out=out, progress=False, **options)


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return study(runs, out), out


def test_runs_are_found_by_their_cards(runs, tmp_path):
    found = find_runs(runs)
    assert [(run.scale, run.seed) for run in found] == [(s, n) for s in sorted(ARMS[:3]) for n in (0, 1)]
    assert found[0].weight == recipe("refldm-identity").identity_weight
    assert (found[0].steps, found[0].samples) == (3, 48)
    with pytest.raises(ConfigError, match="refbfr train refldm-identity"):
        find_runs(tmp_path)


def test_every_run_restores_everybody(finished):
    result, out = finished
    assert result.metrics == ("ids", "ids-guide", "psnr")
    assert len(result.rows) == 7 * 4
    assert set(result.rows.scale) == {"shipped", *ARMS[:3]}
    assert not len(result.failures)
    # "shipped" and "none" with seed 0 mix nothing in, so they restore alike.
    same = result.rows.pivot(index="person", columns="run", values="psnr")
    assert same["shipped"].tolist() == pytest.approx(same["none-0"].tolist())
    assert kept_pictures(out, "none-0", 4).shape == (4, 3, 64, 64)
    text = str(result)
    for part in ("sqrt_alpha_bar - constant", "constant - none", "4 unseen people", "spread"):
        assert part in text


def test_a_stopped_study_goes_on(runs, finished, tmp_path):
    complete, _ = finished
    with pytest.raises(KeyboardInterrupt):
        study(runs, tmp_path, batch=1, pipeline=_Stops())
    pipeline = Mixer()
    again = study(runs, tmp_path, pipeline=pipeline)
    assert pipeline.calls < 7 * 4
    keys = ["run", "person"]
    pd.testing.assert_frame_equal(
        again.rows.drop(columns=["seconds", "reason"]).sort_values(keys, ignore_index=True),
        complete.rows.drop(columns=["seconds", "reason"]).sort_values(keys, ignore_index=True),
        rtol=1e-4,
    )
    with pytest.raises(ConfigError, match="weights"):
        study(runs, tmp_path, load=lambda folder: load(0.9))


class _Stops(Mixer):
    def __call__(self, *args, **options):
        if self.calls > 9:
            raise KeyboardInterrupt
        return super().__call__(*args, **options)


def test_a_failure_is_a_row_and_is_not_recorded(runs, tmp_path):
    result = study(runs, people=3, pipeline=Mixer(fail_on=1))
    assert result.failures.person.tolist() == [1] * 7
    assert set(result.failures.reason) == {"ConfigError: this one fails"}
    assert by_person(result.rows, "psnr").index.tolist() == [0, 2]
    with pytest.raises(ConfigError, match="7 rows failed"):
        record_study(result, "a command", tmp_path)


def test_the_record_keeps_what_made_it(finished, tmp_path):
    result, _ = finished
    record_study(result, "refbfr evaluate identity", tmp_path)
    kept = recorded(identity_tables.RECORDING, tmp_path)
    assert len(kept.rows) == len(result.rows)
    assert {run["scale"] for run in kept.about["settings"]["runs"]} == set(ARMS[:3])


# --- tables on invented rows with known means -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    draws, lines = np.random.default_rng(0), []
    hard = draws.normal(0, 0.1, 20)
    for place, scale in enumerate(ARMS):
        for seed in range(3):
            for person in range(20):
                ids = 0.5 + 0.02 * place + 0.001 * (seed - 1) + hard[person]
                lines.append({"run": f"{scale}-{seed}", "scale": scale, "seed": seed, "person": person, "status": "ok"})
                lines[-1] |= {"ids": ids, "psnr": 20 + hard[person], "seconds": 0.1}
    return pd.DataFrame(lines)


def test_differences_are_paired_by_person_with_seeds_averaged(rows):
    found = {(each.metric, each.one, each.other): each.interval for each in contrasts(rows)}
    assert len(found) == 2 * 5
    gain = found["ids", "constant", "none"]
    # How hard a person is cancels, so the interval is far narrower than the spread over people.
    assert (gain.mean, gain.n) == (pytest.approx(0.02), 20)
    assert gain.high - gain.low < 1e-9
    assert found["ids", "sqrt_alpha_bar", "constant"].mean == pytest.approx(0.02)
    assert found["psnr", "below_500", "none"].mean == pytest.approx(0)


def test_spread_over_seeds(rows):
    table = seed_table(rows)
    assert table.loc[("none", "ids"), "spread"] == pytest.approx(0.001)
    assert table.loc[("none", "psnr"), "spread"] == pytest.approx(0, abs=1e-9)
    assert mean_table(rows).seeds.tolist() == [3] * 5


def test_ablation_tables_beside_the_paper(rows):
    loss, scale = ablation_tables(rows)
    assert loss.scale.tolist() == ["none", "constant", "sqrt_alpha_bar"]
    assert loss["IDS, paper"].tolist() == [0.52, 0.69, 0.65]
    assert loss["NIQE, paper"].tolist() == [4.56, 6.56, 4.38]
    assert scale.scale.tolist() == ["sqrt_alpha_bar", "below_100", "below_500"]
    assert scale["IDS, paper"].tolist() == [0.65, 0.52, 0.61]
    assert scale["NIQE, paper"].tolist() == [4.38, 4.55, 4.44]
    own = by_person(rows, "ids").mean()
    assert loss["ids, toy"].tolist() == pytest.approx([own[scale] for scale in loss.scale])
    assert bool((loss["ids, toy, low"] < loss["ids, toy"]).all())
    with pytest.raises(ConfigError, match="below_500"):
        ablation_tables(rows[rows.scale != "below_500"])
    with pytest.raises(ConfigError, match="lack the columns"):
        ablation_tables(rows.drop(columns="seed"))


# --- one-step predictions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    return FaceEmbedder(widths=(8, 8), blocks=(1, 1), embedding_dim=12).eval().requires_grad_(False)


@torch.no_grad()
def test_clean_faces_are_near_themselves(embedder):
    pictures = torch.rand(40, 3, 64, 64) * 2 - 1
    faces = describe_clean(embedder, pictures)
    raw = raw_embeddings(embedder, pictures)
    unit = torch.nn.functional.normalize(raw, dim=1)
    assert torch.allclose(unit.float(), embedder.embed(pictures), atol=1e-5)
    assert float(faces.neighbours(unit, k=1).abs().max()) < 1e-6  # every picture is its own nearest
    assert float(faces.mahalanobis(raw).square().mean()) == pytest.approx(1, abs=0.1)
    assert float(faces.mahalanobis(faces.mean[None])) == pytest.approx(0, abs=1e-6)
    far = faces.mean + 50 * (raw[:1] - faces.mean)
    assert float(faces.mahalanobis(far)) == pytest.approx(50 * float(faces.mahalanobis(raw[:1])), rel=1e-6)
    with pytest.raises(ConfigError, match="FaceEmbedder"):
        raw_embeddings(nn.Flatten(), pictures)


def test_study_of_predictions(embedder):
    result = x0_manifold_study(2, (20, 980), references=1, gallery=8, embedders={"mine": embedder})
    assert result.pictures.shape == (2, 2, 3, 128, 128)
    assert len(result.rows) == 2 * (3 + 2)
    table = result.table("mine")
    assert table.loc[("reconstruction", -1), "cosine"] == pytest.approx(1, abs=1e-6)
    assert table.loc[("prediction", 20), "cosine"] > table.loc[("prediction", 980), "cosine"]
    assert table.loc[("input", -1), "niqe-toy"] > table.loc[("truth", -1), "niqe-toy"]
    # At t = 20 hardly any noise was added: the prediction is the reconstruction again, to the eye.
    assert float((result.pictures[0] - result.truth).abs().mean()) < 0.05
    assert float((result.pictures[1] - result.truth).abs().mean()) > 0.02
    assert result.interval("mine", "cosine", 980).n == 2
    with pytest.raises(ConfigError, match="gallery"):
        x0_manifold_study(2, gallery=3)
    with pytest.raises(UnknownNameError):
        x0_manifold_study(2, split="tset")


def test_evaluate_identity_prints_the_tables(finished, monkeypatch):
    from typer.testing import CliRunner

    import refbfr_core.benchmark as benchmark
    from refbfr_core.cli.evaluate import app

    result, _ = finished
    calls = []
    monkeypatch.setattr(
        benchmark, "run_identity_study", lambda *args, **options: calls.append((args, options)) or result, raising=False
    )
    done = CliRunner().invoke(app, ["identity", "--runs", "there", "--people", "4", "--metrics", "ids,psnr"])
    assert done.exit_code == 0, done.output
    assert "constant - none" in done.stdout
    ((args, options),) = calls
    assert (str(args[0]), args[1], options["metrics"], options["split"]) == ("there", 4, ["ids", "psnr"], "test")


def test_settings_that_cannot_be(runs):
    with pytest.raises(ConfigError, match="people=1"):
        study(runs, people=1)
    assert identity.GUIDE == "ids-guide"
