"""`refbfr restore` from picture files to picture files, with tiny untrained networks and the kit's real photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from refbfr_core.cli import identity, restoration
from refbfr_core.cli.app import app
from refbfr_core.errors import ConfigError, DiskFullError, ImageContractError
from refbfr_core.faces.photos import keep_crop
from refbfr_core.images import read_image, write_image

SIDE = 32


@pytest.fixture
def cli():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder of untrained networks that restore 32-pixel pictures: the real pipeline, in a second."""
    from diffusers import UNet2DModel, VQModel

    from refbfr_core.weights import save_network

    torch.manual_seed(0)
    vq = VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    torch.nn.init.normal_(vq.quantize.embedding.weight)
    unet = UNet2DModel(
        sample_size=4,
        in_channels=32,
        out_channels=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=8,
    )
    root = tmp_path_factory.mktemp("tiny")
    card = {"summary": "untrained, for tests", "training_data": "none", "recipe": {"steps": 0}}
    for name, network in (("refldm-vq", vq), ("refldm-unet", unet)):
        save_network(network, name, root, card, dtype=torch.float32)
    return root


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """A ruined crop, three references, a target, and another ruined crop; all of the networks' size."""
    rng = torch.Generator().manual_seed(3)
    names = ("lq", "lq2", "ref0", "ref1", "ref2", "target")
    return {
        name: write_image(tmp_path / "in" / f"{name}.png", torch.rand(1, 3, SIDE, SIDE, generator=rng))
        for name in names
    }


