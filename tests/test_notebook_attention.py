"""Exact places in drawn faces, attention over pictures, and controls that appear only where they work."""

from __future__ import annotations

import pytest
import torch

from refbfr_core import notebook as nb
from refbfr_core.errors import ConfigError
from refbfr_core.faces import ToyFaces
from refbfr_core.notebook.live import SESSION_VARIABLE


@pytest.fixture(scope="module")
def faces():
    toy = ToyFaces(64)
    people = toy.identities(1, seed=0, split="val").replace(mole0_size=1.0, mole0_a=0.5, mole0_b=-0.2, skin_tone=-0.6)
    views = toy.views(people, 2, seed=0).replace(yaw=0.0, glasses=torch.tensor([[1.0, -1.0]]))
    return toy, people, views


def test_places_are_where_the_features_are(faces):
    toy, people, views = faces
    places = nb.feature_places(*faces)
    assert {name: tuple(place.shape) for name, place in places.items()} == dict.fromkeys(places, (1, 2, 2))
    assert places["glasses"][0, 0].isfinite().all() and places["glasses"][0, 1].isnan().all()
    for name in ("mouth", "eye", "nose", "chin", "mole"):
        assert ((places[name] > 0) & (places[name] < 1)).all(), name
    eye, nose, mouth, chin = (places[name][0, 1] for name in ("eye", "nose", "mouth", "chin"))
    assert eye[1] < nose[1] < mouth[1] < chin[1] and eye[0] < nose[0]
    # The mole was put on the right cheek; the picture is darker there than without it.
    x, y = (places["mole"][0, 1] * 64).long().tolist()
    assert places["mole"][0, 1, 0] > nose[0]
    spot = [toy.render(who, views).images[0, 1, :, y, x].mean() for who in (people, people.replace(mole0_size=-1.0))]
    assert spot[0] < spot[1] - 0.05
    gone = nb.feature_places(toy, people.replace(mole0_size=-1.0), views)["mole"]
    # No mole at all, or another of the person's own: never the one that was taken away.
    assert gone.isnan().all() or (gone - places["mole"]).abs().amax() > 0.02


def test_glow_is_grey_without_weight_and_coloured_block_by_block_with_it():
    picture = torch.rand(3, 8, 8)
    weights = torch.zeros(2, 2)
    weights[0, 1] = 3.0
    out = nb.glow(picture, weights, full=3.0)
    assert out.shape == picture.shape and 0 <= float(out.min()) <= float(out.max()) <= 1
    dark = out[:, 4:]
    assert torch.allclose(dark, 0.75 * picture[:, 4:].mean(0, keepdim=True).expand_as(dark))
    assert (out[0, :4, 4:] - out[2, :4, 4:]).min() > 0.8
    assert torch.equal(nb.glow(picture, weights, full=1.0), out)
    for wrong in ({"weights": -weights}, {"full": 0.0}, {"weights": weights[None]}):
        with pytest.raises(ConfigError, match="expected"):
            nb.glow(**{"picture": picture, "weights": weights, "full": 1.0, **wrong})


def test_ring_changes_only_pixels_around_the_point():
    picture = torch.full((3, 64, 64), 0.5)
    out = nb.ring(picture, torch.tensor([0.25, 0.75]))
    changed = (out != picture).any(dim=0).nonzero().float() + 0.5
    assert len(changed) > 8 and (changed - torch.tensor([48.0, 16.0])).norm(dim=1).max() < 8
    assert torch.equal(out[:, 48, 16], picture[:, 48, 16]) and {0.0, 1.0} <= set(out.unique().tolist())


def test_tiled_keeps_every_picture():
    pictures = [torch.full((3, 4, 5), value) for value in (0.1, 0.2, 0.3)]
    out = nb.tiled(pictures, columns=2, gap=1)
    assert out.shape == (3, 9, 11)
    assert out[0, 0, 0] == pictures[0][0, 0, 0] and out[0, 0, 6] == pictures[1][0, 0, 0]
    assert out[0, 5, 0] == pictures[2][0, 0, 0] and out[0, 5, 6] == 1.0 and out[0, 4, 0] == 1.0
    with pytest.raises(ConfigError):
        nb.tiled([])
    with pytest.raises(ConfigError):
        nb.tiled([pictures[0], torch.zeros(3, 2, 2)])


def test_shifted_moves_pixels():
    picture = torch.arange(12.0).reshape(1, 3, 4)
    assert nb.shifted(picture, 1, 0)[0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert nb.shifted(picture, 0, -1)[0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]


def test_controls_appear_only_where_somebody_can_move_them(monkeypatch):
    drawn = []
    monkeypatch.delenv(SESSION_VARIABLE, raising=False)
    assert nb.live(drawn.append, x=[1, 2]) is None
    monkeypatch.setenv(SESSION_VARIABLE, "notebook.ipynb")
    assert nb.live(drawn.append, show=False, x=[1, 2]) is None
    with pytest.raises(ConfigError):
        nb.live(drawn.append)
    with pytest.raises(ConfigError):
        nb.live(drawn.append, x=[])
    pytest.importorskip("ipywidgets")

    def draw(x, y):
        drawn.append((x, y))

    control = nb.live(draw, x=[1, 2], y=("a", "b"))
    control.update()
    control.children[0].value = 2
    assert drawn[0] == (1, "a") and drawn[-1] == (2, "a")
