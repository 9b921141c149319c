"""Studies on drawn people: what is compared, what survives a kill, what failures become, and what the numbers mean."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from refbfr_core.benchmark import RowStore, run_embedder_study, run_reference_study, verification_auc
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.benchmark.embedders import pair_scores
from refbfr_core.benchmark.first_stage import EDITS, feature_survival
from refbfr_core.benchmark.grid import write_picture_grid
from refbfr_core.benchmark.references import main
from refbfr_core.benchmark.report import contrast, mean_table
from refbfr_core.benchmark.rows import fingerprint
from refbfr_core.errors import CacheError, ConfigError, ImageContractError, OutputError, UnknownNameError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import read_image


class ColourJudge(nn.Module):
    """Embeds a face as the colours of its quarters: enough to tell drawn people apart in a test."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.eval()

    def embed(self, images):
        coloured = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) * self.weight
        return torch.nn.functional.normalize(coloured, dim=1)


class MeanRestorer:
    """Stands in for a pipeline: the mean of the references, or the input where there are none. Records its calls."""

    resolution = 64
    config = SimpleNamespace(num_inference_steps=2, guidance_scale=1.5)

    def __init__(self, fail_on=None, stop_at_call=None):
        self.vq, self.unet = nn.Linear(1, 1), nn.Linear(1, 1)
        with torch.no_grad():
            for parameter in (*self.vq.parameters(), *self.unet.parameters()):
                parameter.fill_(1)
        self.fail_on, self.stop_at_call, self.calls = fail_on, stop_at_call, []

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, lq, references, *, num_inference_steps, guidance_scale, seed):
        self.calls.append((lq, references, seed))
        if len(self.calls) == self.stop_at_call:
            raise KeyboardInterrupt
        if self.fail_on in seed and references is not None:
            raise RuntimeError("out of memory")
        return SimpleNamespace(images=lq if references is None else references.mean(dim=1))


def study(restorer, out=None, people=3, **keywords):
    return run_reference_study(
        people, references=2, pipeline=restorer, judge=ColourJudge(), batch=2, out=out, progress=False, **keywords
    )


@pytest.fixture(autouse=True, scope="module")
def _draw_each_case_once():
    """The studies of this file share their people; `make_cases` has a test of its own."""
    drawn = {}

    def remembered(people, total, **keywords):
        key = (tuple(people), total, *sorted(keywords.items()))
        if key not in drawn:
            drawn[key] = make_cases(people, total, **keywords)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refbfr_core.benchmark.references.make_cases", remembered)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    restorer = MeanRestorer()
    folder = tmp_path_factory.mktemp("study")
    return study(restorer, folder, grid_people=2), restorer, folder


def test_every_arm_gets_the_same_input_and_noise_and_its_own_references(finished):
    _, restorer, _ = finished
    first_batch = restorer.calls[:4]
    lq, _, seeds = first_batch[0]
    assert all(torch.equal(call[0], lq) and call[2] == seeds for call in first_batch)
    none, wrong, right_1, right_2 = (call[1] for call in first_batch)
    assert none is None and wrong.shape[1] == 2 and right_1.shape[1] == 1 and right_2.shape[1] == 2
    assert torch.equal(right_1[:, 0], right_2[:, 0])
    # Person 0 is given the references of person 1 as wrong ones, and the last person those of the first.
    assert torch.equal(wrong[0], right_2[1])
    assert torch.equal(restorer.calls[5][1][0], right_2[0])


def test_rows_means_and_differences(finished):
    result, _, _ = finished
    assert list(result.table.index) == ["input", "none", "wrong", "right 1", "right 2"]
    assert len(result.rows) == 15 and not len(result.failures)
    assert list(result.table.people) == [3] * 5
    ids = result.rows.pivot(index="person", columns="arm", values="ids")
    assert ids["right 2"].mean() > ids["wrong"].mean()
    by_name = {(each.metric, each.one, each.other): each.interval for each in result.contrasts}
    expected = (ids["right 2"] - ids["wrong"]).mean()
    assert by_name["ids", "right 2", "wrong"].mean == pytest.approx(expected)
    psnr = result.rows.pivot(index="person", columns="arm", values="psnr")
    assert by_name["psnr", "none", "input"].mean == pytest.approx(0.0)
    assert by_name["psnr", "right 2", "input"].mean == pytest.approx((psnr["right 2"] - psnr["input"]).mean())


def test_folder_holds_rows_table_and_grid(finished):
    result, _, folder = finished
    assert (folder / "table.txt").read_text() == f"{result}\n"
    assert "right 2 - wrong" in str(result)
    assert result.grid == folder / "grid.png"
    height, width = read_image(result.grid).shape[-2:]
    assert height > 6 * 120 and width > 2 * 120
    assert json.loads((folder / "settings.json").read_text())["people"] == 3


