"""IResNet against the arrays recorded from the released ArcFace code, and what its converter refuses."""

from __future__ import annotations

import numpy as np
import parity_arcface as parity
import pytest
import torch

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.faces.alignment import FFHQ_POINTS_512
from refbfr_core.models import IResNet
from refbfr_core.models.iresnet import DEPTHS
from refbfr_core.models.recognition import ARCFACE_POINTS_112, align_faces
from refbfr_core.weights import convert


@pytest.fixture(scope="module")
def recorded() -> parity.Recorded:
    return parity.read()


@pytest.fixture(scope="module")
def network(recorded) -> IResNet:
    return parity.load(recorded)


# ---- the recorded arrays


def test_the_carried_arrays_are_the_shared_ones(shared_dir):
    assert parity.CARRIED.read_bytes() == (shared_dir / "parity/pdgrad/arcface_iresnet.npz").read_bytes()


def test_weights_and_pictures_are_regenerated(recorded):
    keys, sums = recorded.arrays["state_keys"], recorded.arrays["state_abs_sum"]
    ours = {key for key in map(str, keys) if not key.endswith("num_batches_tracked")}
    assert set(recorded.state) == ours
    for key, total in zip(map(str, keys), sums, strict=True):
        if key in recorded.state:
            assert float(recorded.state[key].double().abs().sum()) == pytest.approx(float(total), rel=1e-6), key
    np.testing.assert_array_equal(recorded.pictures[..., :4, :4].numpy(), recorded.arrays["x_head"])
    assert float(recorded.pictures.double().sum()) == pytest.approx(float(recorded.arrays["x_sum"]), abs=1e-6)


def test_names_are_the_released_ones(recorded, network):
    names = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    recorded_names = {str(name) for name in recorded.arrays["state_keys"]}
    assert names == {name for name in recorded_names if not name.endswith("num_batches_tracked")}


def test_activations_in_float64(network, recorded):
    parity.compare_activations(network, recorded)


def test_embedding_in_float64(network, recorded):
    parity.compare_embedding(network, recorded)


def test_distances_and_gradients_in_float64(network, recorded):
    parity.compare_guidance(network, recorded)


def test_float32_at_its_own_tolerance(recorded):
    single = parity.load(recorded, torch.float32)
    parity.compare_embedding(single, recorded, parity.SINGLE)
    parity.compare_guidance(single, recorded, parity.SINGLE)


def test_what_was_recorded_as_low_level_is_what_guidance_taps(recorded, network):
    assert [name.replace("_", ".") for name in map(str, recorded.arrays["low_names"])] == list(network.taps)
    shapes = [tuple(part.shape) for part in network.guidance_features(recorded.pictures[:1].double())]
    assert shapes == [(1, 64, 112, 112), (1, 64, 56, 56), (1, 128, 28, 28), (1, 32)]


# ---- the converter


def test_outer_names_and_counters_make_no_difference(recorded, network):
    with_counters = {f"{norm}.num_batches_tracked": torch.tensor(7) for norm in ("bn1", "features", "layer3.1.bn2")}
    state = {f"module.{name}": tensor for name, tensor in {**recorded.state, **with_counters}.items()}
    again = convert.convert_arcface_iresnet(state)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in recorded.state.items())
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.config.num_features == 32


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_published_depth_is_told_from_its_names(depth):
    with torch.device("meta"):
        state = IResNet(DEPTHS[depth]).state_dict()
    counted = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(("tracked", "mean", "var")))
    if depth in (50, 100):  # millions of parameters, as papers report them
        assert counted / 1e6 == pytest.approx({50: 43.59, 100: 65.15}[depth], abs=0.01)
    assert tuple(convert.convert_arcface_iresnet(state).config.layers) == DEPTHS[depth]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("layer2.1.prelu.weight"), r"IResNet-18: 1 missing \(layer2.1.prelu.weight\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 superfluous \(extra\)"),
        (lambda state: state.update({"x.num_batches_tracked": torch.tensor(1)}), r"superfluous \(x.num_batches"),
        (lambda state: state.update({"conv1.weight": torch.zeros(64, 3, 7, 7)}), r"conv1.weight is \(64, 3, 7, 7\)"),
        (lambda state: state.update({"bn1.bias": torch.zeros(64, dtype=torch.int64)}), r"1 not floating \(bn1.bias\)"),
        (lambda state: [state.pop(name) for name in list(state) if "layer3.1" in name], "2, 2, 1, 2 blocks"),
        (lambda state: state.update({"layer5.0.bn1.weight": torch.zeros(64)}), "no IResNet"),
        (lambda state: state.pop("fc.bias"), "fc.bias"),
        (lambda state: state.update(epoch=3), "'epoch' is a int"),
        (lambda state: state.clear(), "it is empty"),
    ],
)
def test_what_does_not_fit_is_named(recorded, change, said):
    state = dict(recorded.state)
    change(state)
    with pytest.raises(WeightsError, match=said):
        convert.convert_arcface_iresnet(state)


