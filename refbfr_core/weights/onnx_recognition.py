"""Reading a recognition network from an ONNX file (InsightFace's packs) into its differentiable PyTorch twin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, WeightsError, missing_extra
from refbfr_core.models.onnx_twin import OPERATORS, Node, OnnxTwin
from refbfr_core.models.recognition import SIDE

TOLERANCE = 1e-4
"""Largest difference between the twin and ONNX Runtime that is let through, in shares of the largest number in the
embeddings. Both compute in float32 and add in another order."""

_PIXEL_RANGES = ("auto", "0..255", "-1..1")
_DOOR = ("Sub", "Add", "Mul", "Div")
# Inputs that an operator wants as plain numbers, by their place.
_PLAIN = {"Clip": {1: "min", 2: "max"}, "Reshape": {1: "shape"}, "Dropout": {1: "ratio", 2: "training_mode"}}


def load_onnx_recognition(
    path: str | Path,
    *,
    alignment: str = "resize",
    taps: Sequence[str] | None = None,
    pixel_range: str = "auto",
    tolerance: float = TOLERANCE,
) -> OnnxTwin:
    """Read a recogniser from an ONNX file, and check that it computes what ONNX Runtime computes.

    Parameters
    ----------
    path : an IResNet, MobileFaceNet or the like with one input (B, 3, 112, 112), RGB, and one output (B, D).
    alignment : how pictures reach the 112-pixel door, see `refbfr_core.models.recognition.ALIGNMENTS`.
    taps : names of three values of the graph for guidance; None chooses by position.
    pixel_range : what the graph takes, "0..255" or "-1..1". "auto" decides as InsightFace does: a graph that begins
        with a subtraction and a multiplication scales pixels by itself. A graph made for another scaling, such as
        ImageNet's, without saying so cannot be recognised.
    tolerance : see `TOLERANCE`.

    Returns
    -------
    The twin in eval mode, float32, on the CPU; it takes pictures in [-1, 1] whatever the graph takes.

    Raises
    ------
    MissingExtraError : onnx or onnxruntime is not installed.
    WeightsError : the file is missing, damaged, of another kind, has an operator or setting that cannot be run, or
        the twin differs from ONNX Runtime.
    ConfigError : the pixel range cannot be told, or there is nothing to tap.
    """
    path = Path(path)
    if pixel_range not in _PIXEL_RANGES:
        raise ConfigError(f"pixel_range={pixel_range!r} is not one of {', '.join(map(repr, _PIXEL_RANGES))}.")
    graph = _read(path)
    constants = _initialisers(graph)
    input_name, output_name = _door(path, graph, constants)
    nodes, tensors = _nodes(path, graph, constants)
    pixels = pixel_range == "0..255" if pixel_range != "auto" else _scales_pixels(path, graph, nodes, input_name)
    twin = OnnxTwin(nodes, tensors, input_name, output_name, pixels=pixels, alignment=alignment, taps=taps)
    compare_with_runtime(twin, path, tolerance)
    return twin


def compare_with_runtime(twin: OnnxTwin, path: str | Path, tolerance: float = TOLERANCE) -> float:
    """The largest difference of embeddings between the twin and ONNX Runtime, in shares of the largest number.

    Two crops of seeded noise are embedded, one at a time where the file was written for one.

    Raises
    ------
    WeightsError : it is above `tolerance`, or ONNX Runtime cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "photos", "checking a recogniser from ONNX") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    crops = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(112)) * 2 - 1
    given = ((crops + 1) * 127.5 if twin.pixels else crops).numpy()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batch = session.get_inputs()[0].shape[0]
        parts = [given] if batch != 1 else np.split(given, 2)
        runtime = np.concatenate([session.run([twin.output_name], {twin.input_name: part})[0] for part in parts])
    # ONNX Runtime's own classes derive from Exception only.
    except Exception as error:  # noqa: BLE001
        raise WeightsError(f"ONNX Runtime cannot run {path} ({type(error).__name__}: {error}).") from error
    with torch.no_grad():
        ours = twin(crops).numpy()
    if ours.shape != runtime.shape or ours.ndim != 2:
        raise WeightsError(
            f"{path} gives {runtime.shape} for two faces and its twin {ours.shape}; a recogniser gives (2, D)."
        )
    off = float(np.abs(ours - runtime).max() / max(float(np.abs(runtime).max()), 1e-12))
    if not off <= tolerance:
        raise WeightsError(
            f"the PyTorch twin of {path} differs from ONNX Runtime by {off:.2g} of the largest number in an "
            f"embedding, allowed is {tolerance:g}; this graph is not read correctly, so it is not used."
        )
    return off


def _read(path: Path) -> Any:
    """The graph of a file that is a complete ONNX model."""
    if not path.is_file():
        raise WeightsError(f"no file {path}; name a recognition network in ONNX, for example w600k_r50.onnx of a pack.")
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "photos", "reading a recogniser from ONNX") from error
    again = "It is damaged or half downloaded; fetch it again."
    try:
        model = onnx.load(str(path))
    # protobuf and onnx raise classes of their own, derived from Exception only, for a damaged file.
    except Exception as error:  # noqa: BLE001
        raise WeightsError(f"{path} is not a complete ONNX file ({type(error).__name__}: {error}). {again}") from error
    # The shortest beginnings of a file still parse. Whether the rest holds together, ONNX Runtime says later: the
    # stricter checks of the onnx package refuse old files that it runs.
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise WeightsError(f"{path} is not a complete ONNX file (no graph, or no version of it). {again}")
    return model.graph


