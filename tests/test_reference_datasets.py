"""FFHQ-Ref and CelebA-Test-Ref on disk, in miniature and drawn: what is read, what is refused, which leaks are seen."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_datasets import change_rows, make_celeba_test_ref, make_ffhq_ref
from PIL import Image
from typer.testing import CliRunner

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ImageFileError, UnknownNameError
from refbfr_core.faces import REFERENCE_LAYOUTS, open_reference_dataset, validate_reference_dataset
from refbfr_core.faces.reference_dataset import first_references, training_references
from refbfr_core.faces.reference_rows import DatasetError, PictureFinder, parse_names, read_mapping
from refbfr_core.images import check_images, read_image


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A whole miniature FFHQ-Ref; never change it."""
    return make_ffhq_ref(tmp_path_factory.mktemp("ffhq") / "FFHQ-Ref")


@pytest.fixture
def release(pristine, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(pristine.root, tmp_path / "FFHQ-Ref")
    return type(pristine)(tmp_path / "FFHQ-Ref", pristine.people)


@pytest.fixture(scope="module")
def celeba(tmp_path_factory):
    return make_celeba_test_ref(tmp_path_factory.mktemp("celeba") / "CelebA-Test-Ref")


# ---- opening and reading


def test_items_keep_the_image_contract_and_the_order_of_the_list(pristine):
    data = open_reference_dataset("ffhq-ref", pristine.root, "test", degradation="severe", resolution=64)
    assert len(data) == 6
    item = data[1]
    first, second, third = pristine.people["test"][0]
    assert (item.target, item.reference_names) == (second, (first, third))
    for images, shape in (
        (item.truth, (1, 3, 64, 64)),
        (item.lq, (1, 3, 64, 64)),
        (item.references[0], (2, 3, 64, 64)),
    ):
        assert tuple(check_images(images).shape) == shape
    finder = PictureFinder(pristine.root, ["images1024x1024"])
    assert torch.equal(item.truth, read_image(finder.find(second)))
    assert torch.equal(item.references[:, 1], read_image(finder.find(third)))
    assert torch.equal(item.lq, read_image(pristine.root / "test_images/severe_degrad" / second))
    assert not torch.equal(item.lq, data_moderate(pristine)[1].lq)
    assert [each.target for each in data] == [name for own in pristine.people["test"] for name in own]


def data_moderate(release):
    return open_reference_dataset("ffhq-ref", release.root, "test", degradation="moderate", resolution=64)


def test_pictures_of_another_size_are_resized_as_pillow_does(pristine):
    data = open_reference_dataset("ffhq-ref", pristine.root, "val", resolution=48)
    path = PictureFinder(pristine.root, ["images1024x1024"]).find(data.rows[0].target)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB").resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal((data[0].truth[0].permute(1, 2, 0).numpy() * 255).round(), expected)
    assert data[0].lq is None
    assert open_reference_dataset("ffhq-ref", pristine.root, "val").resolution == 512


def test_a_preset_ruins_the_target_reproducibly(pristine):
    options = {"degradation": "toy-refldm-severe", "resolution": 64}
    data = open_reference_dataset("ffhq-ref", pristine.root, "train", **options, seed=3)
    once = data[2].lq
    assert torch.equal(once, data[2].lq)
    assert not torch.equal(once, data[2].truth)
    assert not torch.equal(once, open_reference_dataset("ffhq-ref", pristine.root, "train", **options, seed=4)[2].lq)


def test_references_in_training_and_when_restoring():
    names = ("a", "b", "c")
    draws = np.random.default_rng(0)
    assert first_references("abcdefg", 5) == tuple("abcde")
    assert first_references(names, 5) == names
    seen = set()
    for _ in range(40):
        chosen = training_references(names, 5, draws)
        assert len(chosen) == 5 and set(chosen) == set(names)
        assert chosen[3:] == chosen[:2], "the shuffled list is repeated as it is, then cut"
        seen.add(chosen)
    assert len(seen) == 6, "every order occurs"
    assert len(training_references(tuple("abcdefgh"), 5, draws)) == 5
    assert len(set(training_references(tuple("abcdefgh"), 5, draws))) == 5


def test_a_batch_pads_and_masks_people_with_fewer_references(release):
    change_rows(release.mapping("test"), lambda rows: rows[0].update(ref_image=str([release.people["test"][0][1]])))
    data = open_reference_dataset("ffhq-ref", release.root, "test", degradation="severe", resolution=32)
    batch = data.batch([0, 3])
    assert tuple(batch.references.shape) == (2, 2, 3, 32, 32)
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.lq[1:], data[3].lq)
    assert batch.targets == (data[0].target, data[3].target)