def test_a_prefix_on_some_names_only_is_no_prefix(recorded):
    state = {("module." if name == "conv1.weight" else "") + name: each for name, each in recorded.state.items()}
    with pytest.raises(WeightsError, match="1 missing"):
        convert.convert_arcface_iresnet(state)


# ---- the module


def test_wrong_settings_are_refused():
    with torch.device("meta"):
        for layers in ((2, 2, 2), (2, 2, 2, 0)):
            with pytest.raises(ConfigError, match="four stages"):
                IResNet(layers)
        with pytest.raises(UnknownNameError, match="Did you mean 'layer1.1'"):
            IResNet(DEPTHS[18], taps=("prelu", "layer1.2", "layer2.1"))
        with pytest.raises(UnknownNameError, match="ffhq"):
            IResNet(DEPTHS[18], alignment="fhq")
    network = IResNet((1, 1, 1, 1), 8, taps=("prelu",))
    with pytest.raises(ImageContractError, match=r"preprocess"):
        network(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ConfigError, match="training mode"):
        network.train().guidance_features(torch.zeros(2, 3, 112, 112))


def test_saving_and_loading_give_the_same_network(tmp_path):
    network = IResNet((1, 1, 1, 1), 8, alignment="ffhq", taps=("layer2.0", "prelu", "layer4.0")).eval()
    network.save_pretrained(tmp_path)
    again = IResNet.from_pretrained(tmp_path)
    faces = torch.rand(1, 3, 128, 128) * 2 - 1
    assert again.alignment == "ffhq"
    features = again.guidance_features(faces)
    assert [part.shape[1] for part in features] == [128, 64, 512, 8]
    assert all(torch.equal(a, b) for a, b in zip(features, network.guidance_features(faces), strict=True))
    # The raw vector is what guidance gets; scores get its direction.
    torch.testing.assert_close(again.embed(faces), features[-1] / features[-1].norm())


def test_features_do_not_depend_on_the_batch():
    network = IResNet((1, 1, 1, 1), 8, taps=("prelu", "layer1.0", "layer2.0")).eval().double()
    faces = torch.rand(2, 3, 112, 112, dtype=torch.float64) * 2 - 1
    alone = network.guidance_features(faces[1:])
    for together, single in zip(network.guidance_features(faces), alone, strict=True):
        torch.testing.assert_close(together[1:], single)


# ---- the door


def _dots(points: np.ndarray, side: int, spread: float) -> torch.Tensor:
    """A picture with a soft dot of its own at each point, in [-1, 1]: (5, 3, side, side), one picture a point."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pictures = [torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * spread**2)) for px, py in points]
    return (2 * torch.stack(pictures)[:, None] - 1).expand(-1, 3, -1, -1).float().contiguous()


@pytest.mark.parametrize("side", [512, 256, 128])
def test_the_fixed_warp_brings_the_five_points_to_arcfaces(side):
    points = (np.asarray(FFHQ_POINTS_512) + 0.5) * side / 512 - 0.5
    crops = (align_faces(_dots(points, side, side / 60), "ffhq")[:, 0] + 1) / 2
    assert crops.shape == (5, 112, 112)
    steps = torch.arange(112.0)
    mass = crops / crops.sum((1, 2), keepdim=True)
    found = torch.stack([(mass.sum(1) * steps).sum(1), (mass.sum(2) * steps).sum(1)], dim=1).numpy()
    # A similarity has four numbers and the points ten: they land near, and their mean lands on the spot.
    off = found - np.asarray(ARCFACE_POINTS_112)
    assert np.abs(off).max() < 2.5
    assert np.abs(off.mean(0)).max() < 0.1


def test_resizing_is_the_librarys_and_leaves_112_alone():
    faces = torch.rand(2, 3, 200, 160) * 2 - 1
    expected = torch.nn.functional.interpolate(faces, (112, 112), mode="bilinear", antialias=True)
    assert torch.equal(align_faces(faces, "resize"), expected)
    assert align_faces(faces[..., :112, :112], "resize").equal(faces[..., :112, :112])


@pytest.mark.parametrize("alignment", ["resize", "ffhq", "crop"])
def test_gradients_reach_the_pictures_without_gaps(alignment):
    faces = (torch.rand(1, 3, 512, 512, dtype=torch.float64) * 2 - 1).requires_grad_()
    aligned = align_faces(faces, alignment)
    assert aligned.dtype == torch.float64
    aligned.sum().backward()
    # Every pixel of the face counts; without antialiasing two of three would not.
    assert (faces.grad[..., 90:420, 90:420].abs() > 1e-4).all()


def test_pictures_of_the_wrong_shape_are_refused():
    with pytest.raises(ImageContractError, match="160x200"):
        align_faces(torch.zeros(1, 3, 200, 160), "ffhq")
    for alignment in ("resize", "ffhq", "crop"):
        with pytest.raises(ImageContractError, match=r"\(B, 3, H, W\)"):
            align_faces(torch.zeros(3, 200, 200), alignment)
