"""A recogniser read from an ONNX file as a PyTorch module, because ONNX Runtime gives no gradients.

An ONNX graph is a list of nodes in order of execution, each with an operator, settings, and named inputs and outputs.
Recognisers need few operators (`OPERATORS`); the twin runs them one after the other. Reading the file, and checking
the twin against ONNX Runtime, is `refbfr_core.weights.load_onnx_recognition`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.recognition import SIDE, RecogniserMixin, check_alignment, check_crops

_ACTIVATIONS = ("PRelu", "Relu", "Clip")


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    operator: its ONNX type. name: of the node, for messages. inputs, output: names of values; "" is a left-out input.
    settings: ONNX attributes, and constants that the operator wants as plain numbers (a shape, the ends of a Clip).
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    output: str
    settings: Mapping[str, Any]


def _conv(settings: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    padding: tuple[int, int] = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    strides, dilations = settings.get("strides", (1, 1)), settings.get("dilations", (1, 1))
    return F.conv2d(x, weight, bias, tuple(strides), padding, tuple(dilations), settings.get("group", 1))


def _norm(settings: Mapping[str, Any], x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=settings.get("epsilon", 1e-5))


def _clip(settings: Mapping[str, Any], x: Tensor) -> Tensor:
    return x.clamp(settings.get("min"), settings.get("max"))


def _reshape(settings: Mapping[str, Any], x: Tensor) -> Tensor:
    # The first axis is the batch, whatever batch the file was written for.
    rest = settings["shape"][1:]
    return x.reshape(len(x), *(x.shape[axis] if size == 0 else size for axis, size in enumerate(rest, 1)))


def _gemm(settings: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = settings.get("alpha", 1.0) * (x @ (weight.T if settings.get("transB", 0) else weight))
    return product if bias is None else product + settings.get("beta", 1.0) * bias


@dataclass(frozen=True)
class Operator:
    """How an ONNX operator runs.

    function: (settings, *inputs) -> output. settings: the attributes it understands; a file with another one is
    refused. fixed: attributes that must have this value where they are given.
    """

    function: Callable[..., Tensor]
    settings: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Add": Operator(lambda _, a, b: a + b),
        "BatchNormalization": Operator(_norm, ("epsilon", "momentum"), {"training_mode": 0, "spatial": 1}),
        "Clip": Operator(_clip, ("min", "max")),
        "Conv": Operator(_conv, ("pads", "strides", "dilations", "group", "kernel_shape"), {"auto_pad": "NOTSET"}),
        "Div": Operator(lambda _, a, b: a / b),
        # Recognisers are read for use, where nothing is dropped.
        "Dropout": Operator(lambda _, x: x, ("ratio", "seed")),
        "Flatten": Operator(lambda _, x: x.flatten(1), (), {"axis": 1}),
        "Gemm": Operator(_gemm, ("alpha", "beta", "transB"), {"transA": 0}),
        "GlobalAveragePool": Operator(lambda _, x: x.mean((2, 3), keepdim=True)),
        "Identity": Operator(lambda _, x: x),
        "MatMul": Operator(lambda _, a, b: a @ b),
        "Mul": Operator(lambda _, a, b: a * b),
        "PRelu": Operator(lambda _, x, slope: F.prelu(x, slope.flatten())),
        "Relu": Operator(lambda _, x: F.relu(x)),
        "Reshape": Operator(_reshape, ("shape",), {"allowzero": 0}),
        "Sub": Operator(lambda _, a, b: a - b),
    }
)
"""The operators a twin can run; read-only."""


class OnnxTwin(RecogniserMixin, nn.Module):
    """The PyTorch twin of a recognition graph; no parameter is trainable. Made by `load_onnx_recognition`.

    Parameters
    ----------
    nodes : in order of execution; every input is `input_name`, a constant or an earlier output.
    constants : tensors by the name of their value.
    input_name, output_name : names of the graph's input and output.
    pixels : whether the graph takes values from 0 to 255 instead of [-1, 1]; the twin always takes [-1, 1].
    alignment : how pictures reach the 112-pixel door, one of `refbfr_core.models.recognition.ALIGNMENTS`.
    taps : names of three values for guidance; None chooses by position, see `choose_taps`.

    Raises
    ------
    ConfigError : no feature maps to choose from. UnknownNameError : no such alignment or value.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: Mapping[str, Tensor],
        input_name: str,
        output_name: str,
        *,
        pixels: bool = False,
        alignment: str = "resize",
        taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_alignment(alignment)
        self.nodes, self.input_name, self.output_name = tuple(nodes), input_name, output_name
        self.pixels, self.alignment = pixels, alignment
        # Names of values hold dots, which PyTorch keeps for submodules.
        self._slots = {name: f"constant_{index}" for index, name in enumerate(constants)}
        for name, slot in self._slots.items():
            self.register_parameter(slot, nn.Parameter(constants[name].detach().clone(), requires_grad=False))
        self._last_use = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        self.eval()
        if taps is not None:
            outputs = [node.output for node in self.nodes]
            for tap in taps:
                if tap not in outputs:
                    raise unknown_name("value of this ONNX graph", tap, outputs)
        self.taps = tuple(taps) if taps is not None else choose_taps(self)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the constants; a diffusers pipeline asks every component for it when it is moved."""
        return next(value.dtype for value in self.parameters() if value.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the constants are."""
        return next(self.parameters()).device

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, 112, 112) RGB crops in [-1, 1] to raw embeddings (B, D), as ONNX Runtime gives them.

        Raises ImageContractError for another shape; `embed` and `guidance_features` take pictures of any size.
        """
        return self._run(crops, (self.output_name,))[self.output_name]

    def tapped(self, crops: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `forward`, with the values named by `taps`, in that order."""
        values = self._run(crops, (*self.taps, self.output_name))
        return [values[name] for name in self.taps], values[self.output_name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every node's output for one face, by name, in order of execution."""
        probe = next(self.parameters())
        crop = torch.zeros(1, 3, SIDE, SIDE, dtype=probe.dtype, device=probe.device)
        with torch.no_grad():
            values = self._run(crop, [node.output for node in self.nodes])
        return {node.output: tuple(values[node.output].shape) for node in self.nodes}

    def extra_repr(self) -> str:
        """What `print` shows."""
        takes = "0 to 255" if self.pixels else "-1 to 1"
        return f"{len(self.nodes)} nodes, graph takes {takes}, alignment={self.alignment!r}, taps={self.taps}"

    def _run(self, crops: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        check_crops(crops)
        values = {self.input_name: (crops + 1) * 127.5 if self.pixels else crops}
        for index, node in enumerate(self.nodes):
            inputs = [self._value(values, name) for name in node.inputs]
            values[node.output] = OPERATORS[node.operator].function(node.settings, *inputs)
            for name in node.inputs:  # what nobody reads again need not stay in memory
                if self._last_use[name] == index and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor | None:
        if name in self._slots:
            return getattr(self, self._slots[name])
        return values[name] if name else None


def choose_taps(twin: OnnxTwin) -> tuple[str, str, str]:
    """Three feature maps by position, in the places of `refbfr_core.models.iresnet.TAPS`.

    u_1 is the first activation; u_2 and u_3 are the second residual addition at the first and at the second
    resolution that has any (the only one, where there is just one). In an IResNet those are the stem and the second
    blocks of the first two stages. MobileFaceNet's strided blocks have no addition, so that its taps lie at the third
    blocks.

    Raises
    ------
    ConfigError : there are no such values; name three yourself.
    """
    shapes = twin.shapes()
    first = next((node.output for node in twin.nodes if node.operator in _ACTIVATIONS), None)
    stages: dict[int, list[str]] = {}
    for node in twin.nodes:
        if node.operator == "Add" and len(shapes[node.output]) == 4 and all(name in shapes for name in node.inputs):
            stages.setdefault(shapes[node.output][-1], []).append(node.output)
    if first is None or len(stages) < 2:
        raise ConfigError(
            "this graph has no stem activation and two stages of residual blocks to tap; name three of its feature "
            "maps: taps=(...). " + "; ".join(f"{name} {shape}" for name, shape in shapes.items() if len(shape) == 4)
        )
    second, third = (stages[side][:2][-1] for side in list(stages)[:2])
    return first, second, third
