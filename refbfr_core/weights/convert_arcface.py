"""From the published ArcFace checkpoints (PyTorch state dictionaries of IResNets) to `refbfr_core.models.IResNet`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import WeightsError
from refbfr_core.models.iresnet import DEPTHS, IResNet
from refbfr_core.weights.convert_strict import misfit

_PREFIX = "module."
_COUNTER = ".num_batches_tracked"
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")


def convert_arcface_iresnet(state_dict: Mapping[str, Tensor], *, alignment: str = "resize") -> IResNet:
    """Turn a published ArcFace checkpoint into an `IResNet`; depth and embedding length come from its tensors.

    Parameters
    ----------
    state_dict : the authors' tensors (conv1, bn1, prelu, layerN.M..., bn2, fc, features), with or without the outer
        "module." of parallel training. Counters of batches are optional: they change nothing.
    alignment : how pictures reach the 112-pixel door, see `refbfr_core.models.recognition.ALIGNMENTS`.

    Returns
    -------
    The network in eval mode, float32, no parameter trainable.

    Raises
    ------
    WeightsError : not the tensors of an IResNet of a published depth; the message names what does not fit.
    UnknownNameError : no such alignment.
    """
    state = _bare(state_dict)
    layers = _layers(state)
    bias = state.get("fc.bias")
    if bias is None or bias.ndim != 1:
        raise WeightsError("fc.bias, whose length is that of the embedding, is missing; pass the whole checkpoint.")
    with torch.device("meta"):
        network = IResNet(layers, len(bias), alignment)
    own = network.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if not name.endswith(_COUNTER)}
    # A counter that belongs to no norm of this network is left in, and then found superfluous.
    state = {name: tensor for name, tensor in state.items() if not (name in own and name.endswith(_COUNTER))}
    if problem := misfit(state, expected):
        depth = {blocks: number for number, blocks in DEPTHS.items()}[layers]
        raise WeightsError(
            f"these weights do not fit an IResNet-{depth}: {problem}. Nothing was loaded; pass the tensors of one "
            "ArcFace network of arcface_torch alone."
        )
    filled = {name: state[name].detach().to(torch.float32).clone() for name in expected}
    filled |= {name: torch.zeros((), dtype=torch.long) for name in own if name.endswith(_COUNTER)}
    network.load_state_dict(filled, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _bare(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without "module.", which all names or none must carry."""
    wrong = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if wrong or not state_dict:
        inside = f"{wrong[0]!r} is a {type(state_dict[wrong[0]]).__name__}" if wrong else "it is empty"
        raise WeightsError(f"a dictionary of tensors by name is expected, but {inside}; pass the network's alone.")
    if all(name.startswith(_PREFIX) for name in state_dict):
        return {name.removeprefix(_PREFIX): tensor for name, tensor in state_dict.items()}
    return dict(state_dict)


def _layers(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage, which must be those of a published depth."""
    blocks: dict[int, set[int]] = {}
    for name in state:
        if found := _BLOCK.match(name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    layers = tuple(len(blocks.get(stage, ())) for stage in range(1, 5))
    if layers not in DEPTHS.values() or set(blocks) != {1, 2, 3, 4}:
        known = "; ".join(f"{depth}: {', '.join(map(str, each))}" for depth, each in DEPTHS.items())
        raise WeightsError(
            f"the names hold {', '.join(map(str, layers))} blocks in layer1 to layer4, which is no IResNet ({known}). "
            "The file is incomplete, or of another network; ONNX files go through load_onnx_recognition."
        )
    return layers
