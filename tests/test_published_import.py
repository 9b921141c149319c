"""Importing the authors' files: once, whole or not at all, and what the paper profile makes of them."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from released_files import SMALL, write_released
from typer.testing import CliRunner

from refbfr_core import load_pipeline
from refbfr_core.cli import examination
from refbfr_core.cli.app import app
from refbfr_core.diffusion import uniform_timesteps
from refbfr_core.errors import ConfigError, DiskFullError, OutputError, UnknownNameError, WeightsError
from refbfr_core.models import encode_latents
from refbfr_core.pipelines import SAMPLING, sampling
from refbfr_core.weights import (
    NETWORKS,
    import_published,
    imported_from,
    load_network,
    published_import,
    published_ldm,
    published_root,
    read_card,
)
from refbfr_core.weights.convert import convert_ldm_unet
from refbfr_core.weights.published_files import file_digest
from refbfr_core.weights.published_ldm import average_name
from refbfr_core.weights.published_sample import sample_refldm, sample_vqgan


def take(files, root, **options):
    return import_published(files, accept=lambda published: True, root=root, layout=SMALL, **options)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return write_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory):
    root = tmp_path_factory.mktemp("weights") / "paper"
    take(released, root)
    return root


@pytest.fixture
def at_home(imported, monkeypatch):
    """The imported networks where the paper profile looks for them."""
    monkeypatch.setenv("REFBFR_WEIGHTS", str(imported.parent))
    return imported


# ---- what an import leaves


def test_cards_say_where_the_weights_come_from(released, imported):
    for path, name in zip(released, ("refldm-unet", "refldm-vq"), strict=True):
        record = read_card(imported / name)
        source, published = record["card"]["source"], NETWORKS[name].published["paper"]
        assert record["dtype"] == "float32"
        assert source == imported_from(name, imported)
        assert (source["sha256"], source["bytes"]) == (file_digest(path), path.stat().st_size)
        assert (source["file"], source["url"]) == (published.filename, published.url)
        assert "non-commercial" in record["card"]["licence"]
        text = (imported / name / "CARD.md").read_text()
        assert source["sha256"] in text and published.page in text
    assert read_card(imported / "refldm-unet")["card"]["source"]["averaged"] is True
    stages = {imported_from(name, imported)["first_stage_sha256"] for name in ("refldm-unet", "refldm-vq")}
    assert len(stages) == 1 and None not in stages


def test_values_are_kept_exactly(at_home):
    state = sample_refldm(SMALL)
    expected = convert_ldm_unet({name: state[average_name(name)] for name in SMALL.unet_shapes()}, SMALL.unet)
    loaded = load_network("refldm-unet", profile="paper", device="cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.state_dict().items())


def test_a_second_import_finds_the_first(released, imported):
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*.safetensors")}
    done = take(reversed(released), imported)
    assert [(one.name, one.fresh) for one in done] == [("refldm-vq", False), ("refldm-unet", False)]
    assert {path: path.stat().st_mtime_ns for path in imported.rglob("*.safetensors")} == before


def test_the_order_names_and_number_of_files_do_not_matter(released, imported, tmp_path):
    for path, name in zip(released, ("a.bin", "b"), strict=True):
        shutil.copy(path, tmp_path / name)
        (one,) = take([tmp_path / name], tmp_path / "paper")
        assert one.fresh
        theirs, ours = (read_card(root / one.name) for root in (imported, tmp_path / "paper"))
        assert theirs["files"] == ours["files"]


# ---- what it refuses


def test_nothing_is_written_unless_the_licence_is_accepted(released, tmp_path):
    asked = []
    with pytest.raises(WeightsError, match=r"licence of .*non-commercial.* was not accepted"):
        import_published(released, accept=asked.append, root=tmp_path / "paper", layout=SMALL)
    assert [published.licence for published in asked] == [NETWORKS["refldm-vq"].published["paper"].licence]
    assert [path.name for path in (tmp_path / "paper").iterdir()] == [".import.lock"]


def test_files_that_do_not_belong_together_are_refused(released, imported, tmp_path):
    _, other_vqgan = write_released(tmp_path, seed=5)
    with pytest.raises(WeightsError, match=r"not the one of vqgan\.ckpt.*import them together\."):
        take([released[0], other_vqgan], tmp_path / "paper")
    take([released[0]], tmp_path / "paper")
    with pytest.raises(WeightsError, match=r"not the one of vqgan\.ckpt.*with --replace\."):
        take([other_vqgan], tmp_path / "paper")
    assert not (tmp_path / "paper" / "refldm-vq").exists()


def test_another_file_takes_the_place_of_the_first_only_when_told(released, tmp_path):
    root = tmp_path / "paper"
    take(released, root)
    others = write_released(tmp_path, seed=5)
    with pytest.raises(WeightsError, match=r"is not the file that refldm-unet was imported from.*--replace"):
        take(others, root)
    assert imported_from("refldm-unet", root)["sha256"] == file_digest(released[0])
    assert all(one.fresh for one in take(others, root, replace=True))
    assert imported_from("refldm-unet", root)["sha256"] == file_digest(others[0])


def test_a_known_digest_is_insisted_on(released, tmp_path, monkeypatch):
    import dataclasses
    from types import MappingProxyType

    entry = NETWORKS["refldm-vq"]
    pinned = dataclasses.replace(entry.published["paper"], sha256="0" * 64)
    known = {**NETWORKS, "refldm-vq": dataclasses.replace(entry, published=MappingProxyType({"paper": pinned}))}
    monkeypatch.setattr(published_import, "NETWORKS", known)
    with pytest.raises(WeightsError, match="the released file has 0000"):
        take([released[1]], tmp_path)


def test_files_that_are_something_else_are_refused(released, tmp_path):
    torch.save({"face.weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"none of the files .*vqgan\.ckpt, refldm\.ckpt.*'face\.weight'"):
        take([tmp_path / "other.pt"], tmp_path / "paper")
    with pytest.raises(WeightsError, match="several files hold refldm-vq"):
        take([released[1], released[1]], tmp_path / "paper")
    broken = sample_vqgan(SMALL)
    del broken["quant_conv.bias"]
    with pytest.raises(WeightsError, match=r"vqgan\.ckpt: .*1 missing \(quant_conv\.bias\)"):
        take(write_released(tmp_path, vqgan=broken), tmp_path / "paper")
    assert [path.name for path in (tmp_path / "paper").iterdir()] == [".import.lock"]


# ---- when it is interrupted


def test_a_full_disk_is_noticed_before_writing(released, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(published_import.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(DiskFullError, match=r"they need \d+ MiB, 1 MiB are free"):
        take(released, tmp_path / "paper")
    assert [path.name for path in (tmp_path / "paper").iterdir()] == [".import.lock"]


def test_a_limit_met_while_writing_leaves_nothing_and_a_later_import_goes_on(released, tmp_path):
    root = tmp_path / "paper"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the network of the first file, not for the larger one of the second.
    sizes = [one.stat().st_size for one in _networks(released, tmp_path / "sizes")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"refldm-unet: File too large"):
            take(reversed(released), root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in root.iterdir()} == {".import.lock", "refldm-vq"}
    assert [one.fresh for one in take(reversed(released), root)] == [False, True]


def _networks(released, root):
    return [next(one.folder.glob("*.safetensors")) for one in take(released, root)]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from released_files import SMALL
from refbfr_core.weights import import_published, store
rename = store._put_in_place
def killed(partial, target):
    if target.name == "refldm-unet":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(partial, target)
store._put_in_place = killed
import_published({files!r}, accept=lambda published: True, root={root!r}, layout=SMALL)
"""


