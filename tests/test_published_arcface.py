"""PGDiff's ArcFace file becomes the paper profile's "arcface": whole, or not at all."""

from __future__ import annotations

import pytest
import torch

from refbfr_core.errors import WeightsError
from refbfr_core.models import IResNet
from refbfr_core.weights import import_published, load_network
from refbfr_core.weights.registry import NETWORKS


@pytest.fixture
def released(tmp_path):
    """A file in the released layout, with random weights and half the tensors' type of a mixed-precision training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = IResNet(layers=(2, 2, 2, 2)).eval()
    path = tmp_path / "arcface.pth"
    torch.save(network.state_dict(), path)
    return path, network


def test_the_file_becomes_a_network_that_computes_the_same(released, tmp_path):
    path, network = released
    (made,) = import_published([path], accept=lambda entry: True, root=tmp_path / "weights")
    assert made.name == "arcface" and made.fresh
    loaded = load_network("arcface", profile="paper", device="cpu", root=tmp_path / "weights")
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-4)
    assert NETWORKS["arcface"].published["paper"].filename == "ms1mv3_arcface_r50_fp16.pth"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state: state.pop("layer2.1.conv1.weight"), "layer2.1.conv1.weight"),
        (lambda state: state["fc.weight"].fill_(float("nan")), "NaN"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
    ],
)
def test_a_damaged_file_is_refused(released, tmp_path, damage, says):
    path, network = released
    state = network.state_dict()
    damage(state)
    torch.save(state, path)
    with pytest.raises(WeightsError, match=says):
        import_published([path], accept=lambda entry: True, root=tmp_path / "weights")
    assert not (tmp_path / "weights" / "arcface").exists()
