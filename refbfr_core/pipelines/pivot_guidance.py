"""The guidance hook of PDGrad: four gradients at the estimate of x_0, combined around their pivots (eq. 9 to 26)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from refbfr_core.diffusion import Correction, StepState, norm_ratio_correction, total_gradient
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.pipelines.pivot_losses import (
    GuidanceNetwork,
    LossWeights,
    Target,
    face_features,
    high_loss,
    low_loss,
)

SCALINGS = ("variance", "norm-ratio")
"""How the gradient enters a step: eq. 9, or PGDiff's share of the step's own length."""

GRADIENTS = ("low_c", "low_r", "high_c", "high_r")


@dataclass(frozen=True)
class PivotSettings:
    """Everything about the guidance that is not a picture or a network.

    Attributes
    ----------
    scale : s of eq. 9; with `scaling` "norm-ratio" the share of the step's length.
    gain : common factor on all four gradients, in `scaling` "variance" only. The paper's losses are means and cosines
        with gradients near 1e-6 a pixel; with s = 0.1 and no factor nothing visible moves, and the paper names none
        (see notebook 07). The number of pixels, a picture's H W, brings them to PGDiff's sums. 1 is the literal
        reading.
    mode : of `total_gradient`: "full", or the ablations "A1" (sum), "A2" (no cap), "A5" (coarse only), "A6" (reference
        only).
    cap : k_max in k = min(1, cap ||pivot|| / ||other||) in case of conflict; 1 is eq. 22 and 25, infinity A2.
    weights : of the terms of the losses.

    Raises
    ------
    ConfigError : numbers that are negative or not finite. UnknownNameError : another scaling.
    """

    scale: float = 0.1
    gain: float = 512.0 * 512.0
    mode: str = "full"
    cap: float = 1.0
    scaling: str = "variance"
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise unknown_name("scaling of the guidance", self.scaling, SCALINGS)
        for name in ("scale", "gain"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a finite number, 0 or more.")
        if not self.cap >= 0:
            raise ConfigError(f"cap is {self.cap}; expected 0 or more, 1 as in the paper, or math.inf for none.")


class PivotGuidance:
    """PDGrad's guidance for one batch: a hook for `refbfr_core.diffusion.sample_learned`.

    Args:
        embedder, perceptual: the networks of the losses; `perceptual` may be None when `weights.terms` leaves "vgg"
            out.
        coarse: target made of y_c.
        reference: target made of the references, or None when nobody has one: then only y_c guides.
        settings: see `PivotSettings`.
        rows: how many pictures go through the networks together; more need more memory and change nothing.

    The step's statistics, (B,) each, are the four losses ("loss_low_c", ...) and what `GradientStats` says about both
    levels ("low_angle", "low_conflict", "low_k", "high_pivot_norm", ...); lengths are those after the gain.
    """

    def __init__(
        self,
        embedder: GuidanceNetwork,
        perceptual: GuidanceNetwork | None,
        coarse: Target,
        reference: Target | None,
        settings: PivotSettings,
        rows: int = 8,
    ) -> None:
        self.embedder, self.perceptual = embedder, perceptual if "vgg" in settings.weights.terms else None
        self.coarse, self.reference, self.settings, self.rows = coarse, reference, settings, rows

    def __call__(self, state: StepState) -> Correction:
        """The shift of the mean, -s Sigma g (eq. 9), or its norm-ratio counterpart."""
        losses, gradients = self.gradients(state.x0)
        gain = self.settings.gain if self.settings.scaling == "variance" else 1.0
        total, (low, high) = total_gradient(
            *(gain * gradients[name] for name in GRADIENTS),
            mode=self.settings.mode,
            cap=self.settings.cap,
            return_stats=True,
        )
        stats = {f"loss_{name}": value for name, value in losses.items()} | low.named("low_") | high.named("high_")
        if self.settings.scaling == "norm-ratio":
            return norm_ratio_correction(total, self.settings.scale, stats=stats)
        return Correction(mean_shift=-self.settings.scale * state.variance * total, stats=stats)

    def gradients(self, x0: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses L_low^c, L_low^r, L_high^c, L_high^r and their gradients at x0.

        The denoiser is not differentiated: the gradient is taken with respect to the estimate itself, at its clamped
        value. All four share one forward pass; without references the two of r are zeros.

        Args:
            x0: (B, 3, H, W) in [-1, 1].

        Returns:
            two dicts over `GRADIENTS`: values (B,), and gradients (B, 3, H, W).
        """
        losses: dict[str, list[Tensor]] = {name: [] for name in GRADIENTS}
        gradients: dict[str, list[Tensor]] = {name: [] for name in GRADIENTS}
        for rows in _chunks(len(x0), self.rows):
            x = x0[rows].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                values = self._losses(x, rows)
                for number, (name, value) in enumerate(values.items(), 1):
                    # Images do not see each other, so the gradient of the sum is each image's own.
                    (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=number < len(values))
                    losses[name].append(value.detach())
                    gradients[name].append(gradient)
            for name in GRADIENTS:
                if name not in values:
                    losses[name].append(torch.zeros(len(x), device=x.device))
                    gradients[name].append(torch.zeros_like(x0[rows]))
        return (
            {name: torch.cat(parts) for name, parts in losses.items()},
            {name: torch.cat(parts) for name, parts in gradients.items()},
        )

    def _losses(self, x: Tensor, rows: slice) -> dict[str, Tensor]:
        features = face_features(x, self.embedder, self.perceptual)
        weights, values = self.settings.weights, {}
        for letter, target in (("c", self.coarse), ("r", self.reference)):
            if target is not None:
                part = target.rows(rows)
                values[f"low_{letter}"] = low_loss(features, part, weights)
                values[f"high_{letter}"] = high_loss(features, part, weights)
        return values


def _chunks(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
