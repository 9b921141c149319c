"""The README's picture comes from a finished study and from nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from refbfr_core.errors import ConfigError
from refbfr_core.images import write_image
from refbfr_core.notebook.study_figure import study_figure


def test_study_becomes_a_figure_with_its_settings_and_table(tmp_path):
    study, figures = tmp_path / "study", tmp_path / "figures"
    study.mkdir()
    with pytest.raises(ConfigError, match=r"grid\.png, settings\.json, table\.txt"):
        study_figure(study, figures)
    write_image(study / "grid.png", torch.rand(1, 3, 40, 60))
    (study / "settings.json").write_text('{"people": 128}')
    (study / "table.txt").write_text("ids 0.5\n\npictures: somewhere/grid.png\n")
    made = study_figure(study, figures)
    assert made.path == figures / "restoration_grid.jpg"
    assert json.loads((figures / "restoration_grid.json").read_text())["settings"] == {"people": 128}
    assert (figures / "restoration_table.txt").read_text() == "ids 0.5\n"