def test_a_killed_run_continues_and_ends_like_one_that_was_not(finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study(MeanRestorer(stop_at_call=6), tmp_path, grid_people=2)
    assert set(pd.read_csv(tmp_path / "rows.csv").person) == {0, 1}
    assert not list(tmp_path.glob("*.tmp*")) and not list(tmp_path.glob(".*"))
    continued = MeanRestorer()
    result = study(continued, tmp_path, grid_people=2)
    assert len(continued.calls) == 4  # the last person only
    whole = finished[0].rows.drop(columns="seconds")
    pd.testing.assert_frame_equal(result.rows.drop(columns="seconds"), whole, check_dtype=False)
    pd.testing.assert_frame_equal(result.table, finished[0].table)
    again = MeanRestorer()
    study(again, tmp_path, grid_people=2)
    assert not again.calls


def test_a_failure_becomes_a_row_and_costs_nobody_else(finished):
    result = study(MeanRestorer(fail_on=1))
    failed = result.failures
    assert set(zip(failed.person, failed.arm, strict=True)) == {(1, "wrong"), (1, "right 1"), (1, "right 2")}
    assert set(failed.reason) == {"RuntimeError: out of memory"} and failed.ids.isna().all()
    assert result.table.loc["right 2", "failed"] == 1 and result.table.loc["right 2", "people"] == 2
    assert "failed 3 times: RuntimeError: out of memory" in str(result)
    kept = result.rows[(result.rows.person != 1)].reset_index(drop=True)
    whole = finished[0].rows
    whole = whole[whole.person != 1].reset_index(drop=True)
    order = ["person", "arm"]
    pd.testing.assert_series_equal(kept.sort_values(order).ids, whole.sort_values(order).ids, check_index=False)
    assert next(each for each in result.contrasts if each.other == "wrong").interval.n == 2


def test_other_settings_or_weights_do_not_continue_a_run(finished):
    folder = finished[2]
    with pytest.raises(ConfigError, match="seed: 0 there, 5 now"):
        study(MeanRestorer(), folder, grid_people=2, seed=5)
    changed = MeanRestorer()
    with torch.no_grad():
        changed.unet.weight.add_(1e-6)
    with pytest.raises(ConfigError, match="guidance: 1.5 there, 2.0 now"):
        other_default = MeanRestorer()
        other_default.config = SimpleNamespace(num_inference_steps=2, guidance_scale=2.0)
        study(other_default, folder, grid_people=2)
    with pytest.raises(ConfigError, match="weights"):
        study(changed, folder, grid_people=2)


def test_impossible_settings_are_refused_before_any_work():
    with pytest.raises(ConfigError, match="second person"):
        study(MeanRestorer(), people=1)
    with pytest.raises(ConfigError, match="references=0"):
        run_reference_study(3, references=0, pipeline=MeanRestorer(), judge=ColourJudge())
    with pytest.raises(UnknownNameError, match="toy-refldm-severe"):
        study(MeanRestorer(), preset="toy-refldm-sever")
    with pytest.raises(ConfigError, match="second person"):
        main(["--people", "1", "--out", "nowhere"])


def test_a_case_does_not_depend_on_its_batch():
    keywords = {"preset": "toy-refldm-severe", "references": 1, "resolution": 64}
    together = make_cases([0, 1, 2], 3, **keywords)
    alone = make_cases([1], 3, **keywords)
    for name in ("truth", "lq", "right", "wrong"):
        assert torch.equal(getattr(alone, name), getattr(together, name)[1:2])
    assert alone.seeds == together.seeds[1:2] and alone.degradations == together.degradations[1:2]
    assert torch.equal(together.select(1).lq, alone.lq)


def test_row_store_damage_and_bad_places(tmp_path):
    store = RowStore({"a": 1}, tmp_path / "run")
    store.append([{"person": 0, "arm": "none", "status": "ok", "reason": "", "ids": 0.1}])
    assert RowStore({"a": 1}, tmp_path / "run").done("person") == {0}
    (tmp_path / "run" / "rows.csv").write_text('a,b\n"1,2\n3,4,5,6\n')
    with pytest.raises(CacheError, match="rows.csv is damaged"):
        RowStore({"a": 1}, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(CacheError, match="settings.json is damaged"):
        RowStore({"a": 1}, tmp_path / "run")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        RowStore({"a": 1}, tmp_path / "file")


def test_floats_come_back_from_disk_exactly(tmp_path):
    value = 0.1 + 0.2
    RowStore({}, tmp_path).append([{"person": 0, "ids": value}])
    assert RowStore({}, tmp_path).frame().ids[0] == value


def test_fingerprint_sees_any_weight():
    torch.manual_seed(0)
    network = nn.BatchNorm1d(3)
    before = fingerprint(network)
    assert before == fingerprint(network)
    network.num_batches_tracked += 1
    assert fingerprint(network) != before


def test_contrast_pairs_only_people_with_both_scores():
    rows = pd.DataFrame(
        [
            {"person": p, "arm": arm, "status": status, "ids": value}
            for p, arm, status, value in [
                (0, "a", "ok", 1.0),
                (0, "b", "ok", 0.5),
                (1, "a", "ok", 0.8),
                (1, "b", "failed", float("nan")),
                (2, "a", "ok", 0.9),
                (2, "b", "ok", 0.5),
            ]
        ]
    )
    result = contrast(rows, "ids", "a", "b")
    assert result.interval.n == 2 and result.interval.mean == pytest.approx(0.45)
    assert contrast(rows, "ids", "a", "c").interval is None
    assert "too few" in str(contrast(rows[rows.person == 0], "ids", "a", "b"))
    table = mean_table(rows, ["a", "b"], ["ids"])
    assert table.loc["b", "failed"] == 1 and table.loc["a", "ids"].startswith("0.900 ±")


def test_auc_is_the_share_of_ordered_pairs_with_ties_half():
    same, different = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.5, 0.1])
    by_hand = np.mean([(s > d) + 0.5 * (s == d) for s in same.tolist() for d in different.tolist()])
    assert verification_auc(same, different) == pytest.approx(by_hand)
    assert verification_auc(torch.ones(2), torch.zeros(2)) == 1.0
    assert verification_auc(torch.zeros(2), torch.ones(2)) == 0.0
    with pytest.raises(ConfigError, match="0 same"):
        verification_auc(torch.ones(0), torch.ones(2))


