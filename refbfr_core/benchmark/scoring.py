"""Scoring a batch with several metrics whose networks are loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refbfr_core.metrics import compute
from refbfr_core.metrics.perceptual import load_lpips
from refbfr_core.metrics.textures import load_textures
from refbfr_core.weights import load_network


class Scorer:
    """Scores restorations against the truth, one dictionary an image.

    Args:
        metrics: names of `refbfr_core.metrics.REGISTRY`.
        judge: the embedder behind "ids" and "deg".
    """

    def __init__(self, metrics: Sequence[str], judge: nn.Module) -> None:
        self.metrics = tuple(metrics)
        self._keywords: dict[str, dict[str, Any]] = {"ids": {"embedder": judge}, "deg": {"embedder": judge}}
        self._device = next(judge.parameters()).device
        if "lpips" in self.metrics:
            self._keywords["lpips"] = {"network": load_lpips(device=self._device)}
        if "lpips-toy" in self.metrics:
            self._keywords["lpips-toy"] = {"network": load_network("perceptual", device=self._device)}
        if "textures" in self.metrics:
            self._keywords["textures"] = {"features": load_textures(self._device)}

    def __call__(self, pictures: Tensor, truth: Tensor) -> list[dict[str, float]]:
        """Scores (B, 3, H, W) pictures in [0, 1]; raises what `refbfr_core.metrics.compute` raises."""
        pair = pictures.to(self._device), truth.to(self._device)
        columns = {name: compute(name, *pair, **self._keywords.get(name, {})).tolist() for name in self.metrics}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
