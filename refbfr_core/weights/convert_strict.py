"""The strict part of every conversion: which tensor goes where is a table, and a table either fits a file whole or not.

A converter builds the empty diffusers network on PyTorch's meta device (shapes only), lists one `Move` for each tensor
of the authors' file, and calls `fill`. Nothing is loaded unless names and shapes agree on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, WeightsError, unknown_name

_NAMED_IN_ERRORS = 4


@dataclass(frozen=True)
class Move:
    """One tensor of the authors' file and where it goes.

    source : the authors' name.
    targets : the network's parameter, or the three of query, key and value for a joint projection.
    trailing : how many trailing axes of size 1 the authors' tensor has more (a 1x1 convolution that became a Linear).
    head_width : for a joint projection, channels per head; its rows are laid out (head, query/key/value, channel).
        0: all queries, then all keys, then all values.
    """

    source: str
    targets: tuple[str, ...]
    trailing: int = 0
    head_width: int = 0

    def source_shape(self, shapes: Mapping[str, torch.Size]) -> tuple[int, ...]:
        """The shape the authors' tensor must have, given the network's."""
        rows, *rest = shapes[self.targets[0]]
        return (len(self.targets) * rows, *rest, *[1] * self.trailing)

    def apply(self, tensor: Tensor) -> dict[str, Tensor]:
        """The network's parameters from the authors' tensor; copies, so that the two never share memory."""
        tensor = tensor.detach().flatten(tensor.ndim - self.trailing - 1) if self.trailing else tensor.detach()
        if len(self.targets) == 1:
            return {self.targets[0]: tensor.clone()}
        width = self.head_width or tensor.shape[0] // len(self.targets)
        heads = tensor.unflatten(0, (-1, len(self.targets), width))
        return {name: heads[:, i].flatten(0, 1).clone() for i, name in enumerate(self.targets)}


def parameters_of(source: str, target: str, **how: int) -> list[Move]:
    """The moves of a layer's weight and bias."""
    return [
        Move(f"{source}.weight", (f"{target}.weight",), **how),
        # A bias never has the trailing axes of a 1x1 convolution.
        Move(f"{source}.bias", (f"{target}.bias",)),
    ]


def read_config(
    config: Mapping[str, Any], required: Iterable[str], fixed: Mapping[str, Any], ignored: Iterable[str], what: str
) -> dict[str, Any]:
    """Check the authors' keywords and return the required ones.

    `fixed` keywords may be left out, and must otherwise have exactly that value: another one means another network.
    `ignored` keywords change nothing in a forward pass without training.

    Raises
    ------
    ConfigError : a required keyword is missing, or a fixed one differs. UnknownNameError : a keyword nobody knows.
    """
    required, ignored = list(required), set(ignored)
    missing = [key for key in required if key not in config]
    if missing:
        raise ConfigError(f"the {what} configuration lacks {', '.join(missing)}; pass the authors' keywords unchanged.")
    for key, value in config.items():
        if key in required or key in ignored:
            continue
        if key not in fixed:
            raise unknown_name(f"{what} keyword", key, [*required, *fixed, *ignored])
        came = list(value) if isinstance(value, tuple) else value
        if came != fixed[key]:
            raise ConfigError(f"{what} keyword {key}={value!r} is not supported; only {fixed[key]!r} converts exactly.")
    return {key: config[key] for key in required}


def fill(network: nn.Module, state: Mapping[str, Tensor], moves: Iterable[Move], prefix: str, what: str) -> nn.Module:
    """Load the authors' `state` into `network` (built on the meta device) by the table `moves`; all of it, or nothing.

    Parameters
    ----------
    network : parameters on the meta device.
    state : the authors' names -> tensors; names may carry `prefix`, if all do.
    moves : the table; it must fill the network exactly.
    prefix : the outer name the authors' checkpoint gives this network, with its final dot.
    what : for messages.

    Returns
    -------
    The same network in eval mode: float32 (or on meta, if the state is).

    Raises
    ------
    WeightsError : missing, superfluous or mis-shaped tensors; the message names the first few.
    """
    moves = list(moves)
    if state and all(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    expected = source_shapes(network, moves)
    if problem := misfit(state, expected):
        raise WeightsError(
            f"these weights do not fit the {what} of this configuration: {problem}. Nothing was loaded; "
            "pass that network's tensors alone, with the configuration they were trained with."
        )
    filled: dict[str, Tensor] = {}
    for move in moves:
        filled |= move.apply(state[move.source].to(torch.float32))
    network.load_state_dict(filled, strict=True, assign=True)
    return network.eval()


def source_shapes(network: nn.Module, moves: Iterable[Move]) -> dict[str, tuple[int, ...]]:
    """The authors' name and shape of every tensor that the table `moves` takes to fill `network`."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return {move.source: move.source_shape(shapes) for move in moves}


def misfit(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What keeps `state` from being exactly the `expected` names and shapes, in words; empty when nothing does."""
    missing = [key for key in expected if key not in state]
    superfluous = [key for key in state if key not in expected]
    misshaped = [
        f"{key} is {tuple(state[key].shape)}, not {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != tuple(shape)
    ]
    integer = [key for key in expected if key in state and not state[key].is_floating_point()]
    problems = {"missing": missing, "superfluous": superfluous, "wrong shape": misshaped, "not floating": integer}
    return "; ".join(f"{len(keys)} {kind} ({first_few(keys)})" for kind, keys in problems.items() if keys)


def first_few(items: list[str]) -> str:
    """The beginning of a list of names, for messages."""
    return ", ".join(items[:_NAMED_IN_ERRORS]) + (", ..." if len(items) > _NAMED_IN_ERRORS else "")
