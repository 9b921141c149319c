"""Comparisons with the arrays recorded from the released IResNet code, shared by parity tests and mutation tests.

A mutation test breaks one thing on purpose and expects the very comparison of the parity test to fail; both therefore
call the functions here. fixtures/arcface_iresnet.npz holds a seed instead of the 48 MB of random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.models.iresnet import DEPTHS, STEM, IResNet
from refbfr_core.weights import convert

CARRIED = Path(__file__).parent / "fixtures" / "arcface_iresnet.npz"
# Of float64 runs, the arrays are stored in float32; of float32 runs.
DOUBLE, SINGLE, SINGLE_GRADIENT = 1e-5, 1e-4, 2e-2


@dataclass(frozen=True)
class Recorded:
    """The arrays, the regenerated weights, and the two pictures."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Tensor]
    pictures: Tensor


def read(path: Path = CARRIED) -> Recorded:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive}
    seed = int(arrays["seed"])
    pictures = np.random.RandomState(seed + 1).random_sample((2, 3, 112, 112)) * 2 - 1  # noqa: NPY002  the rule's own
    state = draw_state(int(arrays["num_features"]), seed)
    return Recorded(arrays, state, torch.from_numpy(pictures.astype(np.float32)))


def draw_state(num_features: int, seed: int) -> dict[str, Tensor]:
    """Random weights by the rule that goes with the arrays: the names in sorted order, one draw after the other."""
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in IResNet(DEPTHS[18], num_features).state_dict().items()}
    draws = np.random.RandomState(seed)  # noqa: NPY002  the rule's own
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("num_batches_tracked"):
            continue
        if len(shape) >= 2:
            values = draws.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 0.8 + 0.4 * draws.random_sample(shape)
        elif name.endswith("running_mean"):
            values = 0.1 * draws.standard_normal(shape)
        elif "prelu" in name:
            values = 0.25 + 0.05 * draws.standard_normal(shape)
        elif name.endswith("weight"):
            values = 1 + 0.1 * draws.standard_normal(shape)
        else:
            values = 0.1 * draws.standard_normal(shape)
        state[name] = torch.from_numpy(np.asarray(values, np.float32))
    return state


def load(recorded: Recorded, dtype: torch.dtype = torch.float64) -> IResNet:
    return convert.convert_arcface_iresnet(recorded.state).to(dtype)


def close(found: Tensor, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Largest difference, relative to the largest value expected."""
    expected = torch.from_numpy(np.asarray(expected, np.float64))
    assert found.shape == expected.shape, f"{what} is off by its shape, {tuple(found.shape)}"
    off = float((found.detach().double() - expected).abs().max() / expected.abs().max())
    assert off < tolerance, f"{what} is off by {off:.2g} of its largest value, allowed is {tolerance:g}"


def compare_activations(network: IResNet, recorded: Recorded) -> None:
    """The stem and every block."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, module in [(STEM, network.prelu), *network.blocks()]
    ]
    with torch.no_grad():
        network(recorded.pictures.to(network.dtype))
    for hook in hooks:
        hook.remove()
    for name, output in seen.items():
        label = f"act_{name.replace('.', '_')}"
        assert tuple(output.shape) == tuple(recorded.arrays[f"{label}_shape"]), f"{label} is off by its shape"
        close(output[:, :4, :4, :4], recorded.arrays[f"{label}_slice"], DOUBLE, label)
        spread = float(recorded.arrays[f"{label}_std"])
        # A mean can lie next to zero, so that it is measured against the spread.
        off = abs(float(output.mean()) - float(recorded.arrays[f"{label}_mean"])) / spread
        assert off < DOUBLE, f"mean of {label} is off by {off:.2g}"
        assert abs(float(output.std()) / spread - 1) < DOUBLE, f"deviation of {label} is off by {output.std()}"


@torch.no_grad()
def compare_embedding(network: nn.Module, recorded: Recorded, tolerance: float = DOUBLE) -> None:
    dtype = next(network.parameters()).dtype
    close(network(recorded.pictures.to(dtype)), recorded.arrays["embedding"], tolerance, "embedding")


def arc_distances(first: list[Tensor], second: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Equation (13) on the features of two pictures: on the last alone, and the sum over the others."""
    each = [1 - F.cosine_similarity(a.flatten(1), b.flatten(1)) for a, b in zip(first, second, strict=True)]
    return each[-1], torch.stack(each[:-1]).sum(0)


def compare_guidance(network: nn.Module, recorded: Recorded, tolerance: float = DOUBLE) -> None:
    """Both distances through `guidance_features`, and their gradients with respect to the first picture."""
    dtype = next(network.parameters()).dtype
    gradient_tolerance = tolerance if tolerance == DOUBLE else SINGLE_GRADIENT
    first = recorded.pictures[:1].to(dtype).requires_grad_()
    with torch.no_grad():
        second = network.guidance_features(recorded.pictures[1:].to(dtype))
    distances = dict(zip(("high", "low"), arc_distances(network.guidance_features(first), second), strict=True))
    for name, distance in distances.items():
        close(distance, recorded.arrays[f"d_{name}"], tolerance, f"d_{name}")
    for name, distance in distances.items():
        (gradient,) = torch.autograd.grad(distance, first, retain_graph=True)
        expected = torch.from_numpy(recorded.arrays[f"grad_{name}"]).double()
        off = float((gradient.double() - expected).norm() / expected.norm())
        assert off < gradient_tolerance, f"grad_{name} is off by {off:.2g}, allowed is {gradient_tolerance:g}"
