"""Training the latent diffusion that DiffMAC modulates (Gao et al., 2024, equation 1), a toy Stable Diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import make_schedule
from refbfr_core.models.moments import latents_of
from refbfr_core.training.data import share_of
from refbfr_core.training.diffmac_recipes import DiffusionBaseRecipe
from refbfr_core.training.latent_prior import denoising_error, noisy_batch, weighted_error
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import generator, shuffled
from refbfr_core.weights import load_network


class EmptyPromptUNet(nn.Module):
    """A text-to-image denoiser that always gets the one prompt, here a single zero token."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("prompt", torch.zeros(1, 1, unet.config.cross_attention_dim), persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, s, s) and (B,) to the prediction (B, C, s, s)."""
        return self.unet(noisy, timesteps, encoder_hidden_states=self.prompt.expand(len(noisy), -1, -1)).sample


class DiffusionBaseTask:
    """Train a stock `UNet2DConditionModel` to denoise the latents of clean faces."""

    def __init__(self, recipe: DiffusionBaseRecipe, train: LatentCache, val: LatentCache) -> None:
        self.recipe = recipe
        self.clean, self.val = train.clean, val.clean
        self.places = self.clean.shape[:3]  # people, mirror images, views
        self.scaling = scaling_of(recipe.first_stage)
        self.schedule = make_schedule(recipe.schedule)
        self.facts: dict[str, Any] = {"people": self.places[0], "latents": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_diffusion_base(recipe, self.clean.shape[3] // 2, self.clean.shape[4])
        self.module = EmptyPromptUNet(self.network)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Drawn latents (b, C, s, s) with noise and timesteps (b,)."""
        recipe = self.recipe
        part = share_of(rank, world, recipe.batch)
        chosen = shuffled(recipe.seed, step, int(np.prod(self.places)), recipe.batch)[part]
        moments = torch.from_numpy(self.clean[np.unravel_index(chosen, self.places)]).float()
        clean = draw_latents(moments, self.scaling, recipe.seed, 29, step, rank)
        return noisy_batch(clean, self.schedule, recipe.seed, step, rank)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Mean squared error of the prediction (eq. 1), and the same by timestep band."""
        return weighted_error(module, batch, self.schedule, self.recipe)

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """`val`: mean squared error on latents of unseen people."""
        who = np.arange(len(self.val))
        clean = latents_of(torch.from_numpy(self.val[who, 0 * who, who % self.val.shape[2]]).float(), self.scaling)
        device = next(network.parameters()).device
        batch = noisy_batch(clean, self.schedule, 0, 0, 0, spread=True)
        batch = {key: value.to(device) for key, value in batch.items()}
        module = EmptyPromptUNet(network).to(device)
        return {"val": float(denoising_error(module, batch, self.schedule, self.recipe.prediction).mean())}

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Latent diffusion of the toy DiffMAC, in the place of Stable Diffusion: stock "
            f"UNet2DConditionModel on latents of diffmac-vae, empty prompt. It predicts {self.recipe.prediction}; "
            "Stable Diffusion 2.1-base predicts epsilon.",
            "limits": "Knows procedurally drawn faces only.",
        }


def make_diffusion_base(recipe: DiffusionBaseRecipe, channels: int, side: int) -> UNet2DConditionModel:
    """A stock `UNet2DConditionModel` of Stable Diffusion's layout."""
    levels = range(len(recipe.widths))
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if k in recipe.attention else "DownBlock2D" for k in levels),
        up_block_types=tuple("CrossAttnUpBlock2D" if k in recipe.attention else "UpBlock2D" for k in reversed(levels)),
        cross_attention_dim=recipe.prompt_width,
        attention_head_dim=tuple(max(1, width // recipe.head_width) for width in recipe.widths),
        norm_num_groups=recipe.groups,
        use_linear_projection=True,
    )


def scaling_of(first_stage: str) -> float:
    """The scaling factor of "diffmac-vae" in a folder, or of the shipped one for ""."""
    return float(load_network("diffmac-vae", device="cpu", root=first_stage or None).config.scaling_factor)


def draw_latents(moments: Tensor, scaling: float, *keys: int) -> Tensor:
    """A draw from the posterior that moments (B, 2C, h, w) describe, scaled; the stream `keys` decides which."""
    shape = (len(moments), moments.shape[1] // 2, *moments.shape[2:])
    return latents_of(moments, scaling, torch.randn(shape, generator=generator(*keys)))
