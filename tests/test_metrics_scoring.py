"""The scorer of tables: every network loaded once, and a reason for every score that cannot be computed."""

from __future__ import annotations

import json
from pathlib import Path

import golden_faces as golden
import pytest
import torch
from torch import Tensor

from refbfr_core.benchmark import scoring
from refbfr_core.benchmark.scoring import Scorer, computable, photo_judge
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.images import from_uint8, read_image
from refbfr_core.metrics import REGISTRY, compute
from refbfr_core.models import FaceEmbedder
from refbfr_core.weights import load_network


@pytest.fixture(scope="module")
def faces() -> tuple[Tensor, Tensor, Tensor]:
    """Ruined, true, and the masks of the true."""
    ruined, truth = (from_uint8(golden.read(name)) for name in ("ruined", "truth"))
    return ruined, truth, torch.from_numpy(golden.read("mask"))[:, None].float() / 255


@pytest.fixture
def judge() -> FaceEmbedder:
    return FaceEmbedder(widths=(4, 8), blocks=(1, 1), embedding_dim=8).eval()


def test_every_toy_score_in_one_call(faces: tuple[Tensor, Tensor, Tensor]) -> None:
    ruined, truth, mask = faces
    names, reasons = computable(tuple(REGISTRY), True, True, True, "toy")
    assert {"psnr-y", "flpips-toy", "niqe-toy", "ids", "deg-over-1", "detail"} <= set(names)
    assert set(reasons) >= {"niqe", "musiq", "lmd"} and "photographs only" in reasons["niqe"]
    rows = Scorer(names, load_network("judge", device="cpu"))(ruined, truth, mask)
    assert len(rows) == 3 and tuple(rows[0]) == names
    values = json.loads((golden.FOLDER / "values.json").read_text(encoding="utf-8"))
    for name in set(names) & set(values):
        found = [row[name] for row in rows]
        assert found == pytest.approx(values[name], abs=golden.TOLERANCES[name]), name


def test_each_network_is_loaded_once(
    faces: tuple[Tensor, Tensor, Tensor], judge: FaceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruined, truth, mask = faces
    asked: list[str] = []

    def load(name: str, **keywords: object) -> torch.nn.Module:
        asked.append(name)
        return load_network(name, **keywords)

    monkeypatch.setattr(scoring, "load_network", load)
    monkeypatch.setattr("refbfr_core.weights.load_network", load)
    scorer = Scorer(("lpips-toy", "flpips-toy", "ids", "deg", "textures"), judge)
    for _ in range(2):
        scorer(ruined, truth, mask)
    assert sorted(asked) == ["judge", "perceptual"]  # the judge for the textures


def test_scores_without_a_truth(faces: tuple[Tensor, Tensor, Tensor]) -> None:
    ruined = faces[0]
    scorer = Scorer(("niqe-toy",))
    rows = scorer(ruined, None)
    assert [row["niqe-toy"] for row in rows] == compute("niqe-toy", ruined).tolist()
    with pytest.raises(ImageContractError, match="no target"):
        Scorer(("niqe-toy", "psnr"))(ruined, None)


def test_protocols_name_the_embedder(judge: FaceEmbedder) -> None:
    protocols = Scorer(("ids", "psnr"), judge, embedder="w600k_r50, abcd").protocols
    assert protocols["ids"].endswith("embedder here: w600k_r50, abcd") and "embedder" not in protocols["psnr"]


def test_bad_orders_are_refused_at_once(judge: FaceEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UnknownNameError, match="'psnr'"):
        Scorer(("psrn",), judge)
    with pytest.raises(ConfigError, match="named twice"):
        Scorer(("psnr", "psnr"), judge)
    with pytest.raises(ConfigError, match="ids, deg compare embeddings"):
        Scorer(("psnr", "ids", "deg"))
    for name, asset in (("lpips", "lpips-vgg16"), ("niqe", "niqe-statistics"), ("musiq", "musiq-koniq")):
        with pytest.raises(WeightsError, match=f"refbfr weights get {asset}"):
            Scorer((name,))
    with pytest.raises(ConfigError, match="looks at the face only"):
        Scorer(("flpips-toy",))(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "has", "profile", "said"),
    [
        ("psnr", (False, True, True), "paper", "has none"),
        ("flpips-toy", (True, False, True), "toy", "face mask"),
        ("flpips", (True, False, False), "paper", "face mask"),
        ("niqe-toy", (True, True, True), "paper", "drawn faces only"),
        ("textures", (True, True, True), "paper", "drawn faces only"),
        ("musiq", (True, True, True), "toy", "photographs only"),
        ("lmd", (True, True, True), "toy", "no detector"),
        ("lmd", (False, False, False), "paper", "has none"),
        ("ids", (False, False, False), "paper", "has none"),
    ],
)
def test_what_cannot_be_computed_has_a_reason(name: str, has: tuple[bool, bool, bool], profile: str, said: str) -> None:
    names, reasons = computable((name, "bias-red"), *has, profile, look=False)
    assert said in reasons[name] and name not in names
    assert ("bias-red" in names) == has[0]


def test_what_can_be_computed_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("psnr", "ids", "deg-over-1", "lpips", "niqe", "musiq")
    assert computable(wanted, True, False, False, "paper", look=False) == (wanted, {})
    assert computable(("niqe", "musiq"), False, False, False, "paper", look=False)[0] == ("niqe", "musiq")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    names, reasons = computable(wanted, True, False, False, "paper")
    assert names == ("psnr", "ids", "deg-over-1")  # an embedder of photographs is the caller's
    assert "refbfr weights get musiq-koniq" in reasons["musiq"]
    with pytest.raises(UnknownNameError, match="'niqe'"):
        computable(("nqie",), True, True, True, "toy")


def test_an_onnx_recogniser_judges_photographs(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    kit = shared_dir / "faces"
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(kit / "models" / "insightface"))
    monkeypatch.setenv("TORCH_HOME", str(kit / "models" / "torch_home"))
    person = kit / "photos" / "identities" / "refldm"
    target, lq, reference = (read_image(person / f"{name}.png") for name in ("target", "lq", "ref_00"))
    found = photo_judge(alignment="ffhq")
    named = photo_judge(kit / "models/insightface/models/kit/w_mobilefacenet128.onnx", alignment="ffhq")
    names, _ = computable(("ids", "niqe", "psnr", "lmd"), True, False, False, "paper")
    scorer = Scorer(names, found, embedder="w_mobilefacenet128")
    rows = scorer(torch.cat([lq, reference]), target.expand(2, -1, -1, -1))
    assert rows[1]["ids"] > 0.6 > 0.4 > rows[0]["ids"]
    assert rows[0]["niqe"] == pytest.approx(18.53, abs=0.01)
    again = Scorer(("ids",), named)(lq, target)
    assert again[0]["ids"] == pytest.approx(rows[0]["ids"], abs=1e-5)
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(kit / "photos"))
    with pytest.raises(WeightsError, match="no InsightFace model pack"):
        photo_judge()
