"""A two-dimensional world in which the best possible denoiser is known exactly: a mixture of Gaussian blobs.

Diffusion is easiest to see in the plane, and here nothing has to be believed: the noise that an ideal network would
predict, and so the smallest loss any network can reach, follow from Bayes' rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError

if TYPE_CHECKING:
    from refbfr_core.diffusion import Schedule


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equally likely round Gaussian blobs, each belonging to a class.

    Args:
        means: (K, D) centres of the blobs.
        std: standard deviation of every blob.
        labels: (K,) class of each blob, whole numbers from 0.

    Raises:
        ConfigError: shapes that do not belong together, or a spread that is not positive.
    """

    means: Tensor
    std: float
    labels: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or tuple(self.labels.shape) != (len(self.means),) or len(self.means) == 0:
            raise ConfigError(
                f"means {tuple(self.means.shape)} and labels {tuple(self.labels.shape)}; expected (K, D) and (K,)."
            )
        if not self.std > 0:
            raise ConfigError(f"std={self.std}; the blobs need a positive standard deviation.")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (count, D) and the class of each, (count,)."""
        blob = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[blob] + self.std * noise, self.labels[blob]

    def nearest_label(self, points: Tensor) -> Tensor:
        """Class of the blob whose centre is nearest to each point, (N, D) -> (N,)."""
        return self.labels[torch.cdist(points, self.means).argmin(dim=1)]

    def exact_eps(self, x_t: Tensor, t: int, schedule: Schedule, label: int | None = None) -> Tensor:
        """The noise an ideal network predicts: E[eps | x_t], or E[eps | x_t, class] with a label.

        At timestep t the blobs have centres sqrt(a) mu and variance a std^2 + 1 - a with a = alpha_bar_t. The
        expectation weighs the blobs by how likely each is to have produced x_t.

        Args:
            x_t: (N, D) noisy points.
            t: timestep. schedule: the diffusion process. label: use the blobs of this class only.

        Raises:
            ConfigError: a class without blobs.
        """
        means = self.means if label is None else self.means[self.labels == label]
        if len(means) == 0:
            raise ConfigError(f"no blob has the class {label}; the classes are 0 to {self.classes - 1}.")
        a = schedule.alpha_bar(t)
        variance = a * self.std**2 + 1 - a
        offset = x_t[:, None, :] - math.sqrt(a) * means  # (N, K, D)
        weight = torch.softmax(-offset.square().sum(dim=2) / (2 * variance), dim=1)
        # Given the blob, eps and x_t are jointly Gaussian with covariance sqrt(1 - a).
        return (weight[:, :, None] * offset).sum(dim=1) * math.sqrt(1 - a) / variance


def ring(blobs: int = 9, radius: float = 1.4, std: float = 0.2, classes: int = 3) -> Mixture:
    """A ring of blobs in the plane; neighbouring blobs share a class. Coordinates have about unit variance.

    Raises:
        ConfigError: blobs that cannot be divided into the classes equally.
    """
    if blobs < 1 or classes < 1 or blobs % classes:
        raise ConfigError(f"{blobs} blobs cannot be shared equally by {classes} classes; use a multiple of {classes}.")
    angle = torch.arange(blobs) * (2 * math.pi / blobs)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Mixture(means, std, torch.arange(blobs) // (blobs // classes))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """How different two clouds of points are (Székely and Rizzo 2013): 2 E|A-B| - E|A-A'| - E|B-B'|.

    Zero in expectation when both come from the same distribution (the pairs of a point with itself are left out, so
    small clouds are not biased and chance can make it slightly negative).

    Args:
        a, b: (N, D) and (M, D) points.

    Raises:
        ConfigError: fewer than two points, or points of different dimension.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ConfigError(
            f"clouds of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (N, D) and (M, D), N, M ≥ 2."
        )
    within_a = torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))
    within_b = torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))
    return float(2 * torch.cdist(a, b).mean() - within_a - within_b)