def test_celeba_test_ref(celeba):
    data = open_reference_dataset("celeba-test-ref", celeba.root, degradation="release", resolution=64)
    item = data[1]
    target, *references = celeba.people["test"][1]
    assert (item.target, list(item.reference_names)) == (target, references)
    assert torch.equal(item.truth, read_image(celeba.root / "celeba_test_images/HQ" / target))
    assert torch.equal(item.lq, read_image(celeba.root / "celeba_test_images/LQ" / target))
    assert torch.equal(item.references[:, 0], read_image(celeba.root / "CelebAMask-HQ/CelebA-HQ-img" / references[0]))
    report = validate_reference_dataset("celeba-test-ref", celeba.root)
    assert report.ok, str(report)


def test_the_photographs_may_lie_elsewhere(release, tmp_path):
    (release.root / "images1024x1024").rename(tmp_path / "photos")
    with pytest.raises(DatasetError, match=r"NVlabs/ffhq-dataset .*CC BY-NC-SA"):
        open_reference_dataset("ffhq-ref", release.root, "train")
    data = open_reference_dataset("ffhq-ref", release.root, "train", images=tmp_path / "photos", resolution=64)
    assert not data.missing()
    assert data[-1].truth.shape[-1] == 64


def test_pictures_in_another_format_are_found(release):
    name = release.people["val"][0][0]
    path = PictureFinder(release.root, ["images1024x1024"]).find(name)
    with Image.open(path) as picture:
        picture.save(path.with_suffix(".webp"), lossless=True)
    expected = open_reference_dataset("ffhq-ref", release.root, "val", resolution=64)[0].truth
    path.unlink()
    assert torch.equal(open_reference_dataset("ffhq-ref", release.root, "val", resolution=64)[0].truth, expected)


def test_a_dataset_can_be_sent_to_a_worker_process(pristine):
    data = open_reference_dataset("ffhq-ref", pristine.root, "test", degradation="severe", resolution=32)
    sent = copy.deepcopy(data)  # by the same protocol, without reading a pickle
    assert sent.digest == data.digest and torch.equal(sent[1].lq, data[1].lq)


# ---- what is refused


@pytest.mark.parametrize(
    "text", ["['a.png', 'b.png'", "a.png", "{'a': 1}", "[1, 2]", "[]x", "__import__('os')", "['']"]
)
def test_texts_that_are_no_list_of_names(text):
    with pytest.raises(DatasetError):
        parse_names(text)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png"])
def test_names_stay_inside_the_dataset(name):
    with pytest.raises(DatasetError, match="inside the dataset"):
        parse_names(repr([name]))


def test_an_unreadable_row_is_named_with_its_line(release):
    change_rows(release.mapping("train"), lambda rows: rows[4].update(ref_image="['00001.png'"))
    with pytest.raises(DatasetError, match=r"line 6: \"\['00001.png'\" is not the text of a list"):
        open_reference_dataset("ffhq-ref", release.root, "train")


