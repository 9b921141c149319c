"""Contact sheets keep every pixel and say what made them."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from refbfr_core.faces import ToyFaces
from refbfr_core.notebook.contact_sheet import contact_sheet


def test_sheet_holds_people_in_rows_and_views_in_columns(tmp_path):
    made = contact_sheet(64, people=3, views=2, columns=2, folder=tmp_path)
    sheet = np.asarray(Image.open(made.path))
    assert sheet.shape == (2 * 64, 2 * 2 * 64, 3)
    faces = ToyFaces(64)
    people = faces.identities(3, 0, "test")
    images = faces.render(people, faces.views(people, 2, 0)).images
    second_person_second_view = torch.from_numpy(sheet[64:, 64:128] / 255.0).permute(2, 0, 1)
    assert (second_person_second_view - images[1, 1]).abs().mean() < 0.02
    assert (sheet[80:, 144:] > 250).all(), "the place of the missing fourth person is white"
    record = json.loads((tmp_path / "contact_sheet_64.json").read_text())
    assert record["settings"]["people"] == 3 and "drawn people" in record["alt"]
