"""Test sets without references on disk, in miniature and drawn: what is read, what is refused, which leaks are seen."""

from __future__ import annotations

import shutil

import pytest
import torch
from drawn_datasets import draw_people, make_ffhq_ref
from PIL import Image
from typer.testing import CliRunner

from refbfr_core.benchmark.papers import published
from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, ImageFileError, UnknownNameError
from refbfr_core.faces import open_reference_dataset, validate_reference_dataset
from refbfr_core.faces.blind_check import validate_blind
from refbfr_core.faces.blind_dataset import name_seed, open_blind_dataset
from refbfr_core.faces.blind_layouts import BLIND_LAYOUTS
from refbfr_core.faces.reference_layouts import REFERENCE_LAYOUTS
from refbfr_core.faces.reference_rows import DatasetError, PictureFinder
from refbfr_core.faces.training_overlaps import TRAINING_OVERLAPS, training_overlaps
from refbfr_core.images import read_image, write_image

SIZE = 64
REAL = {"lfw-test": "lfw_cropped_faces", "wider-test": "Wider-Test", "celebchild": "Child", "webphoto": "WebPhoto-Test"}


@pytest.fixture(scope="module")
def faces():
    return draw_people(6, 1, 9, "test", SIZE)[:, 0]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, faces):
    """A miniature CelebA-Test with six pictures; never change it."""
    root = tmp_path_factory.mktemp("celeba")
    lq, _ = Degradation.preset("toy-ldbfr-severe")(faces, seed=1)
    for index, (truth, bad) in enumerate(zip(faces, lq, strict=True)):
        write_image(root / "celeba_512_validation" / f"{index:08d}.png", truth)
        write_image(root / "celeba_512_validation_lq" / f"{index:08d}.png", bad)
    return root


@pytest.fixture
def release(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "CelebA-Test")


def errors_of(report):
    return {finding.kind for finding in report.findings if finding.level == "error"}


# ---- opening and reading


def test_pictures_are_paired_by_name_and_kept_as_they_are(pristine, faces):
    data = open_blind_dataset("celeba-test", pristine, resolution=SIZE)
    assert len(data) == 6 and [one.name for one in data.pictures] == [f"{index:08d}" for index in range(6)]
    item = data[4]
    assert torch.equal(item.truth, read_image(pristine / "celeba_512_validation/00000004.png"))
    assert torch.equal(item.lq, read_image(pristine / "celeba_512_validation_lq/00000004.png"))
    assert float((item.truth - faces[4:5]).abs().max()) <= 0.5 / 255 + 1e-6
    assert open_blind_dataset("celeba-test", pristine)[0].lq.shape == (1, 3, 512, 512)
    with pytest.raises(IndexError):
        data[6]


@pytest.mark.parametrize("name", REAL)
def test_sets_without_truth_are_found_in_their_folder_in_folders_and_as_the_root_itself(name, faces, tmp_path):
    for place in (tmp_path / REAL[name], tmp_path / "archive" / REAL[name] / REAL[name]):
        write_image(place / "one.jpg", faces[0])
        write_image(place / "two.png", faces[1])
    for root in (tmp_path, tmp_path / "archive", tmp_path / REAL[name]):
        data = open_blind_dataset(name, root, resolution=SIZE)
        assert [one.name for one in data.pictures] == ["one", "two"]
        assert data[1].truth is None
        assert torch.equal(data[1].lq, read_image(tmp_path / REAL[name] / "two.png"))


def test_one_set_is_never_taken_for_another(faces, tmp_path):
    write_image(tmp_path / "Wider-Test/one.png", faces[0])
    assert len(open_blind_dataset("wider-test", tmp_path, resolution=SIZE)) == 1
    for name in ("lfw-test", "celebchild", "webphoto", "hfw", "celeba-test", "celeba-test-dr2-mild"):
        with pytest.raises(DatasetError, match="incomplete"):
            open_blind_dataset(name, tmp_path)


def test_dr2_splits_are_disjoint_thirds_degraded_by_name(pristine, release):
    names, options = [], {"resolution": SIZE, "seed": 3}
    for severity in ("mild", "medium", "severe"):
        data = open_blind_dataset(f"celeba-test-dr2-{severity}", pristine, **options)
        names += [one.name for one in data.pictures]
        item = data[0]
        seed = name_seed(f"celeba-test-dr2-{severity}", item.name, 3)
        assert torch.equal(item.lq, Degradation.preset(f"ldbfr-{severity}")(item.truth, seeds=[seed])[0])
        assert not torch.equal(item.lq, open_blind_dataset(data.layout.name, pristine, resolution=SIZE)[0].lq)
    assert names == sorted(set(names)) and len(names) == 6
    shutil.rmtree(release / "celeba_512_validation_lq")  # they are not needed here
    again = open_blind_dataset("celeba-test-dr2-severe", release, **options)
    assert torch.equal(again[0].lq, item.lq)