def test_optional_columns(release):
    change_rows(release.mapping("train"), lambda rows: [row.update(weight="1.5") for row in rows])
    assert set(open_reference_dataset("ffhq-ref", release.root, "train").weights) == {1.5}
    for wrong in ("heavy", "-1", "nan"):
        change_rows(release.mapping("train"), lambda rows, w=wrong: rows[0].update(weight=w))
        assert "weight" in read_mapping(release.mapping("train"))[1][0].reason


def test_missing_pieces_say_where_to_get_them(release, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'ffhq-ref'"):
        open_reference_dataset("ffhq_ref", release.root)
    with pytest.raises(UnknownNameError, match="train"):
        open_reference_dataset("ffhq-ref", release.root, "trian")
    with pytest.raises(UnknownNameError, match="severe"):
        open_reference_dataset("ffhq-ref", release.root, "test", degradation="sever")
    with pytest.raises(DatasetError, match="no folder"):
        open_reference_dataset("ffhq-ref", tmp_path / "nowhere")
    shutil.rmtree(release.root / "test_images/severe_degrad")
    with pytest.raises(DatasetError, match="ref-ldm/releases"):
        open_reference_dataset("ffhq-ref", release.root, "test", degradation="severe")
    release.mapping("test").unlink()
    with pytest.raises(DatasetError, match="test_references.csv is missing"):
        open_reference_dataset("ffhq-ref", release.root, "test")


def test_missing_truncated_and_oblong_pictures_are_named(release):
    first, second, third = (PictureFinder(release.root, ["images1024x1024"]).find(n) for n in release.people["val"][0])
    data = open_reference_dataset("ffhq-ref", release.root, "val", resolution=64)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-400])
    with Image.open(third) as picture:
        picture.crop((0, 0, 64, 50)).save(third)
    with pytest.raises(ImageFileError, match=f"target {first.name!r} .*line 2.* datasets check"):
        data[0]
    with pytest.raises(ImageFileError, match=f"{second.name} is truncated"):
        data[1]
    with pytest.raises(ImageFileError, match="64x50"):
        data[2]
    assert data.missing() == [first.name]


# ---- looking a dataset over


def test_a_whole_dataset_is_usable_and_its_size_is_compared_with_the_paper(pristine):
    report = validate_reference_dataset("ffhq-ref", pristine.root, pictures=True)
    assert report.ok, str(report)
    assert [(s.name, s.rows, s.groups) for s in report.splits] == [("train", 12, 4), ("val", 6, 2), ("test", 6, 2)]
    assert "18,816" in report.of("count")[0].message
    assert {finding.kind for finding in report.findings} == {"count", "identities"}


def test_the_numbers_of_the_paper_add_up():
    splits = REFERENCE_LAYOUTS["ffhq-ref"].splits.values()
    assert sum(split.rows for split in splits) == 20_405
    assert sum(split.identities for split in splits) == 6_523


def swap_a_test_picture_into_train(release):
    test = release.people["test"][0][0]
    change_rows(release.mapping("train"), lambda rows: rows[0].update(ref_image=str([test])))


def repeat_a_train_row_in_val(release):
    with release.mapping("train").open() as stream:
        row = stream.readlines()[1]
    with release.mapping("val").open("a") as stream:
        stream.write(row)


def list_an_image_twice(release):
    with (release.root / "id_based_ffhq_split/val_image.txt").open("a") as stream:
        stream.write(release.people["train"][0][0] + "\n")


def refer_to_oneself(release):
    name = release.people["val"][0][0]
    change_rows(release.mapping("val"), lambda rows: rows[0].update(ref_image=str([name])))


def repeat_a_row(release):
    change_rows(release.mapping("val"), lambda rows: rows.append(dict(rows[0])))


def break_a_list(release):
    change_rows(release.mapping("val"), lambda rows: rows[1].update(ref_image="[oops"))


def lose_a_picture(release):
    PictureFinder(release.root, ["images1024x1024"]).find(release.people["train"][1][1]).unlink()


def lose_a_degraded_picture(release):
    (release.root / "test_images/moderate_degrad" / release.people["test"][0][0]).unlink()


