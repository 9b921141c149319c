"""The datasets of the tables: drawn people as in the studies, and photographs whose items stand for themselves."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from drawn_datasets import change_rows, draw_people, make_celeba_test_ref, make_celebref, make_ffhq_ref
from PIL import Image

from refbfr_core.benchmark import tables
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.benchmark.severities import preset_of
from refbfr_core.benchmark.tables import TABLE_DATASETS, drawn_dataset, table_dataset
from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, ImageFileError, RefbfrError, UnknownNameError
from refbfr_core.faces import ToyFaces
from refbfr_core.faces.blind_dataset import name_seed
from refbfr_core.faces.reference_rows import DatasetError, PictureFinder
from refbfr_core.images import check_images, read_image, write_image

SIZE = 64
PICTURES = ("lq", "truth", "right", "wrong")


@pytest.fixture(scope="module")
def ffhq(tmp_path_factory):
    """A whole miniature FFHQ-Ref with three people in its test split; never change it."""
    return make_ffhq_ref(tmp_path_factory.mktemp("ffhq") / "FFHQ-Ref", people=(1, 1, 3))


@pytest.fixture
def release(ffhq, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(ffhq.root, tmp_path / "FFHQ-Ref")
    return type(ffhq)(tmp_path / "FFHQ-Ref", ffhq.people)


def of(data, name):
    return next(item for item in data.items if item.name == name)


def same(one, other):
    """Whether two cases are equal, whatever they lack."""
    pairs = [(getattr(one, part), getattr(other, part)) for part in (*PICTURES, "mask", "landmarks")]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


# ---- drawn people


def test_drawn_items_are_the_cases_of_the_studies_in_any_order():
    data = drawn_dataset("severe", people=4, references=2, seed=5, resolution=SIZE)
    options = {"preset": preset_of("severe"), "references": 2, "seed": 5, "resolution": SIZE}
    cases = make_cases(range(4), 4, **options)
    for index in (2, 0, 3, 1):
        item = data.items[index]
        assert (item.dataset, item.name, item.group) == ("drawn-severe", f"person-{index:03d}", f"person-{index:03d}")
        assert item.seed == cases.seeds[index]
        case = item.load()
        for part in PICTURES:
            assert torch.equal(getattr(case, part)[0], getattr(cases, part)[index])
    assert torch.equal(data.items[3].load().wrong, data.items[0].load().right), "the next of the last is the first"


def test_drawn_items_carry_the_renderers_own_mask_and_landmarks():
    item = drawn_dataset("mild", people=2, references=1, resolution=SIZE).items[1]
    case = item.load()
    faces = ToyFaces(SIZE)
    people = faces.identities(2, 0, split="test")
    drawn = faces.render(people, faces.views(people, 2, 0))
    assert torch.equal(case.mask, drawn.face_mask[1:, 0]) and case.mask.shape == (1, 1, SIZE, SIZE)
    assert torch.equal(case.landmarks, drawn.landmarks[1:, 0]) and case.landmarks.shape == (1, 98, 2)
    assert case.mask.min() >= 0 and case.mask.max() <= 1 and 0.1 < case.mask.mean() < 0.7
    check_images(case.lq)
    for part in (*PICTURES, "mask", "landmarks"):
        getattr(case, part).add_(1)  # what is handed out is the receiver's own
    again = item.load()
    assert torch.equal(again.truth, drawn.images[1:, 0]) and torch.equal(again.mask, drawn.face_mask[1:, 0])
    assert torch.equal(again.right, drawn.images[1:, 1:]) and torch.equal(again.landmarks, drawn.landmarks[1:, 0])


def test_severities_share_people_and_noise_but_not_keys():
    mild, severe = (drawn_dataset(name, people=2, references=1, resolution=SIZE) for name in ("mild", "severe"))
    one, other = mild.items[0].load(), severe.items[0].load()
    assert torch.equal(one.truth, other.truth) and torch.equal(one.wrong, other.wrong)
    assert not torch.equal(one.lq, other.lq) and mild.items[0].seed == severe.items[0].seed
    variants = [
        {},
        {"people": 3},
        {"references": 2},
        {"seed": 1},
        {"split": "val"},
        {"resolution": 128},
    ]
    digests = [
        item.digest
        for severity in ("mild", "severe")
        for options in variants
        for item in drawn_dataset(severity, **{"people": 2, "references": 1, "resolution": SIZE, **options}).items
    ]
    assert len(set(digests)) == len(digests)
    assert mild.items[0].digest == drawn_dataset("mild", people=2, references=1, resolution=SIZE).items[0].digest


def test_loading_one_after_another_draws_everybody_once(monkeypatch):
    from refbfr_core.benchmark.tables import datasets

    drawn, draw = [], datasets.draw_people
    monkeypatch.setattr(datasets, "draw_people", lambda people, *rest, **more: (
        drawn.extend(people), draw(people, *rest, **more))[1])
    data = drawn_dataset("mild", people=4, references=1, resolution=SIZE)
    assert not drawn, "nothing is drawn before it is needed"
    for item in data.items:
        item.load()
    assert drawn == [0, 1, 2, 3, 0], "only the first person comes twice: as the last one's stranger"


def test_impossible_drawn_datasets():
    with pytest.raises(UnknownNameError, match="severe"):
        drawn_dataset("sever")
    for wrong in ({"people": 1}, {"references": 0}):
        with pytest.raises(ConfigError):
            drawn_dataset("mild", **wrong)


# ---- photographs with references


def test_items_of_a_reference_dataset(ffhq):
    data = table_dataset("ffhq-ref-severe", ffhq.root, references=2, resolution=SIZE)
    assert (data.title, data.expected, data.has_truth, data.has_references) == ("FFHQ-Ref-Severe", 857, True, True)
    assert "9 of 857" in data.protocol
    names = [name.removesuffix(".png") for own in ffhq.people["test"] for name in own]
    assert [item.name for item in data.items] == names
    finder = PictureFinder(ffhq.root, ["images1024x1024"])
    for index, item in enumerate(data.items):
        person = index // 3
        own, stranger = ffhq.people["test"][person], ffhq.people["test"][(person + 1) % 3]
        assert item.group == own[0].removesuffix(".png")
        case = item.load()
        assert torch.equal(case.truth, read_image(finder.find(f"{item.name}.png")))
        assert torch.equal(case.lq, read_image(ffhq.root / f"test_images/severe_degrad/{item.name}.png"))
        others = [name for name in own if name != f"{item.name}.png"]
        assert torch.equal(case.right[0], torch.cat([read_image(finder.find(name)) for name in others]))
        pictures = [read_image(finder.find(name))[0] for name in stranger]
        assert case.wrong.shape == case.right.shape
        assert all(any(torch.equal(wrong, known) for known in pictures) for wrong in case.wrong[0])
        assert case.mask is None and case.landmarks is None
    moderate = table_dataset("ffhq-ref-moderate", ffhq.root, references=2, resolution=SIZE)
    assert not torch.equal(moderate.items[0].load().lq, data.items[0].load().lq)


def test_items_do_not_depend_on_their_place_on_the_limit_or_on_other_people(release):
    options = {"references": 1, "resolution": SIZE}
    before = table_dataset("ffhq-ref-severe", release.root, **options)
    few = table_dataset("ffhq-ref-severe", release.root, limit=2, **options)
    assert [(one.name, one.seed, one.digest) for one in few.items] == [
        (one.name, one.seed, one.digest) for one in before.items[:2]
    ]
    assert same(few.items[1].load(), before.items[1].load())
    change_rows(release.mapping("test"), lambda rows: rows.pop(0))
    after = table_dataset("ffhq-ref-severe", release.root, **options)
    last = before.items[-4].name
    assert of(after, last).seed == of(before, last).seed and same(of(after, last).load(), of(before, last).load())


def test_a_digest_changes_with_every_file_of_its_item_and_no_other(release):
    finder = PictureFinder(release.root, ["images1024x1024"])
    first = release.people["test"][0]
    stranger = release.people["test"][1]

    def digests():
        data = table_dataset("ffhq-ref-severe", release.root, references=1, resolution=SIZE)
        return {item.name: item.digest for item in data.items}

    before = digests()
    name = first[0].removesuffix(".png")
    unrelated = release.people["test"][1][0].removesuffix(".png")
    touched = [
        finder.find(first[0]),
        finder.find(first[1]),
        release.root / "test_images/severe_degrad" / first[0],
        finder.find(stranger[1]),
    ]
    for path in touched:
        kept = path.read_bytes()
        path.write_bytes(kept + b"\0")
        assert digests()[name] != before[name], f"{path.name} is part of the item"
        path.write_bytes(kept)
    assert digests() == before
    finder.find(first[0]).unlink()
    assert digests()[name] != before[name] and digests()[unrelated] == before[unrelated]


def test_celeba_test_ref(tmp_path):
    made = make_celeba_test_ref(tmp_path, people=3)
    data = table_dataset("celeba-test-ref", made.root, resolution=SIZE)
    case = data.items[2].load()
    folder = made.root / "CelebAMask-HQ/CelebA-HQ-img"
    right = torch.cat([read_image(folder / name) for name in made.people["test"][2][1:]])
    wrong = torch.cat([read_image(folder / name) for name in made.people["test"][0][1:]])
    assert torch.equal(case.right[0], right) and torch.equal(case.wrong[0], wrong)
    assert torch.equal(case.lq, read_image(made.root / "celeba_test_images/LQ" / made.people["test"][2][0]))


def test_celebref_pairs_are_degraded_by_name(tmp_path):
    made = make_celebref(tmp_path, sizes=(3, 2, 4))
    data = table_dataset("celebref-hq", made.root, resolution=SIZE, seed=2)
    assert len(data.items) == 3 and data.expected == 1_005
    assert [item.group for item in data.items] == ["00000", "00011", "00022"]
    assert all(item.name.startswith(f"{item.group}_") for item in data.items)
    before = data.items[2].load()
    seed = name_seed("celebref-hq", data.items[2].name, 2)
    assert torch.equal(before.lq, Degradation.preset("pdgrad")(before.truth, seeds=[seed])[0])
    assert torch.equal(before.wrong, data.items[0].load().right)
    assert table_dataset("celebref-hq", made.root, resolution=SIZE, seed=3).items[2].digest != data.items[2].digest
    shutil.rmtree(made.root / "CelebHQRefForRelease/00011")
    after = table_dataset("celebref-hq", made.root, resolution=SIZE, seed=2).items[1]
    assert after.name == data.items[2].name and same(after.load(), before)


def test_one_person_has_no_stranger(tmp_path):
    made = make_ffhq_ref(tmp_path, people=(1, 1, 1))
    assert table_dataset("ffhq-ref-severe", made.root, resolution=SIZE).items[0].load().wrong is None


def test_one_bad_picture_fails_its_own_items_alone(release):
    finder = PictureFinder(release.root, ["images1024x1024"])
    (first, second, third), *_ = release.people["test"]
    finder.find(first).unlink()
    path = release.root / "test_images/severe_degrad" / second
    path.write_bytes(path.read_bytes()[:-300])
    data = table_dataset("ffhq-ref-severe", release.root, references=1, resolution=SIZE)
    assert len(data.items) == 9
    reasons = {}
    for item in data.items:
        try:
            item.load()
        except RefbfrError as error:
            reasons[item.name] = str(error)
    stem = [name.removesuffix(".png") for name in (first, second, third)]
    assert f"target '{first}'" in reasons[stem[0]]
    assert "reference" in reasons[stem[1]] or "truncated" in reasons[stem[1]]
    assert f"reference '{first}'" in reasons[stem[2]]
    assert len(reasons) < 9, "others are unharmed"
    with Image.open(finder.find(second)) as picture:
        picture.crop((0, 0, 64, 50)).save(finder.find(second))
    with pytest.raises(ImageFileError, match="64x50"):
        of(data, stem[1]).load()


def test_a_target_among_its_references_is_refused_however_it_is_saved(release):
    finder = PictureFinder(release.root, ["images1024x1024"])
    (first, second, _), *_ = release.people["test"]
    target, reference = finder.find(first), finder.find(second)
    reference.unlink()
    with Image.open(target) as picture:
        picture.save(reference.with_suffix(".webp"), lossless=True)
    item = table_dataset("ffhq-ref-severe", release.root, references=1, resolution=SIZE).items[0]
    with pytest.raises(DatasetError, match=r"pixel by pixel.*datasets check ffhq-ref"):
        item.load()


def test_a_target_with_two_rows_is_refused(release):
    change_rows(release.mapping("test"), lambda rows: rows.append(dict(rows[0])))
    with pytest.raises(DatasetError, match="several rows for"):
        table_dataset("ffhq-ref-severe", release.root, resolution=SIZE)


# ---- photographs without references


@pytest.fixture(scope="module")
def celeba(tmp_path_factory):
    root = tmp_path_factory.mktemp("celeba")
    for index, truth in enumerate(draw_people(4, 1, 9, "test", SIZE)[:, 0]):
        lq, _ = Degradation.preset("toy-ldbfr-severe")(truth[None], seed=index)
        write_image(root / "celeba_512_validation" / f"{index:08d}.png", truth)
        write_image(root / "celeba_512_validation_lq" / f"{index:08d}.png", lq)
    return root


def test_items_of_a_blind_set(celeba, tmp_path):
    data = table_dataset("celeba-test", celeba, resolution=SIZE)
    assert (data.expected, data.has_truth, data.has_references, len(data.items)) == (3_000, True, False, 4)
    item = data.items[3]
    case = item.load()
    assert item.group == item.name == "00000003" and case.right is None and case.wrong is None
    assert torch.equal(case.truth, read_image(celeba / "celeba_512_validation/00000003.png"))
    root = shutil.copytree(celeba, tmp_path / "copy")
    (root / "celeba_512_validation/00000000.png").unlink()
    (root / "celeba_512_validation_lq/00000000.png").unlink()
    again = of(table_dataset("celeba-test", root, resolution=SIZE), "00000003")
    assert (again.seed, again.digest) == (item.seed, item.digest) and same(again.load(), case)
    assert table_dataset("celeba-test", celeba, resolution=SIZE, seed=1).items[3].seed != item.seed
    dr2 = table_dataset("celeba-test-dr2-severe", celeba, resolution=SIZE)
    assert dr2.has_truth and "degraded with ldbfr-severe" in dr2.protocol
    assert dr2.items[-1].digest not in (
        item.digest,
        table_dataset("celeba-test-dr2-severe", celeba, resolution=SIZE, seed=1).items[-1].digest,
    )


def test_a_set_without_truth(celeba):
    data = table_dataset("lfw-test", celeba / "celeba_512_validation_lq", resolution=SIZE)
    assert not data.has_truth and not data.has_references
    assert data.items[0].load().truth is None


def test_items_can_be_sent_to_a_worker_process(celeba, ffhq):
    for data in (
        table_dataset("celeba-test", celeba, resolution=SIZE),
        table_dataset("ffhq-ref-severe", ffhq.root, resolution=SIZE),
        drawn_dataset("mild", people=2, references=1, resolution=SIZE),
    ):
        sent = copy.deepcopy(data.items[1])  # by the same protocol, without reading a pickle
        assert sent.digest == data.items[1].digest and same(sent.load(), data.items[1].load())


# ---- all of them


@pytest.mark.parametrize("name", TABLE_DATASETS)
def test_every_dataset_is_described_and_says_what_is_missing(name, tmp_path):
    source = TABLE_DATASETS[name]
    assert source.title and source.licence and source.sources
    if source.kind == "drawn":
        data = drawn_dataset(name.removeprefix("drawn-"), people=2)
        assert (data.name, data.title, data.expected) == (name, source.title, source.expected)
        with pytest.raises(ConfigError, match="drawn_dataset"):
            table_dataset(name, tmp_path)
        return
    with pytest.raises(DatasetError) as caught:
        table_dataset(name, tmp_path / "nowhere")
    assert source.sources[0].page in str(caught.value) and source.sources[0].licence in str(caught.value)


def test_impossible_requests(ffhq):
    with pytest.raises(UnknownNameError, match="Did you mean 'ffhq-ref-severe'"):
        table_dataset("ffhq-ref-sever", ffhq.root)
    for wrong in ({"limit": 0}, {"references": 0}, {"resolution": 0}):
        with pytest.raises(ConfigError):
            table_dataset("ffhq-ref-severe", ffhq.root, **wrong)


def test_the_public_names_are_there():
    assert {"TABLE_DATASETS", "TableDataset", "drawn_dataset", "table_dataset"} <= set(tables.__all__)


def test_a_table_item_of_real_photographs(shared_dir, tmp_path):
    source = shared_dir / "faces/photos/identities/refldm"
    shutil.copytree(source, tmp_path / "images1024x1024")
    (tmp_path / "test_images/severe_degrad").mkdir(parents=True)
    shutil.copy(source / "lq.png", tmp_path / "test_images/severe_degrad/target.png")
    mapping = tmp_path / "reference_mapping/test_references.csv"
    mapping.parent.mkdir()
    mapping.write_text("gt_image,ref_image\ntarget.png,\"['ref_00.png', 'ref_01.png']\"\n")
    (item,) = table_dataset("ffhq-ref-severe", tmp_path).items
    case = item.load()
    assert case.lq.shape == (1, 3, 512, 512) and case.right.shape == (1, 2, 3, 512, 512) and case.wrong is None
    assert torch.equal(case.truth, read_image(source / "target.png"))
    shutil.copy(source / "target.png", tmp_path / "images1024x1024/ref_01.png")
    (item,) = table_dataset("ffhq-ref-severe", tmp_path).items
    with pytest.raises(DatasetError, match="ref_01"):
        item.load()
    data = table_dataset("webphoto", shared_dir / "faces/photos/real_lq", limit=2)
    assert len(data.items) == 2 and data.items[0].load().lq.shape == (1, 3, 512, 512)