def test_clean_pictures_may_lie_elsewhere(release, tmp_path):
    (release / "celeba_512_validation").rename(tmp_path / "clean")
    with pytest.raises(DatasetError, match="clean pictures"):
        open_blind_dataset("celeba-test", release)
    data = open_blind_dataset("celeba-test", release, images=tmp_path / "clean", resolution=SIZE)
    assert torch.equal(data[2].truth, read_image(tmp_path / "clean/00000002.png"))
    with pytest.raises(DatasetError, match="no picture"):
        open_blind_dataset("celeba-test", release, images=tmp_path / "nowhere")


# ---- what is refused


@pytest.mark.parametrize("name", BLIND_LAYOUTS)
def test_a_missing_set_says_what_from_where_under_which_licence_and_to_which_place(name, tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError) as caught:
            open_blind_dataset(name, root)
        (source,) = BLIND_LAYOUTS[name].sources
        for word in (str(root), source.page, source.licence, source.place):
            assert word in str(caught.value)
    assert ("do not publish" in str(caught.value)) == (name == "hfw")


def test_impossible_requests(pristine):
    with pytest.raises(UnknownNameError, match="Did you mean 'lfw-test'"):
        open_blind_dataset("lfw_test", pristine)
    for wrong in ({"resolution": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            open_blind_dataset("celeba-test", pristine, **wrong)


def test_one_bad_picture_fails_alone(release):
    clean, bad = release / "celeba_512_validation", release / "celeba_512_validation_lq"
    (clean / "00000000.png").unlink()
    (bad / "00000001.png").unlink()
    path = bad / "00000002.png"
    path.write_bytes(path.read_bytes()[:-300])
    (bad / "00000003.png").write_text("no picture")
    with Image.open(clean / "00000004.png") as picture:
        picture.crop((0, 0, 64, 40)).save(clean / "00000004.png")
    data = open_blind_dataset("celeba-test", release, resolution=SIZE)
    assert len(data) == 6, "a picture that is missing must fail, not vanish"
    reasons = ("clean picture of '00000000'", "low-quality picture", "truncated", "00000003.png", "64x40")
    for index, reason in enumerate(reasons):
        with pytest.raises(ImageFileError, match=reason):
            data[index]
    assert data[5].truth is not None
    report = validate_blind("celeba-test", release, pictures=True)
    assert errors_of(report) == {"missing-file", "damaged-picture", "size"}
    assert [finding.count for finding in report.of("missing-file")] == [1, 1]
    assert report.of("damaged-picture")[0].count == 3


# ---- looking a set over


def test_a_whole_set_is_usable_and_counted(pristine):
    report = validate_blind("celeba-test", pristine, pictures=True)
    assert report.ok, str(report)
    assert "6 pictures, the papers count 3,000" in report.of("count")[0].message
    assert "64 px" in str(report.of("size")[0])
    assert "test: 6 pictures" in str(report)
    assert "CelebA-HQ" in str(report.of("training-overlap")[0])


def test_counts_are_the_papers():
    table = published()
    counts = table[table.metric == "images"]
    for name, column in {
        "celeba-test": "CelebA-Test",
        "lfw-test": "LFW-Test",
        "wider-test": "WIDER-Test",
        "celebchild": "CelebChild",
        "webphoto": "WebPhoto",
        "hfw": "HFW",
    }.items():
        own = counts[(counts.dataset == column) & (counts.method == "dataset")]
        assert len(own) and set(own.value) == {BLIND_LAYOUTS[name].images}
    thirds = [layout.images for name, layout in BLIND_LAYOUTS.items() if "dr2" in name]
    assert sum(thirds) == BLIND_LAYOUTS["celeba-test"].images


def give_an_answer_away(root):
    shutil.copy(root / "celeba_512_validation/00000001.png", root / "celeba_512_validation_lq/00000001.png")
    return {"same-file"}


def give_another_answer_away(root):
    """Under another name: the low-quality picture of one is the clean picture of another."""
    shutil.copy(root / "celeba_512_validation/00000001.png", root / "celeba_512_validation_lq/00000003.png")
    return {"same-file"}


def double_a_picture(root):
    shutil.copy(root / "celeba_512_validation/00000001.png", root / "celeba_512_validation/00000002.png")
    return {"duplicate-picture"}


def lose_everything(root):
    shutil.rmtree(root / "celeba_512_validation_lq")
    (root / "celeba_512_validation_lq").mkdir()
    return {"missing-piece"}


@pytest.mark.parametrize("damage", [give_an_answer_away, give_another_answer_away, double_a_picture, lose_everything])
def test_every_damage_is_found(damage, release):
    expected = damage(release)
    report = validate_blind("celeba-test", release)
    assert errors_of(report) == expected, str(report)


def test_a_name_in_two_formats_is_reported_and_the_first_taken(release, faces):
    write_image(release / "celeba_512_validation_lq/00000000.jpg", faces[5])
    (finding,) = validate_blind("celeba-test", release).of("duplicate-name")
    assert finding.level == "warning" and finding.examples == ("00000000.jpg and 00000000.png",)
    assert open_blind_dataset("celeba-test", release).pictures[0].lq.suffix == ".png"


def test_test_pictures_among_training_pictures_are_found(pristine, tmp_path, faces):
    write_image(tmp_path / "train/00000/a.png", faces[0] * 0.5)
    clean = validate_blind("celeba-test", pristine, training=tmp_path / "train")
    assert clean.ok and "1 training photographs" in clean.of("training")[0].message
    shutil.copy(pristine / "celeba_512_validation/00000003.png", tmp_path / "train/00000/b.png")
    report = validate_blind("celeba-test", pristine, training=tmp_path / "train")
    assert report.of("leak-image")[0].examples == ("00000003.png = b.png",)
    assert errors_of(validate_blind("celeba-test", pristine, training=tmp_path / "nowhere")) == {"missing-piece"}


# ---- leaks in datasets with references that names do not show


@pytest.fixture
def ffhq(tmp_path):
    return make_ffhq_ref(tmp_path / "FFHQ-Ref", people=(2, 1, 1))


def file_of(ffhq, split, view):
    return PictureFinder(ffhq.root, ["images1024x1024"]).find(ffhq.people[split][0][view])


def test_a_target_under_another_name_among_its_references_is_found(ffhq):
    shutil.copy(file_of(ffhq, "val", 0), file_of(ffhq, "val", 1))
    report = validate_reference_dataset("ffhq-ref", ffhq.root)
    assert errors_of(report) == {"self-reference"}
    assert report.of("self-reference")[0].count == 2, "each of the two is the other's answer"


def test_a_copy_saved_as_jpeg_is_found_when_pictures_are_decoded(ffhq):
    target, reference = file_of(ffhq, "val", 0), file_of(ffhq, "val", 1)
    reference.unlink()
    with Image.open(target) as picture:
        picture.save(reference.with_suffix(".jpg"), quality=90)
    assert validate_reference_dataset("ffhq-ref", ffhq.root).ok
    report = validate_reference_dataset("ffhq-ref", ffhq.root, pictures=True)
    assert errors_of(report) == {"near-duplicate"}


def test_a_test_picture_under_another_name_in_train_is_found(ffhq):
    shutil.copy(file_of(ffhq, "test", 0), file_of(ffhq, "train", 2))
    report = validate_reference_dataset("ffhq-ref", ffhq.root)
    assert errors_of(report) == {"leak-image"}
    (leak,) = report.of("leak-image")
    assert leak.split == "train/test" and file_of(ffhq, "test", 0).name in leak.examples[0]


# ---- what was trained on what


def test_overlaps_name_known_datasets_and_say_why():
    assert set(TRAINING_OVERLAPS) <= {*BLIND_LAYOUTS, *REFERENCE_LAYOUTS}
    for overlaps in TRAINING_OVERLAPS.values():
        for overlap in overlaps:
            assert overlap.why and overlap.trained_on and overlap.source
    assert training_overlaps("ffhq-ref-severe") == TRAINING_OVERLAPS["ffhq-ref"]
    assert training_overlaps("celeba-test-dr2-mild") == TRAINING_OVERLAPS["celeba-test"]
    assert training_overlaps("lfw-test") == ()
    named = {system for overlap in TRAINING_OVERLAPS["ffhq-ref"] for system in overlap.systems}
    table = published()
    printed = set(table[table.dataset.str.startswith("FFHQ-Ref-")].method)
    assert {"CodeFormer", "VQFR", "DAEFR"} <= named & printed and "ReF-LDM" not in named


# ---- the command


def run(*arguments):
    from refbfr_core.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_lists_and_checks_every_set(pristine, release, ffhq, tmp_path):
    shown = run("datasets", "list")
    assert shown.exit_code == 0
    for layout in BLIND_LAYOUTS.values():
        assert f"({layout.name})" in shown.stdout and f"{layout.images:,} pictures" in shown.stdout
    checked = run("datasets", "check", "celeba-test", "--root", pristine)
    assert checked.exit_code == 0 and "CelebA-Test in" in checked.stdout and "usable" in checked.stdout
    give_an_answer_away(release)
    assert run("datasets", "check", "celeba-test", "--root", release).exit_code == 1
    missing = run("datasets", "check", "wider-test", "--root", tmp_path / "nowhere")
    assert missing.exit_code == 1 and "CodeFormer" in missing.stdout
    column = run("datasets", "check", "ffhq-ref-severe", "--root", ffhq.root, "--training", pristine)
    assert column.exit_code == 0 and "DAEFR" in column.stdout and "12 training photographs" in column.stdout
    leaked = run("datasets", "check", "ffhq-ref", "--root", ffhq.root, "--training", ffhq.root / "images1024x1024")
    assert leaked.exit_code == 1 and "among the training photographs" in leaked.stdout
    assert "Did you mean 'wider-test'" in run("datasets", "check", "wider_test", "--root", tmp_path).stderr
    assert run("datasets", "check", "celeba-test", "--root", pristine, "--split", "test").exit_code != 0


# ---- photographs


def test_real_low_quality_photographs(shared_dir):
    data = open_blind_dataset("webphoto", shared_dir / "faces/photos/real_lq")
    assert len(data) == 6 and {one.truth for one in data.pictures} == {None}
    assert data[0].lq.shape == (1, 3, 512, 512)
    report = validate_blind("webphoto", shared_dir / "faces/photos/real_lq", pictures=True)
    assert report.ok and not report.of("size") and not report.of("damaged-picture"), str(report)


def test_whole_photographs_are_no_aligned_faces(shared_dir):
    report = validate_blind("lfw-test", shared_dir / "faces/photos/whole")
    assert "size" in errors_of(report)


def test_aligned_photographs_have_their_face_where_the_crop_says(shared_dir):
    """What makes a picture of these sets usable: a detector finds its points where FFHQ's framing puts them."""
    pytest.importorskip("insightface")
    from refbfr_core.faces.alignment import template_points
    from refbfr_core.faces.photos import PhotoAligner

    aligner = PhotoAligner(shared_dir / "faces/models/insightface", "kit")
    data = open_blind_dataset("webphoto", shared_dir / "faces/photos/real_lq")
    found = [face for item in data for face in aligner.find(item.lq)[:1]]
    assert len(found) >= 5
    offsets = [abs(face.points - template_points(512)).max() for face in found]
    assert sorted(offsets)[len(offsets) // 2] < 40, offsets


def test_the_target_of_real_photographs_among_its_references(shared_dir, tmp_path):
    source = shared_dir / "faces/photos/identities/refldm"
    root = tmp_path / "FFHQ-Ref"
    shutil.copytree(source, root / "images1024x1024")
    for folder in ("severe_degrad", "moderate_degrad"):
        (root / "test_images" / folder).mkdir(parents=True)
        shutil.copy(source / "lq.png", root / "test_images" / folder / "target.png")
    mapping = root / "reference_mapping/test_references.csv"
    mapping.parent.mkdir()
    mapping.write_text("gt_image,ref_image\ntarget.png,\"['ref_00.png', 'ref_01.png', 'ref_02.png']\"\n")
    options = {"splits": ["test"], "pictures": True}
    report = validate_reference_dataset("ffhq-ref", root, **options)
    assert report.ok, str(report)
    item = open_reference_dataset("ffhq-ref", root, degradation="severe")[0]
    assert torch.equal(item.lq, read_image(source / "lq.png"))
    shutil.copy(source / "target.png", root / "images1024x1024/ref_02.png")
    assert errors_of(validate_reference_dataset("ffhq-ref", root, **options)) == {"self-reference"}
    (root / "images1024x1024/ref_02.png").unlink()
    with Image.open(source / "target.png") as picture:
        picture.save(root / "images1024x1024/ref_02.jpg", quality=60)
    assert errors_of(validate_reference_dataset("ffhq-ref", root, **options)) == {"near-duplicate"}