def _initialisers(graph: Any) -> dict[str, np.ndarray]:
    """All constants of the graph by name: initialisers and the outputs of Constant nodes."""
    from onnx import numpy_helper

    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        # Exporters write one constant that serves several layers once, and name it for the others.
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _door(path: Path, graph: Any, constants: dict[str, np.ndarray]) -> tuple[str, str]:
    """Names of input and output, which must be a recogniser's."""
    # Old files list their constants among the inputs.
    inputs = [value for value in graph.input if value.name not in constants]
    found = {value.name: _shape(value) for value in [*inputs, *graph.output]}
    entry = found[inputs[0].name] if len(inputs) == 1 else ()
    if len(entry) != 4 or entry[1:] != (3, SIDE, SIDE) or len(graph.output) != 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in found.items())
        raise WeightsError(
            f"{path} is no recogniser for {SIDE}-pixel faces: one input (B, 3, {SIDE}, {SIDE}) and one output are "
            f"expected, it has {listing}. Detectors and landmark networks of a pack are other files."
        )
    return inputs[0].name, graph.output[0].name


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(axis.dim_value or axis.dim_param or "?" for axis in value.type.tensor_type.shape.dim)


def _nodes(path: Path, graph: Any, constants: dict[str, np.ndarray]) -> tuple[list[Node], dict[str, Tensor]]:
    """The graph as nodes that a twin can run, and the tensors they need."""
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    for index, node in enumerate(graph.node):
        if node.output and node.output[0] in constants:
            continue
        label = f"node {node.name or index!r} ({node.op_type}) of {path}"
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise WeightsError(f"{label} cannot be run by the PyTorch twin; known: {', '.join(sorted(OPERATORS))}.")
        settings = _settings(node, label)
        inputs = []
        for place, name in enumerate(node.input):
            plain = _PLAIN.get(node.op_type, {}).get(place)
            if plain is None:
                inputs.append(name)
            elif name:
                if name not in constants:
                    raise WeightsError(f"{label} computes its {plain!r} instead of holding it; that cannot be run.")
                settings[plain] = constants[name].tolist()
        _check_settings(node.op_type, settings, label)
        for name in inputs:
            if name in constants and name not in tensors:
                tensors[name] = _tensor(constants[name], label)
        if node.op_type == "PRelu" and (constants.get(inputs[1]) is None or not _by_channel(constants[inputs[1]])):
            raise WeightsError(f"{label} needs slopes by channel, (C, 1, 1).")
        nodes.append(Node(node.op_type, node.name, tuple(inputs), node.output[0], settings))
    return nodes, tensors


def _settings(node: Any, label: str) -> dict[str, Any]:
    """A node's attributes that its operator understands."""
    from onnx import helper

    operator = OPERATORS[node.op_type]
    settings: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        if attribute.name not in (*operator.settings, *operator.fixed):
            raise WeightsError(f"{label} has the setting {attribute.name}={value!r}, which cannot be run.")
        settings[attribute.name] = value
    return settings


def _check_settings(operator: str, settings: dict[str, Any], label: str) -> None:
    """Refuse values that the twin would silently run as others."""
    for name, expected in OPERATORS[operator].fixed.items():
        if settings.get(name, expected) != expected:
            raise WeightsError(f"{label} has {name}={settings[name]!r}; only {expected!r} can be run.")
    if operator == "Dropout" and settings.get("training_mode"):
        raise WeightsError(f"{label} drops values, so the file was written in training mode; export it again.")
    if operator == "Conv" and len(settings.get("kernel_shape", (3, 3))) != 2:
        raise WeightsError(f"{label} is not a convolution of pictures.")
    if operator == "Reshape" and (len(settings["shape"]) < 2 or settings["shape"][0] not in (-1, 0, 1)):
        raise WeightsError(f"{label} mixes faces of a batch: shape {settings['shape']}.")


def _tensor(values: np.ndarray, label: str) -> Tensor:
    if values.dtype != np.float32:
        raise WeightsError(f"{label} has a constant of type {values.dtype}; only float32 can be run.")
    return torch.from_numpy(values.copy())


def _by_channel(slope: np.ndarray) -> bool:
    return slope.size == 1 or (slope.ndim in (3, 4) and slope.shape[-2:] == (1, 1) and slope.size == slope.shape[-3])


def _scales_pixels(path: Path, graph: Any, nodes: list[Node], entry: str) -> bool:
    """Whether the graph takes 0..255 and scales by itself, if InsightFace's rule and the graph's beginning agree."""
    names = [node.name for node in graph.node[:8]]
    by_name = any(name.startswith(("Sub", "_minus")) for name in names) and any(
        name.startswith(("Mul", "_mul")) for name in names
    )
    value, begins = entry, False
    for node in nodes:
        if node.operator not in _DOOR or value not in node.inputs:
            break
        value, begins = node.output, True
    if by_name != begins:
        said, done = ("scales", "does not") if by_name else ("does not scale", "begins with arithmetic on them")
        raise ConfigError(
            f"the node names of {path} say that it {said} pixels by itself, but it {done}; pass pixel_range='0..255' "
            "or pixel_range='-1..1'."
        )
    return begins
