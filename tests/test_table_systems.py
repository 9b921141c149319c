"""Systems of the papers' tables, and what restores their lines: pipelines, other people's files, folders of results."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from refbfr_core import benchmark, pipelines
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.benchmark.tables import Arm, build_restorer, folder_restorer, toy_arms
from refbfr_core.benchmark.tables.restorers import MOST_REFERENCES, Restorer, UnchangedPictureWarning, digest_of
from refbfr_core.benchmark.tables.systems import (
    ALIASES,
    COARSE,
    FOLDER,
    REFERENCES,
    SYSTEMS,
    parse_arm,
    system_entry,
    where_it_runs,
)
from refbfr_core.benchmark.tables.variants import NOT_SYSTEMS, VARIANTS, kind_of
from refbfr_core.errors import ConfigError, ImageContractError, ImageFileError, UnknownNameError, WeightsError
from refbfr_core.images import to_uint8, write_image
from refbfr_core.pipelines.coarse_files import FileRestorer, spandrel_restorer
from refbfr_core.weights import ASSETS
from refbfr_core.weights.published_files import file_digest

FEW = {"num_inference_steps": 2}
RESTORING = ("ReF-LDM", "LDM", "PDGrad", "PGDiff", "DifFace", "LD-BFR", "DiffMAC")


@pytest.fixture(scope="module")
def cases():
    return make_cases([0, 1], 4, preset="toy-ldbfr-medium", references=2, seed=5, split="val")


@pytest.fixture(scope="module")
def restorers():
    """Restorers that take few steps; PDGrad and DifFace begin part-way and need some more to have any."""
    steps = {"PDGrad": 5, "DifFace": 5}
    return {name: build_restorer(name, device="cpu", num_inference_steps=steps.get(name, 2)) for name in RESTORING}


# ---- which there are


def test_every_line_of_every_table_is_a_system_a_variant_or_declared_to_be_none():
    methods = set(benchmark.published(missing=True).method)
    kinds = {method: kind_of(method) for method in methods}
    declared = [*SYSTEMS, *VARIANTS, *NOT_SYSTEMS]
    assert len(declared) == len(set(declared)), "nothing is two things"
    assert set(NOT_SYSTEMS) | set(VARIANTS) <= methods, "nothing is declared that no table has"
    named = {method for method, kind in kinds.items() if kind == "system"}
    # As methods_map.md counts them, and the degraded input.
    assert named == {
        "CodeFormer", "VQFR", "DAEFR", "LDM", "DMDNet", "ASFFNet", "PGDiff", "RestoreFormer++", "DifFace", "PMRF",
        "DFDNet", "GPEN", "GFPGAN", "DR2+SPAR", "FeMaSR", "DiffBIR", "ReF-LDM", "PDGrad", "LD-BFR", "DiffMAC", "Input",
    }  # fmt: skip
    assert set(SYSTEMS) - named == {COARSE, "RestoreFormer"}
    with pytest.raises(UnknownNameError, match="CodeFormer"):
        kind_of("Codeformer")
    assert kind_of("ASSFNet") == "system" and system_entry("ASSFNet").name == ALIASES["ASSFNet"]


def test_every_system_says_how_it_comes_into_a_table():
    for name, entry in SYSTEMS.items():
        assert entry.name == name and entry.what and entry.licence
        assert entry.page.startswith("https://") or name in ("Input", COARSE)
        assert set(entry.assets) <= set(ASSETS), name
        assert (entry.run == FOLDER) == (not entry.profiles)
        if entry.run == FOLDER:
            assert entry.reason and entry.assets, name
        elif "paper" not in entry.profiles:
            assert entry.reason, name
        if entry.run == "file":
            assert entry.assets[0] in ASSETS and not entry.pipeline
        if entry.pipeline:
            assert entry.pipeline in pipelines.PIPELINES
    rows = {row["system"]: row for row in where_it_runs()}
    assert set(rows) == set(SYSTEMS)
    assert rows["VQFR"]["here"] == "scored from a folder" and rows["CodeFormer"]["here"].startswith("runs from its")
    assert rows["PDGrad"]["here"] == "runs (toy, paper)"


def test_arms():
    assert [str(arm) for arm in toy_arms()] == [
        "Input", COARSE, "ReF-LDM, right", "ReF-LDM, wrong", "LDM", "PDGrad, none", "PDGrad, right", "PDGrad, wrong",
        "PGDiff, none", "PGDiff, right", "PGDiff, wrong", "DifFace", "LD-BFR", "DiffMAC, none", "DiffMAC, right",
        "DiffMAC, wrong",
    ]  # fmt: skip
    for entry in SYSTEMS.values():
        assert all(parse_arm(str(arm)) == arm for arm in entry.arms)
    assert parse_arm("A4 (d_vgg only), right") == Arm("A4 (d_vgg only)", "right")
    assert parse_arm("mine, version 2") == Arm("mine, version 2")
    with pytest.raises(ConfigError, match="takes no references"):
        Arm("CodeFormer", "right")
    with pytest.raises(ConfigError, match="cannot do without"):
        Arm("ASFFNet")
    with pytest.raises(UnknownNameError, match="right"):
        Arm("ReF-LDM", "rigth")
    with pytest.raises(ConfigError, match="name of a system"):
        Arm(" ")


# ---- pipelines


@pytest.mark.parametrize("name", RESTORING)
def test_pictures_depend_on_the_pictures_references_and_seeds_only(name, cases, restorers):
    restorer = restorers[name]
    right = cases.right if restorer.references == "takes" else None
    both = restorer(cases.lq, right, cases.seeds, ["a", "b"])
    assert both.shape == cases.lq.shape and float(both.min()) >= 0 and float(both.max()) <= 1
    again = restorer(cases.lq, right, cases.seeds, ["c", "d"])
    assert torch.equal(both, again), "names decide nothing"
    alone = restorer(cases.lq[1:], None if right is None else right[1:], cases.seeds[1:], ["b"])
    assert torch.equal(alone, both[1:]), "whoever else is in the batch"
    other = restorer(cases.lq, right, [seed + 1 for seed in cases.seeds], ["a", "b"])
    assert float((other - both).abs().mean()) > 1e-4
    if right is not None:
        wrong, nobody = (restorer(cases.lq, given, cases.seeds, ["a", "b"]) for given in (cases.wrong, None))
        assert not torch.equal(wrong, both) and not torch.equal(nobody, both)
        if MOST_REFERENCES[SYSTEMS[name].pipeline] == 1:
            assert torch.equal(restorer(cases.lq, right[:, :1], cases.seeds, ["a", "b"]), both)


def test_settings_and_digests_tell_restorers_apart(restorers):
    digests = {name: restorer.digest for name, restorer in restorers.items()}
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests.values())
    assert digests["LDM"] == digests["ReF-LDM"], "the same network, called without references"
    assert len(set(digests.values())) == len(digests) - 1
    for restorer in restorers.values():
        assert restorer.settings["num_inference_steps"] in (2, 5) and restorer.settings["profile"] == "toy"
        json.dumps(restorer.settings, allow_nan=False)
        restorer.settings["profile"] = "changed"
        assert restorer.settings["profile"] == "toy", "a copy"
    assert restorers["ReF-LDM"].settings["most references"] == 5
    assert "most references" not in restorers["LDM"].settings
    pgdiff = build_restorer("PGDiff", device="cpu")
    assert pgdiff.settings["num_inference_steps"] == 25 != pipelines.PIPELINES["pgdiff"].profiles["toy"][
        "num_inference_steps"
    ]
    one = torch.nn.Linear(2, 2)
    before = digest_of({"part": one})
    with torch.no_grad():
        one.bias[0] += 1e-3
    assert digest_of({"part": one}) != before != digest_of({"other": one})


def test_ldm_on_drawn_faces_is_refldm_without_references(cases, restorers):
    made = [restorers[name](cases.lq, None, cases.seeds, ["a", "b"]) for name in ("LDM", "ReF-LDM")]
    assert torch.equal(*made)


def test_input_and_coarse_network(cases):
    same = build_restorer("Input")(cases.lq, None, cases.seeds, ["a", "b"])
    assert torch.equal(same, cases.lq) and same is not cases.lq
    coarse = build_restorer(COARSE, device="cpu")
    made = coarse(cases.lq, None, cases.seeds, ["a", "b"])
    assert torch.equal(coarse(cases.lq[1:], None, [9], ["b"]), made[1:])
    error, before = (float((each - cases.truth).square().mean()) for each in (made, cases.lq))
    assert error < before


def test_variants_are_the_methods_with_other_settings(cases, restorers):
    # Somebody else's references: the gradients disagree already in these few steps.
    given = (cases.lq[:1], cases.wrong[:1], cases.seeds[:1], ["a"])
    full = build_restorer("PDGrad", device="cpu", num_inference_steps=8)(*given)
    for name in ("A1", "A3 (d_arc only)", "A6 (y_r only)"):
        variant = build_restorer(name, device="cpu", num_inference_steps=8)
        assert variant.name == name and variant.settings != restorers["PDGrad"].settings
        assert variant.digest == restorers["PDGrad"].digest
        assert not torch.equal(variant(*given), full), name
    first = build_restorer("stage I", device="cpu", **FEW)
    pipe = pipelines.load_pipeline("diffmac", device="cpu")
    expected = pipe.stage_one(cases.lq[:1], seed=cases.seeds[:1], **FEW)
    assert torch.equal(first(cases.lq[:1], None, cases.seeds[:1], ["a"]), expected)
    with pytest.raises(ConfigError, match="takes no references"):
        first(*given)
    own = build_restorer("0.1_n", device="cpu", **FEW)
    assert own.references == "none", "noise compensation injects nobody"
    assert own.digest != restorers["DiffMAC"].digest
    same = build_restorer("0.001_id", device="cpu", **FEW)
    assert torch.equal(same(*given), restorers["DiffMAC"](*given))


def test_the_paper_profile_samples_as_the_paper_evaluates(cases, monkeypatch):
    toy = pipelines.load_pipeline("refldm", device="cpu")
    calls = []

    class Recorder(SimpleNamespace):
        config, components = toy.config, toy.components

        def set_progress_bar_config(self, **options):
            pass

        def __call__(self, lq, references, **options):
            calls.append((None if references is None else references.shape[1], options))
            return SimpleNamespace(images=lq)

    monkeypatch.setattr(pipelines, "load_pipeline", lambda name, profile, device, root: Recorder(), raising=False)
    restorer = build_restorer("ReF-LDM", "paper", "cpu")
    many = cases.right.repeat(1, 4, 1, 1, 1)
    restorer(cases.lq, many, [3, 4], ["a", "b"])
    sampled = {**pipelines.SAMPLING["paper-evaluation"], "seed": [pipelines.SAMPLING_SEED] * 2}
    assert calls == [(5, sampled)]
    assert restorer.settings["seed"] == 2024 and restorer.settings["num_inference_steps"] == 100


def test_systems_that_do_not_run_say_what_to_do():
    with pytest.raises(WeightsError, match=r"github.com/TencentARC/VQFR.*--results VQFR=FOLDER"):
        build_restorer("VQFR", "paper")
    with pytest.raises(WeightsError, match=r"profile 'paper'.*ldm\.ckpt.*--results LDM=FOLDER"):
        build_restorer("LDM", "paper")
    with pytest.raises(WeightsError, match=r"512 px.*refbfr weights get codeformer"):
        build_restorer("CodeFormer", "toy")
    with pytest.raises(UnknownNameError, match="PDGrad"):
        build_restorer("PDgrad")
    with pytest.raises(UnknownNameError, match="profile"):
        build_restorer("PDGrad", "papers")
    with pytest.raises(ConfigError, match="no options steps"):
        build_restorer("Input", steps=3)
    with pytest.raises(ConfigError, match="no second stages"):
        build_restorer("PDGrad", second="id-0.1")


def test_weights_that_are_not_here_are_asked_for(tmp_path, monkeypatch):
    for variable in ("REFBFR_CACHE", "REFBFR_WEIGHTS", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(WeightsError, match="weights get codeformer"):
        build_restorer("CodeFormer", "paper", "cpu")
    with pytest.raises(WeightsError, match="weights get codeformer"):
        build_restorer("PDGrad", "paper", "cpu")
    with pytest.raises(WeightsError):
        build_restorer("DiffMAC", "paper", "cpu")


# ---- what a restorer refuses


def test_a_restorer_checks_what_comes_and_what_it_makes(cases):
    def made_by(run, **options):
        return Restorer("mine", run, {}, "0" * 16, **options)

    def double(lq, references, seeds, names):
        return torch.cat([lq, lq])

    def broken(lq, references, seeds, names):
        return lq * float("nan")

    def same(lq, references, seeds, names):
        return lq

    names = ["a", "b"]
    with pytest.raises(ImageContractError, match="result of mine"):
        made_by(broken)(cases.lq, None, cases.seeds, names)
    with pytest.raises(ImageContractError, match="the same shape"):
        made_by(double)(cases.lq, None, cases.seeds, names)
    with pytest.raises(ConfigError, match="1 seeds and 2 names"):
        made_by(same)(cases.lq, None, cases.seeds[:1], names)
    with pytest.raises(ConfigError, match="takes no references"):
        made_by(same)(cases.lq, cases.right, cases.seeds, names)
    with pytest.raises(ConfigError, match="cannot do without"):
        made_by(same, references="needs")(cases.lq, None, cases.seeds, names)
    with pytest.raises(ConfigError, match="JSON"):
        Restorer("mine", same, {"weights": torch.zeros(1)}, "0" * 16)
    asked = []
    lazy = Restorer("mine", same, {}, lambda: asked.append(1) or "f" * 16)
    assert not asked and lazy.digest == lazy.digest == "f" * 16 and asked == [1]


# ---- other people's files


def test_a_file_sees_its_range_and_must_hold_its_system(cases, tmp_path, monkeypatch):
    seen = []

    def fake(path, device, **options):
        run = lambda images: seen.append(images) or -images  # noqa: E731
        model = torch.nn.Linear(1, 1)
        return FileRestorer("CodeFormer", path, "ab" * 32, False, options.get("weight", 0.5), model, run)

    monkeypatch.setattr(pipelines, "spandrel_restorer", fake, raising=False)
    restorer = build_restorer("CodeFormer", "paper", "cpu", path=tmp_path / "codeformer.pth", weight=0.25)
    made = restorer(cases.lq, None, cases.seeds, ["a", "b"])
    assert float((made - (1 - cases.lq)).abs().max()) < 1e-6
    assert float((torch.cat(seen) - (2 * cases.lq - 1)).abs().max()) < 1e-6, "[-1, 1] arrives"
    assert restorer.settings["weight"] == 0.25 and restorer.digest == "ab" * 8
    with pytest.raises(WeightsError, match="holds a CodeFormer, not GFPGAN"):
        build_restorer("GFPGAN", "paper", "cpu", path=tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="GFPGAN has no options weight"):
        build_restorer("GFPGAN", "paper", "cpu", path=tmp_path / "x.pth", weight=0.25)


def test_femasr_keeps_the_size_in_either_way(cases, tmp_path):
    module = pytest.importorskip("spandrel_extra_arches.architectures.FeMaSR")
    torch.manual_seed(0)
    network = module.FeMaSR(
        in_channel=3, codebook_params=[[32, 16, 512]], LQ_stage=True, scale_factor=4, norm_type="gn", act_type="silu",
        use_quantize=True, use_residual=True, gt_resolution=256,
    ).eval()  # fmt: skip
    path = tmp_path / "femasr.pth"
    torch.save({"params": network.state_dict()}, path)
    lq = cases.lq[:1, :, 32:96, 32:96].contiguous()
    restorer = build_restorer("FeMaSR", "paper", "cpu", path=path)
    assert restorer.settings["resize"] == "before" and restorer.settings["sha256"] == file_digest(path)
    with torch.no_grad():
        expected = network(torch.nn.functional.avg_pool2d(lq, 4)).clamp(0, 1)
    made = restorer(lq, None, [0], ["a"])
    assert made.shape == lq.shape and float((made - expected).abs().max()) < 1e-4
    small = lq[:, :, :16, :16].contiguous()
    after = build_restorer("FeMaSR", "paper", "cpu", path=path, resize="after")(small, None, [0], ["a"])
    with torch.no_grad():
        expected = torch.nn.functional.avg_pool2d(network(small).clamp(0, 1), 4)
    assert float((after - expected).abs().max()) < 1e-4
    with pytest.raises(ConfigError, match="enlarges 4 times.*resize='before'"):
        spandrel_restorer(path, "cpu")
    with pytest.raises(UnknownNameError, match="after"):
        spandrel_restorer(path, "cpu", resize="behind")
    with pytest.raises(ImageContractError, match="multiples of 4"):
        restorer(cases.lq[:1, :, :62, :62].contiguous(), None, [0], ["a"])


# ---- folders of results


@pytest.fixture
def results(cases, tmp_path):
    folder = tmp_path / "results"
    write_image(folder / "a.png", cases.truth[0])
    write_image(folder / "b.JPG", cases.truth[1])
    return folder


def restored(restorer, cases, *names):
    rows = slice(0, len(names))
    return restorer(cases.lq[rows], None, cases.seeds[rows], names)


def test_a_folder_gives_its_pictures_under_the_items_names(cases, results):
    restorer = folder_restorer("DiffBIR", results)
    made = restored(restorer, cases, "a", "b")
    assert torch.equal(to_uint8(made[:1]), to_uint8(cases.truth[:1]))
    assert float((made[1] - cases.truth[1]).abs().mean()) < 0.02
    assert torch.equal(restorer(cases.lq[:1], cases.right[:1], [0], ["a"]), made[:1]), "references are not looked at"
    for name in ("c", "A"):
        with pytest.raises(ImageFileError, match=f"no picture {name} "):
            restored(restorer, cases, name)
    (results / "b.JPG").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(ImageFileError, match="b.JPG"):
        restored(restorer, cases, "b")
    write_image(results / "a.webp", cases.truth[0])
    with pytest.raises(ImageFileError, match=r"a\.png.*a\.webp.*leave one"):
        restored(folder_restorer("DiffBIR", results), cases, "a")


def test_pictures_of_a_dataset_of_the_same_folder_come_first(cases, results):
    write_image(results / "lfw-test" / "a.png", cases.truth[1])
    restorer = folder_restorer("VQFR", results)
    assert torch.equal(to_uint8(restored(restorer, cases, "lfw-test/a")), to_uint8(cases.truth[1:]))
    assert torch.equal(restored(restorer, cases, "wider-test/a"), restored(restorer, cases, "a"))
    numbered = folder_restorer("GFPGAN", results, pattern="{}_00")
    with pytest.raises(ImageFileError, match="no picture a_00"):
        restored(numbered, cases, "a")
    write_image(results / "a_00.png", cases.truth[1])
    assert restored(folder_restorer("GFPGAN", results, pattern="{}_00"), cases, "a").shape == (1, 3, 128, 128)


def test_results_of_another_size_or_equal_to_their_input_are_no_results(cases, results):
    write_image(results / "small.png", cases.truth[0, :, :64, :64])
    write_image(results / "kept.png", cases.lq[0])
    restorer = folder_restorer("CodeFormer", results)
    with pytest.raises(ImageContractError, match="64×64, its input 128×128"):
        restored(restorer, cases, "small")
    with pytest.raises(ImageContractError, match="equals its input"):
        restored(restorer, cases, "kept")
    with pytest.warns(UnchangedPictureWarning, match="equals its input"):
        warned = restored(folder_restorer("CodeFormer", results, unchanged="warn"), cases, "kept")
    accepted = restored(folder_restorer("CodeFormer", results, unchanged="accept"), cases, "kept")
    assert torch.equal(warned, accepted) and torch.equal(to_uint8(accepted), to_uint8(cases.lq[:1]))


def test_the_digest_of_a_folder_covers_names_and_contents(cases, results, tmp_path):
    first = folder_restorer("VQFR", results).digest
    shutil.copytree(results, tmp_path / "copy" / "results")
    assert folder_restorer("VQFR", tmp_path / "copy" / "results").digest == first
    (results / "a.png").rename(results / "c.png")
    renamed = folder_restorer("VQFR", results).digest
    write_image(results / "c.png", cases.truth[0] * 0.99)
    assert len({first, renamed, folder_restorer("VQFR", results).digest}) == 3
    (results / "notes.txt").write_text("not a picture")
    assert folder_restorer("VQFR", results).digest == folder_restorer("VQFR", results).digest


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ImageFileError, match="no folder"):
        folder_restorer("VQFR", tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ImageFileError, match="holds no picture"):
        folder_restorer("VQFR", tmp_path)
    with pytest.raises(UnknownNameError, match="accept"):
        folder_restorer("VQFR", tmp_path, unchanged="keep")
    with pytest.raises(ConfigError, match="pattern"):
        folder_restorer("VQFR", tmp_path, pattern="x")
    assert set(REFERENCES) == {"right", "wrong", "none"}
