"""The networks that ship: whole, described, and able to do what the workbook promises.

Each test runs as soon as the registry says that its networks ship, and fails from then on if they are missing. The
numbers are deterministic; the limits leave room for another machine's rounding only. The full measurement, on 128
people, is `python -m refbfr_core.benchmark.references`.
"""

import pytest
import torch

from refbfr_core import load_pipeline
from refbfr_core.benchmark import run_embedder_study, run_first_stage_study, run_reference_study
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.images import to_uint8
from refbfr_core.weights import NETWORKS, load_network, shipped_root, verify_network
from refbfr_core.weights.card import render_card
from refbfr_core.weights.store import MAX_FILE_BYTES

SHIPPED = [name for name, entry in NETWORKS.items() if entry.shipped]


def needs(*names):
    """Skips, visibly, as long as the registry does not list these networks as shipped."""
    missing = [name for name in names if name not in SHIPPED]
    return pytest.mark.skipif(bool(missing), reason=f"the registry does not ship {', '.join(missing)} yet")


RESTORER = ("refldm-vq", "refldm-unet", "judge")


def test_every_folder_of_weights_is_in_the_registry_as_shipped():
    root = shipped_root()
    found = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    assert found == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_whole_small_and_described(name):
    folder = shipped_root() / name
    record = verify_network(folder)
    assert record["name"] == name
    assert all(path.stat().st_size < MAX_FILE_BYTES for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {item["name"] for item in record["files"]} | {
        "card.json",
        "CARD.md",
    }
    assert (folder / "CARD.md").read_text(encoding="utf-8") == render_card(record)
    network = load_network(name, device="cpu")
    assert sum(parameter.numel() for parameter in network.parameters()) == record["parameters"]


@needs("judge", "guide")
def test_embedders_are_independent_and_tell_unseen_people_apart():
    guide, judge = (load_network(name, device="cpu") for name in ("guide", "judge"))
    assert guide.config.widths != judge.config.widths
    scores = run_embedder_study({"guide": guide, "judge": judge}, people=40, views=3, presets=("clean",), seed=11)
    assert (scores.auc >= 0.99).all(), scores


@needs("refldm-vq", "judge")
def test_first_stage_keeps_people_and_their_small_features():
    report = run_first_stage_study(people=16, views=1, seed=11, device="cpu")
    assert report.psnr >= 30.0, report
    assert report.identity_cosine >= 0.9, report
    assert report.survival["iris colour"] >= 0.5 and report.survival["moles"] >= 0.4, report


@pytest.fixture(scope="module")
def shipped():
    pipe = load_pipeline("refldm", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    cases = make_cases([0, 1, 2, 3], 4, preset="toy-refldm-severe", references=2, seed=11, resolution=pipe.resolution)
    return pipe, cases


def grey_levels(a, b):
    return (to_uint8(a).int() - to_uint8(b).int()).abs().max().item()


@needs(*RESTORER)
def test_alone_in_a_batch_of_four_and_in_another_order(shipped):
    pipe, cases = shipped
    settings = {"num_inference_steps": 10}
    together = pipe(cases.lq, cases.right, seed=cases.seeds, **settings).images
    assert torch.equal(together, pipe(cases.lq, cases.right, seed=cases.seeds, **settings).images)
    order = [3, 1, 0, 2]
    shuffled = pipe(cases.lq[order], cases.right[order], seed=[cases.seeds[i] for i in order], **settings).images
    assert grey_levels(shuffled, together[order]) <= 1
    for row in range(4):
        one = cases.select(row)
        alone = pipe(one.lq, one.right, seed=one.seeds, **settings).images
        assert grey_levels(alone, together[row : row + 1]) <= 1


@needs(*RESTORER)
def test_a_restoration_leaves_nothing_behind_for_the_next(shipped):
    pipe, cases = shipped
    first, second = cases.select(0), cases.select(1)
    pipe(first.lq, first.right, num_inference_steps=5)
    after = pipe(second.lq, seed=3, num_inference_steps=5).images
    fresh = load_pipeline("refldm", device="cpu")
    fresh.set_progress_bar_config(disable=True)
    assert torch.equal(after, fresh(second.lq, seed=3, num_inference_steps=5).images)


@needs(*RESTORER)
def test_the_right_references_help_and_the_wrong_ones_do_not():
    study = run_reference_study(people=12, references=4, steps=10, seed=11, device="cpu", progress=False)
    ids = study.rows.pivot(index="person", columns="arm", values="ids").mean()
    assert ids["right 4"] > ids["none"] + 0.05 and ids["right 4"] > ids["wrong"] + 0.10, study
    psnr = study.rows.pivot(index="person", columns="arm", values="psnr").mean()
    assert psnr["right 4"] > psnr["input"], study
