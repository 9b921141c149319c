"""Two losses in the plane that want different things, and what each way of combining their gradients makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.diffusion import combine_gradients, pcgrad
from refbfr_core.errors import ConfigError, unknown_name

COMBINATIONS = ("sum", "project", "full", "PCGrad")

Loss = Callable[[Tensor], Tensor]
"""(N, 2) points -> (N,) values, differentiable"""


def combined(pivot: Tensor, other: Tensor, name: str) -> Tensor:
    """Two gradients (N, D) under one of `COMBINATIONS`, or "pivot": that one alone. PCGrad (Yu et al. 2020) knows no
    pivot.

    Raises
    ------
    UnknownNameError : another name.
    """
    if name not in (*COMBINATIONS, "pivot"):
        raise unknown_name("combination", name, (*COMBINATIONS, "pivot"))
    return pcgrad(pivot, other) if name == "PCGrad" else combine_gradients(pivot, other, name)


def bowls() -> Landscape:
    """Two long bowls whose axes are turned against each other; the other's gradient is the longer one."""
    return Landscape("two bowls", bowl((0.0, 0.0), (0.4, 1.0), 20.0), bowl((1.6, 1.2), (4.0, 0.8), -30.0), (-1.2, 1.8))


def valley() -> Landscape:
    """A bent valley (Rosenbrock's function, flattened) as the pivot, and a bowl beside its end."""

    def bent(points: Tensor) -> Tensor:
        x, y = points.unbind(dim=1)
        return 0.15 * (1 - x).square() + 2.0 * (y - x.square()).square()

    return Landscape("bent valley", bent, bowl((0.3, 1.6), (1.2, 1.2), 0.0), (-1.3, 1.2))


def bowl(centre: tuple[float, float], steepness: tuple[float, float], turned: float) -> Loss:
    """A quadratic loss: half the sum of steepness times squared distance along two axes turned by so many degrees."""
    angle = torch.deg2rad(torch.tensor(turned, dtype=torch.float64))
    axes = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    middle, weights = (torch.tensor(pair, dtype=torch.float64) for pair in (centre, steepness))

    def loss(points: Tensor) -> Tensor:
        return 0.5 * (((points - middle) @ axes.T).square() * weights).sum(dim=1)

    return loss


def gradient(loss: Loss, points: Tensor) -> Tensor:
    """The gradient of a loss at (N, 2) points, each for itself."""
    with torch.enable_grad():
        leaf = points.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return found


def descend(
    landscape: Landscape, *, steps: int, rate: float, names: tuple[str, ...] = (*COMBINATIONS, "pivot")
) -> dict[str, Descent]:
    """Walk down from the landscape's start at a fixed rate, once for every way of combining the two gradients.

    Parameters
    ----------
    landscape : which two losses.
    steps : how many steps.
    rate : a step is the combined gradient times this.
    names : which of `COMBINATIONS`, or "pivot".

    Returns
    -------
    name -> its walk.

    Raises
    ------
    UnknownNameError : another combination. ConfigError : no step, or a rate that is not positive.
    """
    if steps < 1 or not rate > 0:
        raise ConfigError(f"steps={steps}, rate={rate}; expected at least one step and a positive rate.")
    points = torch.tensor([landscape.start] * len(names), dtype=torch.float64)
    path, angles = [points], []
    for _ in range(steps):
        pivot, other = gradient(landscape.pivot, points), gradient(landscape.other, points)
        angles.append(combine_gradients(pivot, other, return_stats=True)[1].angle)
        rows = [combined(pivot[n : n + 1], other[n : n + 1], name) for n, name in enumerate(names)]
        points = points - rate * torch.cat(rows)
        path.append(points)
    walked, angle = torch.stack(path, dim=1), torch.stack(angles, dim=1)
    return {
        name: Descent(walked[n], landscape.pivot(walked[n]), landscape.other(walked[n]), angle[n])
        for n, name in enumerate(names)
    }


@dataclass(frozen=True, eq=False)
class Landscape:
    """Two losses over the plane and a place to start from."""

    name: str
    pivot: Loss
    other: Loss
    start: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Descent:
    """One walk: `points` (steps + 1, 2), both losses at each (steps + 1,), and the angle between the two gradients in
    degrees before each step (steps,).
    """

    points: Tensor
    pivot_loss: Tensor
    other_loss: Tensor
    angles: Tensor

    @property
    def conflicts(self) -> int:
        """Steps at which the gradients disagreed (angle above 90 degrees)."""
        return int((self.angles > 90).sum())

    @property
    def rises(self) -> int:
        """Steps after which the pivot's loss was higher than before."""
        return int((self.pivot_loss[1:] > self.pivot_loss[:-1] * (1 + 1e-12)).sum())