@pytest.fixture
def restore(cli, tiny):
    return lambda *arguments: cli("restore", "--weights", tiny, "--steps", 4, "--device", "cpu", *arguments)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_crop_is_restored_and_the_sidecar_says_how(restore, pictures, tmp_path):
    out = tmp_path / "out" / "face.png"
    refs = ("--ref", pictures["ref0"], "--ref", pictures["ref1"])
    done = restore(pictures["lq"], *refs, "--out", out, "--seed", 5, "--guidance", 2)
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout
    assert read_image(out).shape == (1, 3, SIDE, SIDE)
    assert _files(out.parent) == ["face.json", "face.png"]
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["settings"]["seeds"] == [5]
    assert record["settings"]["guidance_scale"] == 2
    assert record["settings"]["references"] == [2]
    assert (record["method"], record["profile"]) == ("refldm", "toy")
    assert [entry["file"] for entry in record["references"]] == ["ref0.png", "ref1.png"]
    assert str(tmp_path) not in out.with_suffix(".json").read_text(), "folders are private"
    import hashlib

    assert record["result"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert record["input"]["sha256"] == hashlib.sha256(pictures["lq"].read_bytes()).hexdigest()


def test_toy_weights_come_with_a_plain_warning(restore, pictures, tmp_path):
    done = restore(pictures["lq"], "--out", tmp_path / "a.png")
    assert "warning: the toy networks have seen drawn faces only" in done.stderr
    assert "warning: a restored face is a guess" in done.stderr
    assert "note: no --ref given" in done.stderr


def test_same_call_same_bytes_alone_or_among_others_and_seeds_and_references_matter(restore, pictures, tmp_path):
    refs = ("--ref", pictures["ref0"])
    calls = {
        "one": (pictures["lq"], *refs),
        "same": (pictures["lq"], *refs),
        "seed": (pictures["lq"], *refs, "--seed", 1),
        "none": (pictures["lq"],),
        "other": (pictures["lq"], "--ref", pictures["ref2"]),
    }
    results = {}
    for name, arguments in calls.items():
        assert restore(*arguments, "--out", tmp_path / f"{name}.png").exit_code == 0
        results[name] = (tmp_path / f"{name}.png").read_bytes()
    assert results["one"] == results["same"]
    assert len(set(results.values())) == 4
    both = restore(pictures["lq2"], pictures["lq"], *refs, "--out", tmp_path / "both")
    assert both.exit_code == 0, both.output
    assert _files(tmp_path / "both") == [
        "lq2_restored.json",
        "lq2_restored.png",
        "lq_restored.json",
        "lq_restored.png",
    ]
    assert (tmp_path / "both" / "lq_restored.png").read_bytes() == results["one"]


def test_a_folder_of_references_and_another_size_are_taken_with_a_note(restore, pictures, tmp_path):
    folder = tmp_path / "refs"
    for name in ("ref0", "ref1"):
        write_image(folder / f"{name}.jpg", read_image(pictures[name]))
    (folder / "notes.txt").write_text("not a picture")
    large = write_image(tmp_path / "large.png", torch.rand(1, 3, 80, 80))
    done = restore(large, "--ref", folder, "--out", tmp_path / "r.png")
    assert done.exit_code == 0, done.output
    assert "resized from 80x80 to 32x32" in done.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    assert [entry["file"] for entry in record["references"]] == ["ref0.jpg", "ref1.jpg"]
    np.testing.assert_allclose(record["input"]["photo_to_crop"], [[0.4, 0, -0.3], [0, 0.4, -0.3]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{in}/absent.png", "--out", "{out}/r.png"), "there is no file"),
        (("{in}/short.png", "--out", "{out}/r.png"), "truncated or damaged"),
        (("{in}/lq.png", "--ref", "{in}/text.png", "--out", "{out}/r.png"), "text.png is not an image"),
        (
            ("{in}/wide.png", "--no-align", "--out", "{out}/r.png"),
            "wide.png: an aligned crop is square, this one is 40x20",
        ),
        (("{in}/wide.png", "--out", "{out}/r.png"), "no InsightFace model pack"),
        (("{in}/lq.png", "--align", "--out", "{out}/r.png"), "Download a pack"),
        (("{in}/lq.png", "--models", "{in}", "--out", "{out}/r.png"), "no InsightFace model pack under"),
        (("{in}/lq.png", "--method", "refldn", "--out", "{out}/r.png"), "Did you mean 'refldm'?"),
        (("{in}/lq.png", "--profile", "papr", "--out", "{out}/r.png"), "Did you mean 'paper'?"),
        (
            ("{in}/lq.png", "--ref", "{in}/many", "--out", "{out}/r.png"),
            "30 references for one person came, at most 16",
        ),
        (("{in}/lq.png", "--ref", "{in}/empty", "--out", "{out}/r.png"), "holds no PNG, JPEG or WebP"),
        (
            ("{in}/lq.png", "--ref", "{in}/ref0.png", "--target", "{in}/ref0.png", "--out", "{out}/r.png"),
            "is also a reference",
        ),
        (("{in}/lq.png", "--ref", "{in}/lq.png", "--out", "{out}/r.png"), "leave it out with --ref"),
        (("{in}/lq.png", "--out", "{in}/lq.png"), "is one of the inputs"),
        (("{in}/lq.png", "--ref", "{in}/ref0.png", "--out", "{in}/ref0.png"), "is one of the inputs"),
        (("{in}/lq.png", "{in}/ref0.png", "--out", "{out}/r.png"), "2 pictures cannot all become"),
        (("{in}/lq.png", "{in}/many/lq.png", "--out", "{out}"), "two pictures have the same name"),
        (("{in}/lq.png", "--out", "{out}/r.tiff"), "no picture suffix"),
        (("{in}/lq.png", "--out", "{in}/file/r.png"), "cannot write"),
        (("{in}/lq.png", "--paste-back", "--out", "{out}/r.png"), "needs --align"),
        (("{in}/lq.png", "--guidance", "-1", "--out", "{out}/r.png"), "guidance_scale"),
        (("{in}/lq.png", "--device", "cuda:77", "--out", "{out}/r.png"), "cuda:77"),
        (("{in}/lq.png", "--weights", "{in}", "--out", "{out}/r.png"), "no weights at"),
    ],
)
def test_failures_say_what_to_do_and_leave_nothing(cli, tiny, pictures, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(tmp_path / "none"))
    place, out = pictures["lq"].parent, tmp_path / "out"
    (place / "short.png").write_bytes(pictures["lq"].read_bytes()[:-200])
    (place / "text.png").write_text("hello")
    (place / "file").write_text("in the way")
    write_image(place / "wide.png", torch.rand(1, 3, 20, 40))
    (place / "empty").mkdir()
    for number in range(30 if "many" in str(arguments) else 0):
        write_image(place / "many" / f"{number:02d}.png", torch.rand(1, 3, SIDE, SIDE))
    if "{in}/many/lq.png" in arguments:
        shutil.copy(pictures["ref1"], place / "many" / "lq.png")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    filled = [argument.replace("{in}", str(place)).replace("{out}", str(out)) for argument in arguments]
    weights = () if "--weights" in filled else ("--weights", tiny)
    done = cli("restore", "--steps", 2, *weights, *filled)
    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.output
    assert _files(out) == []
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_neither_picture_nor_sidecar(monkeypatch, tmp_path):
    written = restoration.write_result(tmp_path / "fine.png", torch.rand(1, 3, 8, 8), {"a": 1})
    assert json.loads(written.read_text())["a"] == 1

    def full(path, text):
        raise DiskFullError("cannot write: No space left on device.")

    monkeypatch.setattr(restoration, "write_text", full)
    with pytest.raises(DiskFullError):
        restoration.write_result(tmp_path / "more" / "late.png", torch.rand(1, 3, 8, 8), {})
    assert _files(tmp_path / "more") == []


def test_inputs_are_read_before_anything_is_restored(restore, pictures, tmp_path):
    done = restore(pictures["lq"], tmp_path / "absent.png", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert _files(tmp_path / "out") == []


# ---- identity


def _picture(path: Path, image: torch.Tensor) -> restoration.Picture:
    return restoration.Picture(path, image, keep_crop(image, image.shape[-1]), "0")


def test_the_judge_scores_drawn_faces(pictures):
    from refbfr_core.models import FaceEmbedder

    torch.manual_seed(1)
    scorer = identity.JudgeScorer(FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=16, input_size=16).eval())
    read = {name: _picture(path, read_image(path)) for name, path in pictures.items()}
    report = scorer.compare(read["lq"], read["target"].image, [read["ref0"], read["ref1"]], read["target"])
    assert report["to_target"]["restored"] == pytest.approx(1, abs=1e-3)
    assert report["to_target"]["lq"] < 0.9999
    means = report["to_references"]["lq"]
    assert means["mean"] == pytest.approx(np.mean(means["each"]), abs=1e-3)
    line = identity.describe(report)
    assert "to the target" in line
    assert "mean of 2" in line
    assert "judge" in line
    alone = scorer.compare(read["lq"], read["lq"].image, [read["ref0"]], None)
    assert "to_target" not in alone
    assert "to the target" not in identity.describe(alone)


def test_plans_name_results_after_their_inputs(tmp_path):
    inputs = [tmp_path / "a.png", tmp_path / "b.jpg"]
    assert [path.name for path in restoration.plan_outputs(inputs, tmp_path / "o")] == [
        "a_restored.png",
        "b_restored.png",
    ]
    (tmp_path / "dir.png").mkdir()
    assert restoration.plan_outputs(inputs[:1], tmp_path / "dir.png") == [tmp_path / "dir.png" / "a_restored.png"]
    with pytest.raises(ConfigError):
        restoration.plan_outputs(inputs, tmp_path / "o.png")


def test_a_reader_names_the_file_and_keeps_the_kind_of_error(tmp_path):
    path = write_image(tmp_path / "wide.png", torch.rand(1, 3, 8, 16))
    with pytest.raises(ImageContractError, match=r"wide\.png"):
        restoration.Reader(8, None).read(path)


# ---- photographs


@pytest.fixture(scope="module")
def kit(shared_dir) -> Path:
    pytest.importorskip("insightface")
    return shared_dir / "faces"


def test_real_photographs_go_through_and_are_scored_by_the_real_network(restore, kit, tmp_path):
    folder = kit / "photos" / "identities" / "refldm"
    refs = [argument for number in range(4) for argument in ("--ref", folder / f"ref_{number:02d}.png")]
    models = ("--models", kit / "models" / "insightface")
    out = tmp_path / "photo.png"
    done = restore(folder / "lq.png", *refs, *models, "--target", folder / "target.png", "--out", out)
    assert done.exit_code == 0, done.output
    assert "drawn faces only" in done.stderr
    assert "identity similarity, input -> restored: to the target 0." in done.stdout
    record = json.loads(out.with_suffix(".json").read_text())
    assert "kit" in record["aligned_by"]
    assert record["input"]["detected"]["faces_found"] == 1
    assert record["identity"]["points_from"] == "target"
    # The crop has 32 pixels here, so most of the identity is gone; the pack's network still runs on all of them.
    assert -1 <= record["identity"]["to_target"]["restored"] < 0.5
    assert len(record["identity"]["to_references"]["lq"]["each"]) == 4


def test_similarity_of_photographs_agrees_with_the_recorded_values(kit):
    from refbfr_core.faces.photos import PhotoAligner

    baseline = json.loads((kit / "expected" / "baseline.json").read_text())
    folder = kit / "photos" / "identities" / "refldm"
    aligner = PhotoAligner(kit / "models" / "insightface")
    reader = restoration.Reader(512, aligner)
    lq, target = reader.read(folder / "lq.png"), reader.read(folder / "target.png")
    references = [reader.read(folder / f"ref_{number:02d}.png") for number in range(4)]
    report = identity.PhotoScorer(aligner).compare(lq, target.image, references, target)
    assert report["to_target"]["lq"] == pytest.approx(baseline["lq_to_target_cosine"], abs=0.1)
    assert report["to_target"]["restored"] > 0.9, "the target stands in for a perfect restoration"
    np.testing.assert_allclose(report["to_references"]["restored"]["each"], baseline["target_to_references"], atol=0.1)
    unaligned = restoration.Reader(512, None)
    crops = [unaligned.read(folder / f"{name}.png") for name in ("lq", "target")]
    by_crop = identity.PhotoScorer(aligner).compare(crops[0], crops[1].image, [], crops[1])
    assert by_crop["to_target"]["restored"] == pytest.approx(1, abs=1e-3)
    assert by_crop["points_from"] == "target"
    empty = _picture(folder / "lq.png", torch.full((1, 3, 64, 64), 0.5))
    assert identity.PhotoScorer(aligner).compare(empty, empty.image, [target], None)["points_from"] == "template"


def test_whole_photographs_are_aligned_by_themselves_and_pasted_back(restore, kit, tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(kit / "models" / "insightface"))
    photo = kit / "photos" / "whole" / "codeformer_02.png"
    out = tmp_path / "whole.png"
    done = restore(photo, "--out", out, "--paste-back", "--face", 2)
    assert done.exit_code == 0, done.output
    assert "finding the face" in done.stderr
    assert "4 faces found, took number 2" in done.stderr
    before, after = read_image(photo), read_image(out)
    assert after.shape == before.shape
    x1, y1, x2, y2 = (
        round(value) for value in json.loads(out.with_suffix(".json").read_text())["input"]["detected"]["box"]
    )
    changed = (after - before).abs().amax(1)[0]
    assert changed[y1:y2, x1:x2].mean() > 0.05
    assert changed[:, : max(0, x1 - (x2 - x1))].max() < 0.01


def test_a_photograph_without_a_face_is_an_error_that_names_the_file(restore, kit, tmp_path):
    empty = write_image(tmp_path / "sky.png", torch.full((1, 3, 120, 200), 0.6))
    done = restore(empty, "--models", kit / "models" / "insightface", "--out", tmp_path / "o" / "r.png")
    assert done.exit_code == 1
    assert "sky.png: no face found in this 200x120 picture" in done.stderr
    assert _files(tmp_path / "o") == []
