"""The study of DiffMAC's ablations: what every arm does, work that arms share, rows that survive a kill."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest
import tiny_diffmac as tiny
import torch

from refbfr_core.benchmark import arms as generic
from refbfr_core.benchmark import diffmac as study
from refbfr_core.benchmark.arms import INPUT
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.severities import study_rows
from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.models.bottleneck import kl_exact
from refbfr_core.models.moments import encode_moments

JUDGE = torch.nn.Linear(2, 2)
QUICK = ("psnr", "colour-bias")
DEPTH = {"toy-ldbfr-mild": 0.1, "toy-ldbfr-medium": 0.3, "toy-ldbfr-severe": 0.5}


@pytest.fixture(autouse=True)
def quick_cases(monkeypatch):
    """Smooth random pictures in place of drawn faces; severities mix in more of another picture."""

    def make(people, total, *, preset, references, seed, split, resolution):
        truth, other = (
            torch.cat([tiny.faces(1, start + 1000 * seed + person) for person in people]) for start in (0, 500)
        )
        right, wrong = (
            torch.cat([tiny.faces(1, start + person, references) for person in people]) for start in (50, 70)
        )
        lq = truth + DEPTH[preset] * (other - truth)
        seeds = [seed * 10**6 + person for person in people]
        return Cases(tuple(people), truth, lq, right, wrong, seeds, [None] * len(people))

    monkeypatch.setattr(generic, "make_cases", make)


@pytest.fixture(scope="module")
def methods():
    pipe = tiny.tiny_pipeline(num_inference_steps=2)
    seconds = {}
    for seed, (row, name) in enumerate(study.SECOND_STAGES.items(), 20):
        kind = name.removeprefix("no1-").split("-")[0]
        compensation = {"id": "identity", "2adain": "off"}.get(kind, kind)
        source = "input" if row.startswith("no1") else "stage-one"
        seconds[row] = tiny.tiny_second(compensation, source, row, seed)
    coarse = types.SimpleNamespace(device=torch.device("cpu"), restore=lambda images: -images)
    return study.DiffMACMethods(pipe, seconds, coarse)


@pytest.fixture
def cases():
    return generic.make_cases([0, 1], 4, preset="toy-ldbfr-severe", references=4, seed=1, split="test", resolution=32)


@pytest.fixture
def firsts(monkeypatch, methods):
    """Notes how many faces went through Stage I."""
    calls, inner = [], type(methods.pipe).stage_one

    def watched(self, lq, **options):
        calls.append(len(lq))
        return inner(self, lq, **options)

    monkeypatch.setattr(type(methods.pipe), "stage_one", watched)
    return calls


def run(methods, arms, severities=("mild", "severe"), **options):
    networks = study.DiffMACMethods(methods.pipe, {row: methods.seconds[row] for row in arms if row in methods.seconds})
    options |= {"judge": JUDGE, "metrics": QUICK, "progress": False, "batch": 2, "methods": networks}
    return study.run_diffmac_study(3, severities, arms=arms, **options)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_every_row_of_table_3_is_a_whole_restoration_and_stage_one_runs_once(methods, cases, firsts):
    arms = study.diffmac_arms(methods, study.ABLATIONS, num_inference_steps=3)
    made = {name: arm(cases) for name, arm in arms.items()}
    assert list(made) == list(study.ABLATIONS) and firsts == [2]
    first = methods.pipe.stage_one(cases.lq, seed=cases.seeds, num_inference_steps=3)
    assert torch.equal(made["stage1"].pictures, first)
    for row, second in methods.seconds.items():
        whole = methods.pipe.with_second(second)(cases.lq, seed=cases.seeds, num_inference_steps=3)
        torch.testing.assert_close(made[row].pictures, whole.images, atol=1e-5, rtol=1e-5)
    pictures = [each.pictures for each in made.values()]
    assert all((one - two).abs().max() > 1e-3 for k, one in enumerate(pictures) for two in pictures[:k])


def test_each_arm_injects_the_identity_it_names(methods, cases, firsts):
    names = [f"0.1_id+{way}" for way in study.IDENTITIES]
    arms = study.diffmac_arms(methods, ["0.1_id", *names])
    pipe = methods.pipe.with_second(methods.seconds["0.1_id"])
    one = {"ref": cases.right[:, 0], "wrong": cases.wrong[:, 0], "true": cases.truth}
    expected = {f"0.1_id+{way}": pipe.identity(pictures) for way, pictures in one.items()}
    expected["0.1_id+refs"] = pipe.identity(cases.right)
    own = arms["0.1_id"](cases)
    for name in names:
        made = arms[name](cases)
        whole = pipe(cases.lq, seed=cases.seeds, identity=expected[name])
        torch.testing.assert_close(made.pictures, whole.images, atol=1e-5, rtol=1e-5)
        # lambda depends on R only, Z on whose identity comes in.
        assert torch.equal(made.columns["share"], own.columns["share"])
        assert (made.columns["latent-error"] - own.columns["latent-error"]).abs().min() > 1e-6
        assert (made.pictures - own.pictures).abs().max() > 1e-4
    assert firsts == [2]


def test_columns_describe_the_bottleneck(methods, cases):
    columns = study.diffmac_arms(methods, ["0.01_n"])["0.01_n"](cases).columns
    pipe = methods.pipe.with_second(methods.seconds["0.01_n"])
    z = pipe.bottleneck(pipe.stage_one(cases.lq, seed=cases.seeds), seed=cases.seeds)
    expected = {
        "share": z.share.mean((1, 2, 3)),
        "share-means": z.share[:, :4].mean((1, 2, 3)),
        "share-variances": z.share[:, 4:].mean((1, 2, 3)),
        "information": kl_exact(z.share, z.normalised).mean((1, 2, 3)),
    }
    with torch.no_grad():
        truth = encode_moments(pipe.vae, cases.truth)
    scaled = pipe.vae.config.scaling_factor * (z.moments - truth)[:, :4]
    expected["latent-error"] = scaled.square().mean((1, 2, 3))
    assert set(columns) == set(expected) == set(study.COLUMNS)
    for name, values in expected.items():
        torch.testing.assert_close(columns[name], values, atol=1e-5, rtol=1e-4)


def test_bounds_know_the_truth_and_z_is_decoded(methods, cases):
    arms = study.diffmac_arms(methods, ["0.1_id", *(name for name in study.BOUNDS if name.startswith("0.1_id"))])
    own, oracle, z, z_oracle = (arms[f"0.1_id{way}"](cases) for way in ("", "+oracle", "+Z", "+Z oracle"))
    pipe = methods.pipe.with_second(methods.seconds["0.1_id"])
    first = pipe.stage_one(cases.lq, seed=cases.seeds)
    torch.testing.assert_close(z.pictures, pipe.decode(pipe.bottleneck(first).moments))
    assert torch.equal(z.columns["latent-error"], own.columns["latent-error"])
    assert torch.equal(z_oracle.columns["latent-error"], oracle.columns["latent-error"])
    assert (oracle.columns["latent-error"] < 0.98 * own.columns["latent-error"]).all()
    assert (oracle.pictures - own.pictures).abs().max() > 1e-3
    assert (z_oracle.pictures - oracle.pictures).abs().max() > 1e-3


def test_the_coarse_network_stands_beside(methods, cases):
    arms = study.diffmac_arms(methods, [study.COARSE])
    torch.testing.assert_close(arms[study.COARSE](cases), 1 - cases.lq)


def test_unknown_and_impossible_arms_are_refused(methods):
    with pytest.raises(UnknownNameError, match="0.001_id"):
        study.diffmac_arms(methods, ["0.001_ids"])
    with pytest.raises(UnknownNameError, match=r"0.01_id\+ref"):
        study.arm_names("0.01_id+oracle")
    for name, part in ((study.COARSE, "coarse"), ("0.1_n", "seconds"), ("0.01_ref+ref", "seconds")):
        with pytest.raises(ConfigError, match=f"DiffMACMethods\\({part}="):
            study.diffmac_arms(study.DiffMACMethods(methods.pipe), [name])


def test_arms_are_read_from_text():
    assert study.arm_names("ablations") == study.ABLATIONS and len(study.ABLATIONS) == 14
    assert study.arm_names("all, extension,stage1") == (*study.SETS["all"], *study.EXTENSIONS)
    assert study.arm_names("0.001_id+Z oracle,coarse") == ("0.001_id+Z oracle", "coarse")
    assert set(study.SETS["identity"]) | set(study.SETS["bounds"]) < set(study.SETS["all"])
    with pytest.raises(ConfigError, match="names no arm"):
        study.arm_names(" ,")


def test_networks_load_by_their_row(tmp_path):
    folder = tiny.tiny_networks(tmp_path, ("id-0.001", "noise-0.1", "2adain"))
    loaded = study.load_methods(["stage1", "0.1_n", "2AdaIN", "0.001_id+wrong"], root=folder)
    assert {row: second.config.label for row, second in loaded.seconds.items()} == {
        row: row for row in ("0.1_n", "2AdaIN", "0.001_id")
    }
    assert loaded.coarse is None and len(loaded.networks) == 8
    (folder / "diffmac-two-noise-0.01").symlink_to(folder / "diffmac-two-noise-0.1")
    with pytest.raises(ConfigError, match="row '0.1_n' of Table 3, not '0.01_n'"):
        study.load_methods(["0.01_n"], root=folder)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_severity_has_its_rows_from_the_same_people(methods):
    studies = run(methods, ("0.001_id", "no1_0.1_n"))
    rows = study_rows(studies)
    assert list(studies) == ["mild", "severe"] and len(rows) == 2 * 3 * 4
    assert studies["mild"].arms == [INPUT, "stage1", "0.001_id", "no1_0.1_n"]
    assert not any(len(each.failures) for each in studies.values())
    inputs = rows[rows.arm == INPUT].pivot(index="person", columns="severity", values="psnr")
    # Five times the error is 13.98 dB.
    assert (inputs.mild - inputs.severe).to_numpy() == pytest.approx(13.979, abs=1e-3)
    settings = studies["mild"].settings
    assert settings.references == 4 and "num_inference_steps 2, timestep_spacing adm" in settings.method
    shares = rows.set_index("arm").share
    assert shares[["0.001_id", "no1_0.1_n"]].between(0.01, 0.99).all() and shares[[INPUT, "stage1"]].isna().all()
    assert np.isfinite(rows[rows.arm == "stage1"]["latent-error"]).all()


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(methods, tmp_path, monkeypatch):
    arms = ("0.1_id", "0.1_id+wrong", "0.1_n")
    whole = run(methods, arms, ("severe",))["severe"].rows
    inner = type(methods.pipe).stage_one

    def dying(self, lq, **options):
        if 2 in options["seed"]:
            raise KeyboardInterrupt
        return inner(self, lq, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(methods.pipe), "stage_one", dying)
        run(methods, arms, ("severe",), out=tmp_path)
    assert len(pd.read_csv(tmp_path / "severe" / "rows.csv")) == 2 * 5
    rows = run(methods, arms, ("severe",), out=tmp_path)["severe"].rows
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), whole.drop(columns="seconds"))
    changed = study.DiffMACMethods(methods.pipe, dict.fromkeys(("0.1_id", "0.1_n"), methods.seconds["0.01_id"]))
    with pytest.raises(ConfigError, match="weights"):
        run(changed, arms, ("severe",), out=tmp_path)


def test_a_failing_person_is_a_row_with_a_reason(methods, monkeypatch):
    inner = type(methods.pipe).__call__

    def fragile(self, lq, *rest, **options):
        if 1 in options["seed"] and self.second.config.label == "0.1_id":
            raise NonFiniteError("latents hold NaN")
        return inner(self, lq, *rest, **options)

    monkeypatch.setattr(type(methods.pipe), "__call__", fragile)
    made = run(methods, ("0.1_id", "2AdaIN"), ("mild",))
    failed = made["mild"].failures
    assert list(failed.person) == [1] and list(failed.arm) == ["0.1_id"]
    assert "latents hold NaN" in failed.reason.iloc[0] and failed[["psnr", "share"]].isna().all(axis=None)
    with pytest.raises(ConfigError, match="lacks medium, severe"):
        study.record_study(made, "command")
