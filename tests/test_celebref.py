"""CelebRef-HQ on disk, in miniature and drawn: people in folders, PDGrad's pairs, their record, and what is noticed."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_datasets import make_celebref
from PIL import Image
from typer.testing import CliRunner

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, ImageFileError, OutputError, UnknownNameError
from refbfr_core.faces import open_reference_dataset, validate_reference_dataset
from refbfr_core.faces.celebref import (
    PAIRS_FILE,
    _shuffle,
    celebref_pairs,
    open_celebref,
    people_on_disk,
    read_pairs,
    verify_pairs,
    write_pairs,
)
from refbfr_core.faces.reference_rows import DatasetError
from refbfr_core.images import check_images, read_image

SIZES = (3, 2, 4)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A whole miniature CelebRef-HQ; never change it."""
    return make_celebref(tmp_path_factory.mktemp("celebref") / "CelebRef-HQ", SIZES).root


@pytest.fixture
def release(pristine, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def people(root):
    return root / "CelebHQRefForRelease"


# ---- people and pairs


def test_people_are_folders(pristine, release):
    expected = {
        "00000": ("00000/0.png", "00000/1.png", "00000/2.png"),
        "00011": ("00011/0.png", "00011/1.png"),
        "00022": tuple(f"00022/{view}.png" for view in range(4)),
    }
    assert people_on_disk(pristine) == expected
    assert people_on_disk(people(pristine)) == expected
    (release / "__MACOSX" / "00000").mkdir(parents=True)
    (people(release) / "00011" / "._0.png").write_bytes(b"resource fork")
    (people(release) / "00011" / "0.png.txt").write_text("landmarks")
    assert people_on_disk(release) == expected


def test_one_pair_a_person(pristine):
    pairs = celebref_pairs(pristine, seed=0)
    assert [pair.identity for pair in pairs] == ["00000", "00011", "00022"]
    for pair in pairs:
        assert pair.truth.startswith(pair.identity) and pair.reference.startswith(pair.identity)
        assert pair.truth != pair.reference and pair.truth_sha256 != pair.reference_sha256
    verify_pairs(pairs, pristine)


def test_the_draw_is_the_same_on_every_machine():
    """Pinned: NumPy promises the raw stream of a bit generator, and recorded results must stay repeatable."""
    assert _shuffle(8, "00005", 0) == [5, 2, 4, 1, 0, 7, 3, 6]
    assert _shuffle(8, "00005", 1) == [1, 6, 5, 7, 0, 3, 4, 2]
    assert _shuffle(8, "00022", 0) == [4, 0, 2, 1, 3, 6, 7, 5]


def test_every_ordered_pair_occurs_about_equally_often(pristine):
    seen: dict[tuple[str, str], int] = {}
    for seed in range(300):
        pair = celebref_pairs(pristine, seed)[0]
        seen[pair.truth, pair.reference] = seen.get((pair.truth, pair.reference), 0) + 1
    assert len(seen) == 6
    assert min(seen.values()) > 25 and max(seen.values()) < 80, seen


def test_a_person_s_pair_depends_on_that_person_only(pristine, release):
    before = {pair.identity: pair for pair in celebref_pairs(pristine, seed=7)}
    shutil.rmtree(people(release) / "00011")
    shutil.copy(people(release) / "00000/0.png", people(release) / "00000/3.png")
    after = {pair.identity: pair for pair in celebref_pairs(release, seed=7)}
    assert after["00022"] == before["00022"]
    assert set(after) == {"00000", "00022"}


def test_a_copy_of_the_ground_truth_is_never_its_reference(release):
    folder = people(release) / "00011"
    for name in ("2.png", "3.png", "4.png"):
        shutil.copy(folder / "0.png", folder / name)
    for seed in range(40):
        pair = celebref_pairs(release, seed)[1]
        assert "00011/1.png" in (pair.truth, pair.reference), "the only other picture is in every pair"
    shutil.copy(folder / "0.png", folder / "1.png")
    with pytest.raises(DatasetError, match=r"1 people .*two different pictures \(00011\)"):
        celebref_pairs(release)
    with pytest.raises(ConfigError, match="negative"):
        celebref_pairs(release, seed=-1)


# ---- the record


def test_the_record_comes_back_and_is_verified(pristine, tmp_path):
    pairs = celebref_pairs(pristine, seed=3)
    path = write_pairs(tmp_path / "deep" / "pairs.csv", pairs)
    assert read_pairs(path) == pairs
    assert path.read_text().splitlines()[0] == "seed,identity,truth,reference,truth_sha256,reference_sha256"
    verify_pairs(read_pairs(path), pristine)
    with pytest.raises(ConfigError, match="one draw"):
        write_pairs(path, [*pairs, *celebref_pairs(pristine, seed=4)])
    with pytest.raises(ConfigError, match="0 pairs"):
        write_pairs(path, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_pairs(tmp_path / "file" / "pairs.csv", pairs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [lines[0].replace("truth,", "gt,"), *lines[1:]], "columns"),
        (lambda lines: [*lines, lines[1]], "4 rows for 3 people"),
        (lambda lines: [lines[0], "4" + lines[1][1:], *lines[2:]], "2 seeds"),
        (lambda lines: [*lines[:2], lines[2].replace("00011/", "../", 1)], "line 3.*inside the dataset"),
        (lambda lines: [*lines[:2], lines[2][:-1]], "line 3.*64 hexadecimal"),
        (lambda lines: [*lines[:2], "3,a,a/0.png,a/0.png," + "a" * 64 + "," + "b" * 64], "line 3.*own reference"),
        (lambda lines: [*lines[:2], "x" + lines[2][1:]], "line 3.*no number"),
        (lambda lines: [*lines[:2], "3,a"], "line 3"),
        (lambda lines: lines[:1], "0 rows"),
        (lambda lines: [], "columns"),
    ],
)
def test_records_that_are_none(pristine, tmp_path, change, said):
    path = write_pairs(tmp_path / "pairs.csv", celebref_pairs(pristine, seed=3))
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(DatasetError, match=said):
        read_pairs(path)


