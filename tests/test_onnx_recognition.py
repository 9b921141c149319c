"""Recognisers from ONNX files as differentiable twins: equal to ONNX Runtime, or refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import parity_arcface as parity
import pytest
import torch
import torch.nn.functional as F
from drawn_datasets import make_ffhq_ref
from tiny_refldm_full import TINY, tiny_first_stage

from refbfr_core.errors import ConfigError, ImageContractError, MissingExtraError, UnknownNameError, WeightsError
from refbfr_core.models import IResNet, onnx_twin
from refbfr_core.training import read_log, run_full
from refbfr_core.training.identity import identity_loss
from refbfr_core.training.launch_full import load_identity
from refbfr_core.weights import convert, load_onnx_recognition
from refbfr_core.weights.onnx_recognition import compare_with_runtime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  optional

# ---- graphs made here


OUTPUTS = {"out": ("N", "D"), "sum2": ("N", 8, 14, 14)}


def write(path: Path, nodes: list, constants: dict, side: int = 112, outputs=("out",), batch="N") -> Path:
    """A model of `nodes` from "faces" to `outputs`."""
    axes = [batch, 3, side, side] if side else [batch, 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("faces", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, OUTPUTS[name]) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(path))
    return path


def residual(draws: np.random.Generator) -> tuple[list, dict[str, np.ndarray]]:
    """Two small stages with an addition each, to 8 x 14 x 14: what every graph here begins with."""
    node = helper.make_node
    weights = {f"w{i}": (0.3 * draws.normal(size=(8, 3 if i == 0 else 8, 3, 3))).astype(np.float32) for i in range(4)}
    nodes = [
        node("Conv", ["faces", "w0"], ["stem"], strides=[4, 4], pads=[1, 1, 1, 1], name="stem_conv"),
        node("Relu", ["stem"], ["active"]),
        node("Conv", ["active", "w1"], ["body1"], pads=[1, 1, 1, 1]),
        node("Add", ["active", "body1"], ["sum1"]),
        node("Conv", ["sum1", "w2"], ["down"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["down", "w3"], ["body2"], pads=[1, 1, 1, 1]),
        node("Add", ["down", "body2"], ["sum2"]),
    ]
    return nodes, weights


def head(draws: np.random.Generator, source: str) -> tuple[list, dict[str, np.ndarray]]:
    """From a feature map of 8 channels to 5 numbers."""
    nodes = [
        helper.make_node("GlobalAveragePool", [source], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w_head"], ["out"]),
    ]
    return nodes, {"w_head": draws.normal(size=(8, 5)).astype(np.float32)}


def graph_with(tmp_path: Path, *middle, constants: dict[str, np.ndarray] | None = None, **options) -> Path:
    """Stages, the nodes `middle` from "sum2" to "x" (none: nothing between), and the head."""
    draws = np.random.default_rng(0)
    begin, weights = residual(draws)
    end, more = head(draws, "x" if middle else "sum2")
    return write(tmp_path / "graph.onnx", [*begin, *middle, *end], {**weights, **more, **(constants or {})}, **options)


def _values(*shape: int, low: float = -1.0) -> np.ndarray:
    return np.random.default_rng(7).uniform(low, 1.0, shape).astype(np.float32)


MIDDLES = {
    "asymmetrical padding": (
        [("Conv", ["sum2", "a", "b"], {"pads": [0, 1, 2, 3], "strides": [2, 1], "group": 4})],
        {"a": _values(8, 2, 3, 3), "b": _values(8)},
    ),
    "dilation": ([("Conv", ["sum2", "a"], {"dilations": [2, 2], "pads": [2, 2, 2, 2]})], {"a": _values(8, 8, 3, 3)}),
    "depthwise": ([("Conv", ["sum2", "a"], {"group": 8, "kernel_shape": [14, 14]})], {"a": _values(8, 1, 14, 14)}),
    "slopes by channel": ([("PRelu", ["sum2", "a"], {})], {"a": _values(8, 1, 1)}),
    "one slope": ([("PRelu", ["sum2", "a"], {})], {"a": _values(1)}),
    "norm": (
        [("BatchNormalization", ["sum2", *"abcd"], {"epsilon": 0.1})],
        {"a": _values(8), "b": _values(8), "c": _values(8), "d": _values(8, low=0.1)},
    ),
    "clip at both ends": ([("Clip", ["sum2", "a", "b"], {})], {"a": np.float32(-0.2), "b": np.float32(1.5)}),
    "clip above": ([("Clip", ["sum2", "", "b"], {})], {"b": np.float32(0.5)}),
    "arithmetic": (
        [("Sub", ["sum2", "a"], {}), ("Mul", ["x0", "b"], {}), ("Div", ["x1", "c"], {}), ("Add", ["d", "x2"], {})],
        {"a": _values(1, 8, 1, 1), "b": _values(8, 1, 1), "c": _values(1, low=0.5), "d": _values(1, 8, 14, 14)},
    ),
    "dropped in training": ([("Dropout", ["sum2", "a"], {})], {"a": np.float32(0.4)}),
    "the same again": ([("Identity", ["sum2"], {})], {}),
    "there and back": (
        [("Reshape", ["sum2", "a"], {}), ("Gemm", ["x0", "b", "c"], {"alpha": 0.5, "beta": 2.0, "transB": 1}),
         ("Reshape", ["x1", "d"], {})],
        {"a": np.array([-1, 1568]), "b": _values(32, 1568), "c": _values(32), "d": np.array([0, 8, 2, 2])},
    ),
    "plain product": (
        [("Flatten", ["sum2"], {}), ("Gemm", ["x0", "b"], {}), ("Reshape", ["x1", "d"], {})],
        {"b": _values(1568, 32), "d": np.array([1, 8, 2, 2])},
    ),
}  # fmt: skip


def middle_nodes(steps: list) -> list:
    """Nodes in a row; the outputs are x0, x1, ... and at last x."""
    names = [*(f"x{i}" for i in range(len(steps) - 1)), "x"]
    return [
        helper.make_node(operator, inputs, [name], name=f"{operator}_to_{name}", **settings)
        for (operator, inputs, settings), name in zip(steps, names, strict=True)
    ]


@pytest.mark.parametrize("case", MIDDLES)
def test_every_operator_computes_what_onnx_runtime_computes(case, tmp_path):
    steps, constants = MIDDLES[case]
    # Reshaping to a batch of 1 is what files written for one face hold; ONNX Runtime takes such files one by one.
    batch = 1 if case == "plain product" else "N"
    path = graph_with(tmp_path, *middle_nodes(steps), constants=constants, batch=batch)
    twin = load_onnx_recognition(path)
    assert compare_with_runtime(twin, path) < 1e-5
    assert twin(torch.zeros(3, 3, 112, 112)).shape == (3, 5)
    assert twin.taps == ("active", "sum1", "sum2")


def test_the_cases_cover_all_operators(tmp_path):
    covered = {node.op_type for node in onnx.load(str(graph_with(tmp_path))).graph.node}
    covered |= {step[0] for steps, _ in MIDDLES.values() for step in steps}
    assert covered == set(onnx_twin.OPERATORS)


def test_constant_nodes_are_constants(tmp_path):
    middle = [
        helper.make_node("Constant", [], ["low"], value=numpy_helper.from_array(np.float32(-0.1))),
        helper.make_node("Constant", [], ["slope"], value=numpy_helper.from_array(_values(8, 1, 1))),
        helper.make_node("Identity", ["slope"], ["slope_again"]),
        helper.make_node("Clip", ["sum2", "low"], ["x0"]),
        helper.make_node("PRelu", ["x0", "slope_again"], ["x"]),
    ]
    twin = load_onnx_recognition(graph_with(tmp_path, *middle))
    assert [node.operator for node in twin.nodes][-5:-3] == ["Clip", "PRelu"]
    assert not any(parameter.requires_grad for parameter in twin.parameters())


# ---- an exported IResNet


@pytest.fixture(scope="module")
def iresnet() -> IResNet:
    recorded = parity.read()
    return convert.convert_arcface_iresnet(recorded.state)


@pytest.fixture(scope="module")
def exported(iresnet, tmp_path_factory) -> Path:
    """The recorded network, exported as the files of packs are: norms behind convolutions are folded away."""
    path = tmp_path_factory.mktemp("onnx") / "r18.onnx"
    names = {"input_names": ["faces"], "output_names": ["embedding"], "dynamic_axes": {"faces": {0: "N"}}}
    torch.onnx.export(iresnet, (torch.zeros(1, 3, 112, 112),), str(path), dynamo=False, **names)
    return path


@pytest.fixture(scope="module")
def twin(exported) -> onnx_twin.OnnxTwin:
    return load_onnx_recognition(exported)


pytestmark = pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")


def test_the_twin_of_an_exported_iresnet_passes_the_same_comparison(twin):
    # Folding rounds the weights in float32, so that float64 gives no more digits than float32.
    recorded = parity.read()
    parity.compare_embedding(twin, recorded, parity.SINGLE)
    parity.compare_guidance(twin.double(), recorded, parity.SINGLE)
    twin.float()


def test_its_taps_lie_where_the_iresnets_lie(twin, iresnet):
    faces = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(3)) * 2 - 1
    for ours, theirs in zip(twin.guidance_features(faces), iresnet.guidance_features(faces), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert torch.allclose(twin.embed(faces), F.normalize(iresnet(iresnet.preprocess(faces))), atol=1e-6)


def test_taps_can_be_named(exported, twin):
    named = load_onnx_recognition(exported, taps=("/layer4.0/Add_output_0",), alignment="ffhq")
    assert [part.shape[1] for part in named.guidance_features(torch.zeros(1, 3, 128, 128))] == [512, 32]
    with pytest.raises(UnknownNameError, match="value of this ONNX graph"):
        load_onnx_recognition(exported, taps=("layer4.0",))
    with pytest.raises(UnknownNameError, match="ffhq"):
        load_onnx_recognition(exported, alignment="fhq")
    assert "alignment='resize'" in repr(twin)


def test_doors_refuse_what_does_not_fit(twin):
    with pytest.raises(ImageContractError, match="preprocess"):
        twin(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ConfigError, match="training mode"):
        twin.train().guidance_features(torch.zeros(1, 3, 112, 112))
    twin.eval()


# ---- what is refused


def test_a_twin_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    path = graph_with(tmp_path)
    changed = dict(onnx_twin.OPERATORS)
    changed["Relu"] = onnx_twin.Operator(lambda _, x: F.leaky_relu(x, 0.01))
    monkeypatch.setattr(onnx_twin, "OPERATORS", changed)
    with pytest.raises(WeightsError, match=r"graph\.onnx differs from ONNX Runtime by .* allowed is 0.0001"):
        load_onnx_recognition(path)


def test_damaged_files_are_refused(tmp_path):
    path = graph_with(tmp_path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"graph\.onnx is not a complete ONNX file .* half downloaded"):
            load_onnx_recognition(path)
    with pytest.raises(WeightsError, match=r"no file .*nowhere\.onnx"):
        load_onnx_recognition(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    ("steps", "constants", "said"),
    [
        ([("Sigmoid", ["sum2"], {})], {}, r"node 'Sigmoid_to_x' \(Sigmoid\) of .*graph\.onnx cannot be run"),
        ([("Conv", ["sum2", "a"], {"auto_pad": "SAME_UPPER"})], {"a": _values(8, 8, 3, 3)}, "auto_pad='SAME_UPPER'"),
        ([("Flatten", ["sum2"], {"axis": 2})], {}, "axis=2; only 1"),
        ([("Gemm", ["sum2", "a"], {"transA": 1})], {"a": _values(8, 8)}, "transA=1"),
        ([("Reshape", ["sum2", "a"], {})], {"a": np.array([14, -1])}, "mixes faces of a batch"),
        ([("Reshape", ["sum2", "faces"], {})], {}, "computes its 'shape'"),
        ([("PRelu", ["sum2", "a"], {})], {"a": _values(14)}, "slopes by channel"),
        ([("Add", ["sum2", "a"], {})], {"a": _values(1).astype(np.float64)}, "float64; only float32"),
    ],
)
def test_what_cannot_be_run_is_named(steps, constants, said, tmp_path):
    path = graph_with(tmp_path, *middle_nodes(steps), constants=constants)
    with pytest.raises(WeightsError, match=said):
        load_onnx_recognition(path)


def test_other_kinds_of_network_are_refused(tmp_path):
    for side in (128, 0):
        with pytest.raises(WeightsError, match=r"no recogniser for 112-pixel faces: .* faces \('N', 3, "):
            load_onnx_recognition(graph_with(tmp_path, side=side))
    with pytest.raises(WeightsError, match=r"no recogniser .* sum2"):
        load_onnx_recognition(graph_with(tmp_path, outputs=("out", "sum2")))
    with pytest.raises(WeightsError, match=r"gives \(2, 8, 14, 14\) for two faces"):
        load_onnx_recognition(graph_with(tmp_path, outputs=("sum2",)))
    flat = [
        helper.make_node("Conv", ["faces", "a"], ["map"], kernel_shape=[112, 112]),
        helper.make_node("Flatten", ["map"], ["out"]),
    ]
    with pytest.raises(ConfigError, match=r"name three of its feature maps: .*map \(1, 4, 1, 1\)"):
        load_onnx_recognition(write(tmp_path / "flat.onnx", flat, {"a": _values(4, 3, 112, 112)}))


def scaled(tmp_path: Path, names: tuple[str, str]) -> Path:
    """A graph that scales pixels by itself."""
    constants = {"mean": np.float32([127.5]), "scale": np.float32([1 / 127.5])}
    begin, weights = residual(np.random.default_rng(0))
    begin[0].input[0] = "scaled"
    door = [
        helper.make_node("Sub", ["faces", "mean"], ["centred"], name=names[0]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"], name=names[1]),
    ]
    end, more = head(np.random.default_rng(1), "sum2")
    return write(tmp_path / "scaled.onnx", [*door, *begin, *end], {**constants, **weights, **more})


def test_graphs_that_scale_pixels_get_pixels(tmp_path):
    twin = load_onnx_recognition(scaled(tmp_path, ("_minusscalar0", "_mulscalar0")))
    assert twin.pixels
    crops = torch.rand(1, 3, 112, 112) * 2 - 1
    found = twin(crops)
    unscaled = load_onnx_recognition(scaled(tmp_path, ("a", "b")), pixel_range="-1..1")
    torch.testing.assert_close(unscaled((crops + 1) * 127.5), found)
    # InsightFace goes by the names; where these and the graph disagree, somebody has to decide.
    with pytest.raises(ConfigError, match="does not scale pixels by itself, but it begins with arithmetic"):
        load_onnx_recognition(scaled(tmp_path, ("a", "b")))
    assert load_onnx_recognition(scaled(tmp_path, ("a", "b")), pixel_range="0..255").pixels
    with pytest.raises(ConfigError, match=r"0\.\.255"):
        load_onnx_recognition(scaled(tmp_path, ("a", "b")), pixel_range="255")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_libraries_name_the_extra(package, tmp_path, monkeypatch):
    path = graph_with(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*photos"):
        load_onnx_recognition(path)


# ---- as the identity network of a full-size training


def test_a_training_takes_an_onnx_file_as_its_identity_network(tmp_path):
    path = graph_with(tmp_path)
    root = make_ffhq_ref(tmp_path / "FFHQ-Ref", (3, 2, 1), views=3).root
    options = {"first_stage": tiny_first_stage(), "identity": path, "initial": "scratch", "workers": 0, "device": "cpu"}
    # Without the scale the term counts at every timestep.
    changes = {**TINY, "steps": 1, "identity_scale": "constant"}
    run_full("refldm", out=tmp_path / "run", dataset=root, **options, **changes)
    (step,) = (event for event in read_log(tmp_path / "run") if event["event"] == "step")
    assert step["identity"] > 0
    assert step["loss"] == pytest.approx(step["denoising"] + 0.5 * step["identity"], rel=1e-3)


def test_the_identity_network_gets_refldms_crop(tmp_path):
    embedder, faces = load_identity(graph_with(tmp_path)), torch.rand(2, 3, 512, 512) * 2 - 1
    framed = faces.clone()
    framed[..., :32, :] = framed[..., 480:, :] = framed[..., :32] = framed[..., 480:] = 0
    assert torch.equal(embedder.embed(framed), embedder.embed(faces))
    pictures = faces.clone().requires_grad_()
    identity_loss(pictures, faces.flip(0), embedder).sum().backward()
    assert pictures.grad[..., 32:480, 32:480].abs().sum() > 0
    (tmp_path / "half.onnx").write_bytes(b"onnx")
    with pytest.raises(WeightsError, match="half.onnx is not a complete ONNX file"):
        load_identity(tmp_path / "half.onnx")
