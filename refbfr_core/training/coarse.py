"""Training the toy coarse restorer: a plain regression of clean faces from ruined ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import from_network, to_network
from refbfr_core.models.adm_unet import zero_output
from refbfr_core.models.coarse import CoarseNet
from refbfr_core.training.data import pictures, ruined_pairs
from refbfr_core.training.first_stage import edge_difference
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.pdgrad_recipes import CoarseRecipe

VAL_PICTURES = 64


class CoarseTask:
    """Train a `CoarseNet` on pairs of a ruined and a clean drawn face."""

    def __init__(self, recipe: CoarseRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.degradations = [Degradation.preset(name) for name in recipe.degradations]
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = zero_output(CoarseNet(**recipe.network_shape()))
        self.module = self.network

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Clean and ruined faces, both (b, 3, H, W) in [-1, 1]; the process's pictures share one preset in a step."""
        return ruined_pairs(self.images, self.recipe, self.degradations, step, rank, world)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Absolute error and difference of gradients, in [-1, 1] units."""
        # Timestep 0 is what `CoarseNet.residual` asks at; a wrapped module has a forward pass only.
        restored = batch["ruined"] + module(batch["ruined"], 0).sample.float()
        error = (restored - batch["clean"]).abs().mean()
        edges = edge_difference(restored, batch["clean"])
        return error + self.recipe.edge_weight * edges, {"absolute": error.detach(), "edges": edges.detach()}

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """PSNR in dB before and after, for each degradation, on unseen people."""
        return coarse_report(network, self.val, self.recipe.degradations)

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Coarse restorer of the toy profile (PDGrad's f): feed-forward regression, no reference; keeps "
            "colour and shape, loses who it is.",
            "limits": "Knows procedurally drawn faces only; severe inputs become a smooth average face.",
        }


@torch.no_grad()
def coarse_report(network: CoarseNet, val: FaceCache, degradations: tuple[str, ...]) -> dict[str, float]:
    """`psnr_<preset>` of the restored and `lq_<preset>` of the ruined faces: mean dB over unseen people."""
    count = min(VAL_PICTURES, len(val.images))
    who = np.arange(count)
    clean = pictures(val.images, who, who % val.images.shape[1])
    device = next(network.parameters()).device
    report = {}
    for name in degradations:
        ruined = Degradation.preset(name)(clean, seeds=list(range(count)))[0]
        restored = torch.cat([from_network(network.restore(to_network(x).to(device)).cpu()) for x in ruined.split(8)])
        for key, pictures_ in ((f"psnr_{name}", restored), (f"lq_{name}", ruined)):
            report[key] = float((-10 * torch.log10((pictures_ - clean).square().mean((1, 2, 3)))).mean())
    return report