def test_a_record_of_other_pictures_is_refused(release, tmp_path):
    pairs = celebref_pairs(release)
    with pytest.raises(DatasetError, match="missing; draw"):
        read_pairs(tmp_path / "none.csv")
    (people(release) / pairs[0].truth).unlink()
    target = people(release) / pairs[2].reference
    with Image.open(target) as picture:
        picture.rotate(90).save(target)
    with pytest.raises(DatasetError, match="1 files are missing and 1 differ"):
        verify_pairs(pairs, release)
    with pytest.raises(DatasetError, match="not those on disk"):
        open_celebref(release, pairs=pairs)


# ---- items


def test_items_are_pairs_under_the_image_contract(pristine):
    data = open_celebref(pristine, degradation="pdgrad", resolution=64, seed=2)
    pairs = celebref_pairs(pristine)
    assert len(data) == 3
    item = data[1]
    assert (item.target, item.reference_names) == (pairs[1].truth, (pairs[1].reference,))
    assert torch.equal(item.truth, read_image(people(pristine) / pairs[1].truth))
    assert torch.equal(item.references[:, 0], read_image(people(pristine) / pairs[1].reference))
    for images in (item.truth, item.lq, item.references[:, 0]):
        assert tuple(check_images(images).shape) == (1, 3, 64, 64)
    assert not torch.equal(item.lq, item.truth)
    assert torch.equal(item.lq, open_celebref(pristine, resolution=64, seed=2)[1].lq)
    assert not torch.equal(item.lq, open_celebref(pristine, resolution=64, seed=3)[1].lq)
    assert open_celebref(pristine).resolution == 512
    assert open_celebref(pristine, degradation=None, resolution=64)[0].lq is None
    batch = data.batch([0, 2])
    assert tuple(batch.references.shape) == (2, 1, 3, 64, 64) and bool(batch.mask.all())