def test_pairs_leave_out_the_same_view():
    vectors = torch.nn.functional.normalize(torch.randn(3, 2, 4), dim=-1)
    same, different = pair_scores(vectors, vectors)
    assert len(same) == 3 * 2 * 1 and len(different) == 6 * 4
    torch.testing.assert_close(same[0], vectors[0, 0] @ vectors[0, 1])
    assert same.max() < 0.999


def test_embedder_study_rows_and_errors():
    scores = run_embedder_study({"colours": ColourJudge()}, people=3, views=2, presets=("clean", "toy-refldm-severe"))
    assert list(scores.probes) == ["clean", "toy-refldm-severe"]
    clean, severe = scores.own_picture_cosine
    assert clean == pytest.approx(1.0, abs=1e-5) and severe < clean
    assert ((scores.auc >= 0) & (scores.auc <= 1)).all()
    with pytest.raises(ConfigError, match="pairs"):
        run_embedder_study({"colours": ColourJudge()}, people=1)
    with pytest.raises(UnknownNameError):
        run_embedder_study({"colours": ColourJudge()}, presets=("sever",))


def test_survival_is_one_for_copies_zero_when_gone_and_undefined_without_change():
    before, after = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.allclose(feature_survival(before, after, before, after), torch.ones(2, dtype=torch.float64))
    assert torch.equal(feature_survival(before, after, before, before), torch.zeros(2, dtype=torch.float64))
    half = feature_survival(before, after, before / 2, after / 2)
    assert torch.allclose(half, torch.full((2,), 0.5, dtype=torch.float64))
    assert feature_survival(before, before, before, after).isnan().all()


@pytest.mark.parametrize("name", EDITS)
def test_edits_change_small_parts_of_pictures_only(name):
    faces = ToyFaces(64)
    people = faces.identities(4, seed=3, split="val").replace(
        mole0_size=0.9, mole0_a=0.3, mole0_b=-0.2, freckles=0.9, skin_tone=-0.6
    )
    views = faces.views(people, 1, seed=0).replace(yaw=0.0, pitch=0.0, glasses=-1.0, lids=0.0)
    change = (faces.render(people, views).images - faces.render(EDITS[name](people), views).images).abs().amax(dim=2)
    touched = (change > 0.02).float().mean(dim=(1, 2, 3))
    assert (touched > 0).any() and (touched < 0.35).all()


def test_grid_refuses_pictures_out_of_range(tmp_path):
    with pytest.raises(ImageContractError, match="truth"):
        write_picture_grid({"truth": torch.full((1, 3, 8, 8), 2.0)}, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())
