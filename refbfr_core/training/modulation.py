"""Training Stage I of DiffMAC (Gao et al., 2024, equation 12): the modulation learns to steer a pretrained denoiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import make_schedule
from refbfr_core.models.modulated_unet import ModulatedUNet, freeze_unet
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import latents_of
from refbfr_core.training.data import share_of
from refbfr_core.training.diffmac_base import draw_latents, scaling_of
from refbfr_core.training.diffmac_recipes import StageOneRecipe
from refbfr_core.training.export import export_network
from refbfr_core.training.latent_prior import denoising_error, noisy_batch, weighted_error
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import numbers, shuffled
from refbfr_core.weights import load_network, weights_digest


class FineTuned(nn.Module):
    """A part that was trained together with its denoiser, averaged and saved together: see `export_stage`."""

    def __init__(self, part: nn.Module, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.part, self.unet = part, unet


def export_fine_tuned(
    network: FineTuned,
    recipe: StageOneRecipe,
    name: str,
    summary: dict[str, Any],
    facts: dict[str, Any],
    about: dict[str, Any],
    out: Path,
) -> Path:
    """Like `export_network`, for a part and the denoiser that changed with it: "diffmac-one-unet" for Stage I and
    "diffmac-two-unet" for Stage II, beside the part. Returns the folder of the part."""
    stage = "one" if recipe.network == "diffmac-one" else "two"
    tuned = replace(recipe, network=f"diffmac-{stage}-unet")
    export_network(network.unet, tuned, name, summary, facts, about, out)
    return export_network(network.part, recipe, name, summary, facts, about, out)


class StageOneNetwork(ModulatedUNet):
    """`ModulatedUNet` with the toy prompt in place."""

    def __init__(self, unet: UNet2DConditionModel, modulation: FeatureModulation) -> None:
        super().__init__(unet, modulation)
        self.register_buffer("prompt", torch.zeros(1, 1, unet.config.cross_attention_dim), persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Noisy latents (B, C, s, s), timesteps (B,), condition (B, C, s, s) to the prediction (B, C, s, s)."""
        return super().forward(noisy, timesteps, self.prompt, condition)


class StageOneTask:
    """Train a `FeatureModulation` (and, if the recipe says so, parts of the denoiser) with cached moments."""

    def __init__(self, recipe: StageOneRecipe, train: LatentCache, val: LatentCache) -> None:
        self.recipe = recipe
        self.clean, self.ruined = train.clean, train.ruined
        self.val = (val.clean, val.ruined)
        self.scaling = scaling_of(recipe.first_stage)
        self.schedule = make_schedule(recipe.schedule)
        self.unet = load_network("diffmac-unet", device="cpu", root=recipe.start or None)
        self.facts: dict[str, Any] = {
            "people": len(self.clean),
            "moments": train.folder.name,
            "diffmac-unet": weights_digest("diffmac-unet", recipe.start)[:12],
        }
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            modulation = FeatureModulation.for_network(self.unet, recipe.pyramid, recipe.channelwise)
        self.module = StageOneNetwork(freeze_unet(self.unet, recipe.train_unet), modulation)
        self.network = modulation if recipe.train_unet == "none" else FineTuned(modulation, self.unet)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Drawn latents of clean faces with noise and timesteps (b,), and s drawn from a ruined version of each."""
        recipe, (people, _, views, variants) = self.recipe, self.ruined.shape[:4]
        part = share_of(rank, world, recipe.batch)
        who, view = np.divmod(shuffled(recipe.seed, step, people * views, recipe.batch)[part], views)
        version = numbers(recipe.seed, 13, step, rank).integers(0, variants, len(who))
        clean = torch.from_numpy(self.clean[who, 0 * who, view]).float()
        ruined = torch.from_numpy(self.ruined[who, 0 * who, view, version]).float()
        batch = noisy_batch(
            draw_latents(clean, self.scaling, recipe.seed, 29, step, rank), self.schedule, recipe.seed, step, rank
        )
        return batch | {"condition": draw_latents(ruined, self.scaling, recipe.seed, 31, step, rank)}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Mean squared error of the prediction (eq. 12), and the same by timestep band."""
        return weighted_error(module, batch, self.schedule, self.recipe)

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Errors on unseen people, same noise in every arm: `val_own` with the person's own ruined picture, `val_wrong`
        with the next person's."""
        modulation, unet = (network.part, network.unet) if isinstance(network, FineTuned) else (network, self.unet)
        device = next(network.parameters()).device
        clean, ruined = self.val
        who = np.arange(len(clean))
        view = who % clean.shape[2]
        latents = latents_of(torch.from_numpy(clean[who, 0 * who, view]).float(), self.scaling)
        condition = latents_of(torch.from_numpy(ruined[who, 0 * who, view, 0 * who]).float(), self.scaling)
        batch = noisy_batch(latents, self.schedule, 0, 0, 0, spread=True) | {"condition": condition}
        batch = {key: value.to(device) for key, value in batch.items()}
        report, module = {}, StageOneNetwork(unet, modulation).to(device)
        for arm, given in (("own", batch["condition"]), ("wrong", batch["condition"].roll(1, 0))):
            error = denoising_error(module, batch | {"condition": given}, self.schedule, self.recipe.prediction)
            report[f"val_{arm}"] = float(error.mean())
        return report

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        words = {"none": "the denoiser is frozen", "encoder": "with the denoiser's encoder", "all": "with the denoiser"}
        return {
            "summary": "Stage I of the toy DiffMAC: condition pyramid and zero-initialised modulation of the encoder "
            f"of diffmac-unet, {words[self.recipe.train_unet]}.",
            "limits": "Knows procedurally drawn faces only. A restored face is a guess.",
        }