def test_the_degradation_is_the_article_s(pristine):
    data = open_celebref(pristine, resolution=64, seed=2)
    for index in range(3):
        stream = int(np.random.SeedSequence([2, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        expected, _ = Degradation.preset("pdgrad")(data[index].truth, seeds=[stream])
        assert torch.equal(data[index].lq, expected)
    with pytest.raises(UnknownNameError, match="pdgrad"):
        open_celebref(pristine, degradation="pdgard")


def test_recorded_pairs_are_used_and_others_are_drawn(pristine, release):
    chosen = celebref_pairs(release, seed=9)
    assert [pair.truth for pair in chosen] != [pair.truth for pair in celebref_pairs(release)]
    data = open_reference_dataset("celebref-hq", release, resolution=64)
    assert [row.target for row in data.rows] == [pair.truth for pair in celebref_pairs(release)]
    write_pairs(release / PAIRS_FILE, chosen)
    data = open_reference_dataset("celebref-hq", release, resolution=64)
    assert [row.target for row in data.rows] == [pair.truth for pair in chosen]
    same = open_celebref(release, pairs=release / PAIRS_FILE, degradation=None)
    assert same.rows == data.rows
    assert open_celebref(pristine, pair_seed=9, degradation=None).rows == data.rows


def test_a_missing_picture_is_never_replaced_by_somebody_else_s(release):
    """File names repeat from person to person: 00000/1.png must not stand in for 00011/1.png."""
    data = open_celebref(release, degradation=None, resolution=64)
    gone = data.rows[1].target
    (people(release) / gone).unlink()
    shutil.copy(people(release) / "00000/0.png", people(release) / Path(gone).name)
    with pytest.raises(ImageFileError, match=f"target '{gone}' .*datasets check celebref-hq"):
        data[1]
    assert data.missing() == [gone]


def test_missing_pieces_say_where_to_get_them(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError, match=r"csxmli2016/DMDNet.*non-commercial research only"):
            celebref_pairs(root)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c").mkdir()
    with pytest.raises(DatasetError, match="one folder a person"):
        open_reference_dataset("celebref-hq", tmp_path)


# ---- looking it over


def kinds(report, level):
    return sorted({finding.kind for finding in report.findings if finding.level == level})


def test_a_whole_dataset_is_usable_and_compared_with_what_is_published(pristine):
    report = validate_reference_dataset("celebref-hq", pristine, pictures=True)
    assert report.ok, str(report)
    (split,) = report.splits
    assert (split.rows, split.groups) == (3, 3)
    assert kinds(report, "warning") == ["count"]
    shown = str(report)
    for text in ("9 pictures, published are 10,555", "3 people, published are 1,005", "2 to 4 pictures a person"):
        assert text in shown
    assert "3 to 20 (README of its repository) or 2 to 21 (PDGrad)" in shown
    assert "662" in shown and "datasets pairs" in shown


def test_the_published_counts_raise_no_warning(tmp_path, monkeypatch):
    from refbfr_core.faces import celebref_check

    sizes = {f"{person:05d}": tuple(f"{person:05d}/{view}.png" for view in range(10)) for person in range(1_005)}
    extra = 10_555 - 10 * 1_005
    sizes |= {name: tuple(f"{name}/{view}.png" for view in range(11)) for name in list(sizes)[:extra]}
    found = celebref_check._count_findings(sizes)
    assert {finding.level for finding in found} == {"note"}


def lose_a_person(root):
    shutil.rmtree(people(root) / "00022")
    return {"count"}, set()


def leave_one_picture(root):
    (people(root) / "00011/1.png").unlink()
    return {"count"}, {"too-few"}


def put_a_picture_into_another_folder(root):
    shutil.copy(people(root) / "00000/1.png", people(root) / "00022/9.png")
    return {"count"}, {"leak-image"}


def store_a_picture_twice(root):
    shutil.copy(people(root) / "00000/1.png", people(root) / "00000/9.png")
    return {"count", "duplicate-picture"}, set()


def store_the_same_pixels_in_another_file(root):
    with Image.open(people(root) / "00000/1.png") as picture:
        picture.save(people(root) / "00000/9.webp", lossless=True)
    return {"count", "duplicate-picture"}, set()


def save_a_picture_as_jpeg_again(root):
    with Image.open(people(root) / "00000/1.png") as picture:
        picture.save(people(root) / "00000/9.jpg", quality=70)
    return {"count", "near-duplicate"}, set()


def cut_a_picture(root):
    path = people(root) / "00000/1.png"
    path.write_bytes(path.read_bytes()[:600])
    return {"count"}, {"damaged-picture"}


def change_a_recorded_picture(root):
    write_pairs(root / PAIRS_FILE, celebref_pairs(root))
    path = people(root) / celebref_pairs(root)[0].truth
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return {"count"}, {"pairs"}


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_person,
        leave_one_picture,
        put_a_picture_into_another_folder,
        store_a_picture_twice,
        store_the_same_pixels_in_another_file,
        save_a_picture_as_jpeg_again,
        cut_a_picture,
        change_a_recorded_picture,
    ],
    ids=lambda damage: damage.__name__,
)
def test_every_damage_is_found(damage, release):
    warnings, errors = damage(release)
    report = validate_reference_dataset("celebref-hq", release, pictures=True)
    assert (set(kinds(report, "warning")), set(kinds(report, "error"))) == (warnings, errors), str(report)


# ---- the command


def run(*arguments: object):
    from refbfr_core.cli.app import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(release, tmp_path):
    shown = run("datasets", "list").stdout
    for text in ("CelebRef-HQ (celebref-hq)", "csxmli2016/DMDNet", "1,005 targets of 1,005 people; 10,555 pictures"):
        assert text in shown
    drawn = run("datasets", "pairs", "--root", release, "--seed", 4)
    assert drawn.exit_code == 0 and "3 pairs, seed 4" in drawn.stdout
    assert read_pairs(release / PAIRS_FILE) == [replace(pair, seed=4) for pair in celebref_pairs(release, 4)]
    shown = run("datasets", "check", "celebref-hq", "--root", release)
    assert shown.exit_code == 0 and "3 recorded pairs of seed 4 are as on disk" in shown.stdout
    missing = run("datasets", "check", "celebref-hq", "--root", tmp_path / "nowhere")
    assert missing.exit_code == 1 and "DMDNet" in missing.stdout
