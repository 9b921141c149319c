"""Averaged weights (EMA) and learning-rate schedules: the two curves every training here shares."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from refbfr_core.training.recipes import Recipe


class AveragedWeights:
    """Exponential moving average of a network, with ReF-LDM's warm-up: decay min(limit, (1 + k) / (10 + k)).

    ``network`` is the averaged copy, ready to evaluate and to save; floating-point buffers are averaged too, so that
    batch
    norm statistics belong to the averaged weights.
    """

    def __init__(self, network: nn.Module, limit: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.limit, self.updates = limit, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average one step towards ``network``."""
        decay = min(self.limit, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        average, current = [], []
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                average.append(mine)
                current.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(average, current, 1 - decay)

    @torch.no_grad()
    def copy_from(self, network: nn.Module) -> None:
        """Start again from ``network`` as it is now, for example after its codebook was replaced."""
        self.network.load_state_dict(network.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of the 0-based ``step``: linear warm-up, then the recipe's schedule down to the last step."""
    rate = recipe.lr * min(1.0, (step + 1) / max(1, recipe.warmup))
    if recipe.lr_schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))
    if recipe.lr_schedule == "trapezoid" and recipe.cooldown > 0:
        return rate * min(1.0, max(0.0, (recipe.steps - step) / (recipe.cooldown * recipe.steps)))
    return rate
