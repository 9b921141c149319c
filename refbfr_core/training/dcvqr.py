"""Training stage 1 of LD-BFR (Du et al., ACM MM 2024, equations 2 to 4): E_LQ and DCAM on pairs of faces."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import from_network, to_network
from refbfr_core.models.vq_restorer import VQRestorer, decode_feature, encode_feature, look_up, restore_features
from refbfr_core.training.data import pictures, ruined_pairs
from refbfr_core.training.ldbfr_recipes import DCVQRRecipe
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.weights import load_network, weights_digest

VAL_PICTURES = 64
SEVERITIES = ("toy-ldbfr-mild", "toy-ldbfr-medium", "toy-ldbfr-severe")


class StageOne(nn.Module):
    """Restorer and frozen condition VQGAN as one module with one forward, which data-parallel training wants."""

    def __init__(self, restorer: VQRestorer, vq: VQModel) -> None:
        super().__init__()
        self.restorer, self.vq = restorer, vq.requires_grad_(False)

    def forward(self, ruined: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ruined faces (B, 3, H, W) in [-1, 1] to f_HQ, f_LQ, f'_HQ (all (B, C, h, w)) and D'_HQ(f_HQ) (B, 3, H, W)."""
        made = restore_features(self.restorer, self.vq, ruined)
        return made.restored, made.degraded, made.looked_up, decode_feature(self.vq, made.restored)


class DCVQRTask:
    """Train a `VQRestorer` whose encoder starts as the condition VQGAN's."""

    def __init__(self, recipe: DCVQRRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.degradations = [Degradation.preset(name) for name in recipe.degradations]
        root = recipe.first_stage or None
        self.vq = load_network("ldbfr-vqc", device="cpu", root=root)
        self.facts: dict[str, Any] = {
            "people": len(self.images),
            "faces": train.folder.name,
            "ldbfr-vqc": weights_digest("ldbfr-vqc", root)[:12],
        }
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = VQRestorer.copy_of(
                self.vq, recipe.heads, mode=recipe.mode, channel_scale=recipe.channel_scale, dual=recipe.dual
            )
        self.module = StageOne(self.network, self.vq)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Clean and ruined faces, both (b, 3, H, W) in [-1, 1]; the process's pictures share one preset in a step."""
        return ruined_pairs(self.images, self.recipe, self.degradations, step, rank, world)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Equation 4: mean squared error of the feature (eq. 2) and of the picture (eq. 3)."""
        with torch.no_grad():
            wanted = encode_feature(self.vq.to(batch["clean"].device), batch["clean"]).float()
        restored, degraded, looked_up, picture = module(batch["ruined"])
        feature = (restored.float() - wanted).square().mean()
        pixel = (picture.float() - batch["clean"]).square().mean()
        total = feature + self.recipe.pixel_weight * pixel
        if self.recipe.commitment:
            # The looked-up codes carry f_LQ's gradient, so the distance to them has to be taken without it.
            total = total + self.recipe.commitment * (degraded - looked_up.detach()).float().square().mean()
        return total, {"feature": feature.detach(), "pixel": pixel.detach()}

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """PSNR in dB of the ruined face and of stage 1, and share of right codes, by severity, on unseen people."""
        return stage_one_report(network, self.vq, self.val)

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        parts = "E_LQ and dual cross-attention" if self.recipe.dual else "E_LQ alone, without dual cross-attention"
        return {
            "summary": f"Stage 1 of the toy LD-BFR, DC-VQR: {parts}; needs the condition VQGAN ldbfr-vqc.",
            "limits": "Knows procedurally drawn faces only. Trained on squared errors, it answers severe inputs with "
            "a smooth average of the faces that fit.",
        }


@torch.no_grad()
def stage_one_report(restorer: VQRestorer, vq: VQModel, val: FaceCache) -> dict[str, float]:
    """`psnr_<preset>`, `lq_<preset>` (mean dB) and `codes_<preset>`: share of places with the clean face's code."""
    count = min(VAL_PICTURES, len(val.images))
    who = np.arange(count)
    clean = pictures(val.images, who, who % val.images.shape[1])
    device = next(restorer.parameters()).device
    vq, report = vq.to(device), {}
    codebook = vq.quantize.embedding.weight
    right = [look_up(encode_feature(vq, to_network(x).to(device)), codebook)[0] for x in clean.split(8)]
    for name in SEVERITIES:
        ruined = Degradation.preset(name)(clean, seeds=list(range(count)))[0]
        made = [restore_features(restorer, vq, to_network(x).to(device)) for x in ruined.split(8)]
        restored = torch.cat([from_network(decode_feature(vq, each.restored)).cpu() for each in made])
        for key, pictures_ in ((f"psnr_{name}", restored), (f"lq_{name}", ruined)):
            report[key] = float((-10 * torch.log10((pictures_ - clean).square().mean((1, 2, 3)))).mean())
        same = [(each.codes == wanted).float().mean((1, 2)) for each, wanted in zip(made, right, strict=True)]
        report[f"codes_{name}"] = float(torch.cat(same).mean())
    return report