def lose_a_mapping(release):
    release.mapping("val").unlink()


def cut_a_picture(release):
    path = release.picture(release.people["train"][0][0])
    path.write_bytes(path.read_bytes()[:500])


DAMAGES = {
    swap_a_test_picture_into_train: {"leak-image", "leak-identity", "leak-list"},
    repeat_a_train_row_in_val: {"leak-image", "leak-identity", "leak-list"},
    list_an_image_twice: {"leak-list"},
    refer_to_oneself: {"self-reference"},
    repeat_a_row: {"duplicate-row"},
    break_a_list: {"unreadable-row"},
    lose_a_picture: {"missing-file"},
    lose_a_degraded_picture: {"missing-file"},
    lose_a_mapping: {"missing-piece"},
    cut_a_picture: {"damaged-picture"},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(damage, release):
    damage(release)
    report = validate_reference_dataset("ffhq-ref", release.root, pictures=damage is cut_a_picture)
    errors = {finding.kind for finding in report.findings if finding.level == "error"}
    assert errors == DAMAGES[damage], str(report)
    assert not report.ok


def test_a_leak_without_a_shared_target_is_found_by_its_identity_group(release):
    """Train and test both refer to a picture that is nobody's target: the same person is in both."""
    stranger = "00990.png"
    shutil.copy(PictureFinder(release.root, ["images1024x1024"]).find("00995.png"), release.picture(stranger))
    for split in ("train", "test"):
        change_rows(release.mapping(split), lambda rows: rows[0].update(ref_image=str([stranger])))
    report = validate_reference_dataset("ffhq-ref", release.root)
    (leak,) = report.of("leak-identity")
    assert (leak.split, leak.count, leak.examples) == ("train/test", 1, ("00990",))
    assert report.of("leak-image")[0].examples == ("00990",)


def test_clean_and_degraded_must_be_different_files(celeba, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(celeba.root, root)
    for file in (root / "celeba_test_images/HQ").iterdir():
        file.rename(root / "celeba_test_images" / file.name)
    shutil.rmtree(root / "celeba_test_images/HQ")
    shutil.rmtree(root / "celeba_test_images/LQ")
    report = validate_reference_dataset("celeba-test-ref", root)
    assert report.of("same-file")[0].count == 2


# ---- the command


def run(*arguments: object):
    from refbfr_core.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_lists_owners_licences_and_places():
    shown = run("datasets", "list")
    assert shown.exit_code == 0
    for word in ("ref-ldm/releases/tag/0.1.0", "ffhq-dataset", "CelebAMask-HQ", "non-commercial", "licence", "18,816"):
        assert word in shown.stdout


def test_the_command_checks(pristine, release, tmp_path: Path):
    shown = run("datasets", "check", "ffhq-ref", "--root", pristine.root)
    assert shown.exit_code == 0 and "usable" in shown.stdout
    swap_a_test_picture_into_train(release)
    shown = run("datasets", "check", "ffhq-ref", "--root", release.root, "--split", "train", "--split", "test")
    assert shown.exit_code == 1
    assert "identity groups occur in both splits" in shown.stdout
    missing = run("datasets", "check", "ffhq-ref", "--root", tmp_path / "nowhere")
    assert missing.exit_code == 1 and "releases/tag/0.1.0" in missing.stdout
    assert "Did you mean 'ffhq-ref'" in run("datasets", "check", "ffhqref", "--root", tmp_path).stderr


def test_degraded_test_pictures_are_those_of_the_generator(pristine):
    """The miniature is made as the release was: the stored pictures are the degraded targets."""
    data = open_reference_dataset("ffhq-ref", pristine.root, "test", degradation="severe", resolution=64)
    truth = torch.cat([item.truth for item in data])
    lq, _ = Degradation.preset("toy-refldm-severe")(truth, seed=5)
    assert float((torch.cat([item.lq for item in data]) - lq).abs().max()) < 12 / 255
