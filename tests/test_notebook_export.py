"""Exported figures carry their provenance, a failed export leaves nothing behind, and `start` checks its parameters."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refbfr_core.errors import ConfigError, DiskFullError, OutputError, UnknownNameError
from refbfr_core.notebook import (
    beside_paper,
    blank_figure,
    figures_folder,
    image_grid,
    measured_time,
    save_figure,
    show,
    start,
    table,
    versions,
    workbook_root,
)

ALT = "A rising straight line from zero to one."
MADE_BY = "tests/test_notebook_export.py"


def line_figure():
    figure, axes = blank_figure()
    axes[0][0].plot([0, 1], [0, 1])
    return figure


def noise_figure():
    return image_grid(torch.rand(4, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_figure_and_sidecar_belong_together(tmp_path):
    picture = save_figure(
        line_figure(), "line", alt=ALT, made_by=MADE_BY, settings={"seed": 3, "steps": [1, 2]}, folder=tmp_path
    )
    sidecar = json.loads((tmp_path / "line.json").read_text())
    data = (tmp_path / "line.png").read_bytes()
    assert picture.data == data and sidecar["sha256"] == hashlib.sha256(data).hexdigest()
    assert (
        sidecar["alt"] == ALT and sidecar["made_by"] == MADE_BY and sidecar["settings"] == {"seed": 3, "steps": [1, 2]}
    )
    assert {"python", "torch", "matplotlib", "refbfr_core"} <= set(sidecar["versions"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["line.json", "line.png"]


def test_same_figure_gives_the_same_files(tmp_path):
    for folder in ("a", "b"):
        save_figure(line_figure(), "line", alt=ALT, made_by=MADE_BY, settings={}, folder=tmp_path / folder)
    for name in ("line.png", "line.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_picture_shows_itself_with_alternative_text():
    for kind, mime in (("png", "image/png"), ("jpg", "image/jpeg")):
        bundle, metadata = show(line_figure(), alt=ALT, kind=kind)._repr_mimebundle_()
        assert set(bundle) == {mime, "text/plain"} and metadata[mime]["alt"] == ALT


def test_size_is_bounded_by_lowering_the_resolution():
    large = show(noise_figure(), alt=ALT, kind="jpg", max_bytes=2_000_000)
    small = show(noise_figure(), alt=ALT, kind="jpg", max_bytes=len(large.data) - 1)
    assert len(small.data) < len(large.data)
    assert Image.open(io.BytesIO(small.data)).width < Image.open(io.BytesIO(large.data)).width
    with pytest.raises(ConfigError, match="kind='jpg'"):
        show(noise_figure(), alt=ALT, max_bytes=1000)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"alt": ""}, ConfigError),
        ({"name": "../outside"}, ConfigError),
        ({"name": "Has Spaces"}, ConfigError),
        ({"made_by": " "}, ConfigError),
        ({"settings": {"network": object()}}, ConfigError),
        ({"settings": {"psnr": float("nan")}}, ConfigError),
        ({"kind": "jpgg"}, UnknownNameError),
    ],
    ids=["no alt", "path as name", "spaces", "no maker", "not json", "nan", "unknown kind"],
)
def test_bad_exports_are_refused_before_anything_is_written(tmp_path, options, error):
    arguments = {"name": "line", "alt": ALT, "made_by": MADE_BY, "settings": {}, "folder": tmp_path} | options
    with pytest.raises(error):
        save_figure(line_figure(), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "error", "cure"),
    [(errno.ENOSPC, DiskFullError, "Free some space"), (errno.EROFS, OutputError, "you may write to")],
    ids=["full disk", "read-only disk"],
)
@pytest.mark.parametrize("victim", [".png", ".json"])
def test_failed_writing_leaves_no_picture_without_provenance(tmp_path, monkeypatch, victim, number, error, cure):
    real = Path.write_bytes

    def fails(self, data):
        if self.suffix == victim:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(error, match=cure):
        save_figure(line_figure(), "line", alt=ALT, made_by=MADE_BY, settings={}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_folder_is_a_clear_error(tmp_path):
    (tmp_path / "figures").write_text("not a folder")
    with pytest.raises(OutputError, match="figures"):
        save_figure(line_figure(), "line", alt=ALT, made_by=MADE_BY, settings={}, folder=tmp_path / "figures")


def test_figures_folder_follows_the_variable_then_the_workbook(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_FIGURES", str(tmp_path / "elsewhere"))
    assert figures_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("REFBFR_FIGURES")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "refbfr_core"\n')
    (tmp_path / "notebooks").mkdir()
    assert workbook_root(tmp_path / "notebooks") == tmp_path.resolve()
    assert figures_folder(tmp_path / "notebooks") == tmp_path.resolve() / "figures"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert workbook_root(tmp_path / "notebooks") is None


# ---------------------------------------------------------------- start


def test_start_prints_what_the_run_is_made_with(capsys, tmp_path, monkeypatch):
    session = start("03_diffusion_from_scratch", seed=7, device="cpu")
    printed = capsys.readouterr().out
    assert "toy profile, seed 7" in printed and f"torch {versions()['torch']}" in printed and "time: " in printed
    monkeypatch.setenv("REFBFR_FIGURES", str(tmp_path))
    session.save(line_figure(), "line", alt=ALT, points=2)
    with pytest.raises(ConfigError, match="max_bytes=50"):
        session.save(line_figure(), "too_small", alt=ALT, max_bytes=50)
    sidecar = json.loads((tmp_path / "line.json").read_text())
    assert sidecar["made_by"] == "notebooks/03_diffusion_from_scratch.ipynb"
    assert sidecar["settings"] == {"profile": "toy", "seed": 7, "points": 2}


def test_start_refuses_bad_parameters():
    with pytest.raises(UnknownNameError, match="'toy'"):
        start("00", profile="toyy")
    for seed in (-1, 1.5, True, "0"):
        with pytest.raises(ConfigError, match="seed"):
            start("00", seed=seed)
    with pytest.raises(ConfigError):
        start("00", device="no such device")


def test_measured_time_comes_from_the_file(tmp_path):
    path = tmp_path / "measured.json"
    assert "not measured" in measured_time("00_start_here", path)
    path.write_text(json.dumps({"notebooks": {"00_start_here": {"seconds": 41.6, "machine": "2 cores"}}}))
    assert measured_time("00_start_here", path) == "about 42 s when last measured (2 cores)"
    assert "not measured" in measured_time("01_other", path)
    for damage in ("{", "[]", '{"notebooks": {"00_start_here": {"seconds": "x"}}}'):
        path.write_text(damage)
        with pytest.raises(ConfigError, match="damaged"):
            measured_time("00_start_here", path)


# ---------------------------------------------------------------- tables


def test_table_rounds_for_display_and_keeps_the_numbers():
    shown = table(
        [{"arm": "<right>", "ids": np.float64(0.123456)}, {"arm": "none", "ids": float("nan")}], caption="IDS, n = 2"
    )
    text = shown._repr_html_()
    assert "&lt;right&gt;" in text and '<td style="text-align:left">0.123</td>' in text and "–" in text
    assert "<caption" in text and "IDS, n = 2" in repr(shown) and shown.frame["ids"][0] == 0.123456


def test_table_beside_the_paper():
    text = repr(
        beside_paper([("gap", 0.25, 0.44, "Table 7"), ("time", 3.0, None, "–")], caption="Here and in the paper")
    )
    assert "0.250" in text and "0.440" in text and "measured here" in text and "Table 7" in text


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}]], ids=["no rows", "different keys"])
def test_table_refuses_bad_rows(rows):
    with pytest.raises(ConfigError):
        table(rows, caption="c")
    with pytest.raises(ConfigError, match="caption"):
        table([{"a": 1}], caption=" ")