def test_a_killed_import_is_taken_up_again(released, tmp_path):
    root = tmp_path / "paper"
    files = [str(path) for path in reversed(released)]
    code = KILLED.format(tests=str(Path(__file__).parent), files=files, root=str(root))
    done = subprocess.run([sys.executable, "-c", code], timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in root.iterdir() if path.name.startswith(".refldm-unet.partial-")]
    assert len(left) == 1 and not (root / "refldm-unet").exists()
    assert [one.fresh for one in take(files, root)] == [False, True]
    assert {path.name for path in root.iterdir()} == {".import.lock", "refldm-vq", "refldm-unet"}


def test_a_damaged_network_is_imported_again(released, tmp_path):
    root = tmp_path / "paper"
    take(released, root)
    weights = next((root / "refldm-vq").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert [one.fresh for one in take(released, root)] == [False, True]


def test_two_imports_do_not_meet(released, tmp_path):
    with published_import._alone_in(tmp_path), pytest.raises(OutputError, match="another import"):
        take(released, tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        take(released, tmp_path / "file")


# ---- the paper profile


def test_without_an_import_the_pipeline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    assert published_root() == tmp_path / "paper"
    with pytest.raises(WeightsError) as caught:
        load_pipeline("refldm", profile="paper")
    for part in (
        "https://github.com/ChiWeiHsiao/ref-ldm/releases/tag/1.0.0",
        "https://github.com/ChiWeiHsiao/ref-ldm/releases/download/1.0.0/vqgan.ckpt",
        "non-commercial",
        "refbfr weights import vqgan.ckpt refldm.ckpt",
    ):
        assert part in str(caught.value)
    monkeypatch.delenv("REFBFR_WEIGHTS")
    assert published_root().parts[-2:] == ("weights", "paper")


def test_a_damaged_import_says_to_import_again(at_home, tmp_path, monkeypatch):
    shutil.copytree(at_home, tmp_path / "paper")
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    weights = next((tmp_path / "paper" / "refldm-unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"truncated.*refbfr weights import refldm\.ckpt"):
        load_pipeline("refldm", profile="paper")


@pytest.fixture
def pipe(at_home):
    pipe = load_pipeline("refldm", profile="paper", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_paper_profile_samples_as_the_release_does(pipe):
    assert pipe.resolution == 32
    config = pipe.config
    assert (config.num_inference_steps, config.timestep_spacing, config.guidance_scale) == (50, "trailing", 1.5)
    assert (config.reference_encoding, config.patch_size) == ("strip", 1)
    scheduler = pipe.scheduler.config
    assert (scheduler.prediction_type, scheduler.set_alpha_to_one, scheduler.clip_sample) == ("epsilon", False, False)
    assert (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule) == (0.0015, 0.0155, "scaled_linear")


def test_presets(pipe):
    lq, references = torch.rand(2, 3, 32, 32), torch.rand(2, 2, 3, 32, 32)
    lq[1], references[1] = lq[0], references[0]
    short = {"num_inference_steps": 2}
    release = pipe(lq, references, **{**SAMPLING["release"], **short}).settings
    assert (release.timesteps, release.timestep_spacing, release.guidance_scale) == ((999, 499), "trailing", 1.5)
    evaluation = pipe(lq, references, **{**sampling("paper-evaluation", len(lq)), **short})
    assert evaluation.settings.timesteps == (501, 1)
    assert evaluation.settings.seeds == (2024, 2024)
    assert torch.equal(evaluation.images[0], evaluation.images[1])  # the same pictures from the same x_T
    own = pipe(lq, references, **{**SAMPLING["paper-evaluation"], **short})
    assert not torch.equal(own.images[0], own.images[1])
    assert SAMPLING["paper-evaluation"]["num_inference_steps"] == 100
    steps = uniform_timesteps(1000, 100)
    assert (steps[0], steps[-1], len(steps)) == (991, 1, 100)
    with pytest.raises(UnknownNameError, match="paper-evaluation"):
        sampling("paper", 1)
    with pytest.raises(ConfigError, match="at least one"):
        sampling("release", 0)
    with pytest.raises(UnknownNameError, match="trailing"):
        pipe(lq, timestep_spacing="trail")


def test_references_go_through_the_encoder_as_one_strip(pipe):
    from refbfr_core.pipelines import encode_references

    references = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        strip = encode_references(pipe.vq, references, encoding=pipe.config.reference_encoding)
        whole = encode_latents(pipe.vq, torch.cat([references[:, 0], references[:, 1]], dim=-1))
    torch.testing.assert_close(torch.cat([strip[:, 0], strip[:, 1]], dim=-1), whole)


def test_the_full_size_benchmark_measures_every_stage(at_home, monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("refldm_full_size", folder / "refldm_full_size.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "refldm_full_size", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "case", lambda count: (torch.rand(1, 3, 32, 32), torch.rand(1, count, 3, 32, 32)))
    rows = {row.quantity: row for row in module.restore(at_home.parent, references=2, steps=2)}
    assert rows["all 2 steps"].references == 2
    parts = [
        rows[name].value
        for name in rows
        if name.startswith(("encoding", "reference passes", "all 2 steps", "decoding"))
    ]
    assert len(parts) == 5 and all(value > 0 for value in parts)
    total = rows["restoration, without loading"].value
    assert 0.5 * total < sum(parts) <= total
    assert 0.05 < rows["peak memory"].value < 64


# ---- the command line


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.setattr(published_import, "read_refldm", lambda state, _: published_ldm.read_refldm(state, SMALL))
    readers = {
        name: (recognises, lambda state, _, read=read: read(state, SMALL))
        for name, (recognises, read) in published_import._READERS.items()
    }
    monkeypatch.setattr(published_import, "_READERS", readers)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def test_import_from_the_command_line(cli, released, tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    refused = cli("weights", "import", *released)
    assert refused.exit_code == 1
    assert "Licence: non-commercial" in refused.stderr and "--accept-licence" in refused.stderr
    done = cli("weights", "import", *released, "--accept-licence")
    assert done.exit_code == 0, done.output
    assert "Licence: non-commercial" in done.stderr
    assert f"refldm-unet: imported into {tmp_path / 'paper' / 'refldm-unet'}" in done.stdout
    assert "exponential moving average" in done.stdout
    again = cli("weights", "import", *released)
    assert again.exit_code == 0 and "refldm-vq: already in" in again.stdout
    assert f"imported, SHA-256 {file_digest(released[0])}" in cli("weights", "list").stdout
    whole = cli("weights", "verify", "--profile", "paper")
    assert whole.exit_code == 0 and "refldm-unet: whole" in whole.output and "judge" not in whole.output


def test_the_warning_about_a_missing_average_reaches_the_command_line(cli, tmp_path):
    plain = {name: x for name, x in sample_refldm(SMALL).items() if not name.startswith("model_ema.")}
    path, _ = write_released(tmp_path, refldm=plain)
    done = cli("weights", "import", path, "--accept-licence", "--root", tmp_path / "paper")
    assert done.exit_code == 0
    assert "warning: refldm.ckpt holds no averaged weights" in done.stderr


def test_doctor_knows_what_was_imported(at_home, released, tmp_path, monkeypatch):
    def paper():
        return {one.name: one for one in examination.examine() if one.section == "weights, paper"}

    found = paper()["refldm-unet"]
    assert (found.status, found.cure) == (examination.OK, "")
    assert file_digest(released[0]) in found.detail and "non-commercial" in found.detail
    shutil.copytree(at_home, tmp_path / "paper")
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    (tmp_path / "paper" / "refldm-vq" / "config.json").unlink()
    assert "config.json is missing" in paper()["refldm-vq"].detail
    assert paper()["refldm-vq"].cure == "refbfr weights import vqgan.ckpt"
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path / "empty"))
    missing = paper()["refldm-vq"]
    assert missing.status == examination.MISSING and "download/1.0.0/vqgan.ckpt" in missing.cure
    assert not (tmp_path / "empty").exists()
    assert json.dumps(missing.detail)
