"""Training LD-BFR's injection (Du et al., ACM MM 2024, equation 6): theta_2 learns, everything else is frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.diffusion import make_schedule
from refbfr_core.models.injected_unet import HQInjection, denoise_injected
from refbfr_core.training.condition_features import FeatureCache
from refbfr_core.training.data import share_of
from refbfr_core.training.latent_prior import denoising_error, noisy_batch, weighted_error
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.ldbfr_recipes import InjectionRecipe
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.mechanisms import plain_attention
from refbfr_core.training.randomness import numbers, shuffled
from refbfr_core.weights import load_network, weights_digest


class InjectedNetwork(nn.Module):
    """Frozen network and injectors as one module with one forward, which data-parallel training wants."""

    def __init__(self, unet: UNet2DModel, injection: HQInjection) -> None:
        super().__init__()
        self.unet, self.injection = unet.requires_grad_(False), injection

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """(B, C, s, s), (B,) and f_HQ (B, c, h, h) to the prediction (B, C, s, s)."""
        return denoise_injected(self.unet, noisy, timesteps, self.injection, condition)


class InjectionTask:
    """Train an `HQInjection` on the frozen denoiser with cached latents and conditions."""

    def __init__(
        self, recipe: InjectionRecipe, latents: tuple[LatentCache, FeatureCache], val: tuple[LatentCache, FeatureCache]
    ) -> None:
        self.recipe = recipe
        self.clean, self.features = latents[0].clean, latents[1].features
        self.val = (val[0].clean, val[1].features)
        self.schedule = make_schedule(recipe.schedule)
        self.unet = load_network("ldbfr-unet", device="cpu", root=recipe.start or None)
        self.facts: dict[str, Any] = {
            "people": len(self.features),
            "latents": latents[0].folder.name,
            "features": latents[1].folder.name,
            "ldbfr-unet": weights_digest("ldbfr-unet", recipe.start)[:12],
        }
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = HQInjection.for_network(
                self.unet, self.features.shape[3], self.features.shape[4], recipe.variant,
                expansion=recipe.expansion, released=recipe.released,
            )  # fmt: skip
        if recipe.precision == "bf16":
            plain_attention(self.unet)
        self.module = InjectedNetwork(self.unet, self.network)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Latents of clean faces with noise, timesteps (b,) and the condition f_HQ of a ruined version of each."""
        recipe, (people, views, variants) = self.recipe, self.features.shape[:3]
        part = share_of(rank, world, recipe.batch)
        who, view = np.divmod(shuffled(recipe.seed, step, people * views, recipe.batch)[part], views)
        version = numbers(recipe.seed, 13, step, rank).integers(0, variants, len(who))
        clean = torch.from_numpy(self.clean[who, 0 * who, view]).float()
        batch = noisy_batch(clean, self.schedule, recipe.seed, step, rank)
        return batch | {"condition": torch.from_numpy(self.features[who, view, version]).float()}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Mean squared error of the prediction (eq. 6), and the same by timestep band."""
        return weighted_error(module, batch, self.schedule, self.recipe)

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Errors on unseen people, same noise in every arm: `val_own` with the person's own condition, `val_wrong` with
        the next person's, `val_none` without injection."""
        device = next(network.parameters()).device
        clean, features = self.val
        who = np.arange(len(features))
        view = who % features.shape[1]
        batch = noisy_batch(torch.from_numpy(clean[who, 0 * who, view]).float(), self.schedule, 0, 0, 0, spread=True)
        batch = {key: value.to(device) for key, value in batch.items()}
        condition = torch.from_numpy(features[who, view, 0 * who]).float().to(device)
        module = InjectedNetwork(self.unet.to(device), network)
        arms = {"own": {"condition": condition}, "wrong": {"condition": condition.roll(1, 0)}, "none": {}}
        report = {}
        for arm, extra in arms.items():
            called = module if extra else self.unet
            error = denoising_error(called, batch | extra, self.schedule, self.recipe.prediction)
            report[f"val_{arm}"] = float(error.mean())
        return report

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": f"HQ-feature injection of the toy LD-BFR (theta_2), variant {self.recipe.variant} of Fig. 9: "
            "into ldbfr-unet, features of ldbfr-restorer.",
            "limits": "Knows procedurally drawn faces only. A restored face is a guess.",
        }
