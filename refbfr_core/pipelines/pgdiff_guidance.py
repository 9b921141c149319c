"""PGDiff's guidance (Yang et al., NeurIPS 2023): properties of the face, each a sum of squares, no gradient surgery.

Restoration asks the estimate of x_0 to look like the coarse picture, reference restoration also to have the embedding
of another photo. The losses are sums, not means, so their gradients are large enough for s near 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.diffusion import NORM_SCOPES, Correction, StepState, norm_ratio_correction
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.pipelines.pivot_guidance import SCALINGS
from refbfr_core.pipelines.pivot_losses import GuidanceNetwork

StepRestorer = Callable[[Tensor, Tensor, int], Tensor]
"""(x_t, y, t) -> coarse picture, all (B, 3, H, W) in [-1, 1]: the authors' restorer looks at every step anew."""


@dataclass(frozen=True)
class PGDiffSettings:
    """`scale` s; weights of the coarse picture (`smooth_weight`, w_ss = 1) and of the reference's embedding
    (`reference_weight`, w_ref = 25 for embeddings that are not normalised, as the authors take them); `scaling`
    "variance" or "norm-ratio", for which `scope` says what its norms run over (`refbfr_core.diffusion.NORM_SCOPES`).

    Raises
    ------
    ConfigError : numbers that are negative or not finite. UnknownNameError : another scaling or scope.
    """

    scale: float = 0.1
    smooth_weight: float = 1.0
    reference_weight: float = 25.0
    scaling: str = "variance"
    scope: str = "image"

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise unknown_name("scaling of the guidance", self.scaling, SCALINGS)
        if self.scope not in NORM_SCOPES:
            raise unknown_name("norm scope", self.scope, NORM_SCOPES)
        for name in ("scale", "smooth_weight", "reference_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a finite number, 0 or more.")


@torch.no_grad()
def mean_embedding(
    pictures: Iterable[tuple[Tensor, Tensor]], embedder: GuidanceNetwork, rows: int = 1
) -> tuple[Tensor, Tensor]:
    """Mean embedding (B, D) of the references of each image, not normalised afterwards, and (B,) 1 where there are any.

    The gradient of a mean of squared distances is that of the squared distance to the mean.
    """
    total, count = 0.0, 0.0
    for images, present in pictures:
        share = present.to(images.device, torch.float32)
        embeddings = torch.cat([embedder.guidance_features(part)[-1].float() for part in images.split(rows)])
        total = total + share[:, None] * embeddings
        count = count + share
    return total / count.clamp(min=1)[:, None], (count > 0).float()


class PGDiffGuidance:
    """The hook for `refbfr_core.diffusion.sample_learned`.

    Args:
        coarse: y_c (B, 3, H, W) in [-1, 1], the same at every step; or what makes one.
        degraded: y, only handed to a `StepRestorer`.
        embedder: its last guidance feature is compared; None without references.
        reference: what `mean_embedding` returned, or None.
        settings: see `PGDiffSettings`.
        rows: pictures in one call of the embedder.

    Statistics of a step: "loss_smooth" and "loss_reference" (B,), without their weights.
    """

    def __init__(
        self,
        coarse: Tensor | StepRestorer,
        degraded: Tensor,
        embedder: GuidanceNetwork | None,
        reference: tuple[Tensor, Tensor] | None,
        settings: PGDiffSettings,
        rows: int = 8,
    ) -> None:
        self.coarse, self.degraded, self.settings, self.rows = coarse, degraded, settings, rows
        self.embedder, self.reference = embedder, reference
        self._step: tuple[int, Tensor] | None = None

    def __call__(self, state: StepState) -> Correction:
        """The shift -s Sigma g of the mean, or the share of the step's own length."""
        chosen = self.settings
        difference = state.x0 - self._picture(state)
        stats = {"loss_smooth": difference.square().flatten(1).sum(1)}
        gradient = 2 * chosen.smooth_weight * difference
        if self.reference is not None and chosen.reference_weight > 0:
            stats["loss_reference"], towards = self._reference_gradient(state.x0)
            gradient = gradient + chosen.reference_weight * towards
        if chosen.scaling == "norm-ratio":
            return norm_ratio_correction(gradient, chosen.scale, chosen.scope, stats)
        return Correction(mean_shift=-chosen.scale * state.variance * gradient, stats=stats)

    def _picture(self, state: StepState) -> Tensor:
        if isinstance(self.coarse, Tensor):
            return self.coarse
        # Repeated passes of a step keep the picture of its first pass, as in the authors' code.
        if self._step is None or self._step[0] != state.t:
            self._step = (state.t, self.coarse(state.x_t, self.degraded, state.t).float().clamp(-1, 1))
        return self._step[1]

    def _reference_gradient(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        mean, present = self.reference
        losses, gradients = [], []
        for x, target, here in zip(*(each.split(self.rows) for each in (x0, mean, present)), strict=True):
            x = x.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                embedding = self.embedder.guidance_features(x)[-1].float()
                loss = here * (embedding - target).square().sum(1)
                gradients.append(torch.autograd.grad(loss.sum(), x)[0])
            losses.append(loss.detach())
        return torch.cat(losses), torch.cat(gradients)
