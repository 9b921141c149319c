"""Training the unconditional latent diffusion of LD-BFR (Du et al., ACM MM 2024, equation 5), theta_1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, add_noise, make_schedule, predict_v
from refbfr_core.training.data import share_of
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.ldbfr_recipes import LatentPriorRecipe
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.mechanisms import plain_attention
from refbfr_core.training.randomness import generator, numbers, shuffled
from refbfr_core.training.refldm import BANDS, min_snr_weights, spread_timesteps


class LatentPriorTask:
    """Train a stock `UNet2DModel` to denoise the latents of clean faces."""

    def __init__(self, recipe: LatentPriorRecipe, train: LatentCache, val: LatentCache) -> None:
        self.recipe = recipe
        self.clean, self.val = train.clean, val.clean
        self.places = self.clean.shape[:3]  # people, mirror images, views
        self.schedule = make_schedule(recipe.schedule)
        self.facts: dict[str, Any] = {"people": self.places[0], "latents": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_latent_prior(recipe, self.clean.shape[3], self.clean.shape[4])
        if recipe.precision == "bf16":
            plain_attention(self.network)
        self.module = self.network

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Latents (b, C, s, s) with noise and timesteps (b,)."""
        recipe = self.recipe
        part = share_of(rank, world, recipe.batch)
        chosen = shuffled(recipe.seed, step, int(np.prod(self.places)), recipe.batch)[part]
        clean = torch.from_numpy(self.clean[np.unravel_index(chosen, self.places)]).float()
        return noisy_batch(clean, self.schedule, recipe.seed, step, rank)

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Mean squared error of the prediction (eq. 5), and the same by timestep band."""
        return weighted_error(module, batch, self.schedule, self.recipe)

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """`val`: mean squared error on latents of unseen people."""
        clean = _views(self.val)
        batch = noisy_batch(clean, self.schedule, 0, 0, 0, spread=True)
        batch = {key: value.to(next(network.parameters()).device) for key, value in batch.items()}
        return {"val": float(denoising_error(network, batch, self.schedule, self.recipe.prediction).mean())}

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Unconditional latent diffusion of the toy LD-BFR (theta_1): stock UNet2DModel on latents of "
            f"ldbfr-vqo. It predicts {self.recipe.prediction}; the published one predicts epsilon.",
            "limits": "Knows procedurally drawn faces only.",
        }


def make_latent_prior(recipe: LatentPriorRecipe, channels: int, side: int) -> UNet2DModel:
    """A stock `UNet2DModel` with attention at every level but the finest, the layout of the public FFHQ model."""
    below = len(recipe.widths) - 1
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers,
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * below,
        up_block_types=("AttnUpBlock2D",) * below + ("UpBlock2D",),
        attention_head_dim=recipe.head_width,
        norm_num_groups=recipe.groups,
    )


def noisy_batch(clean: Tensor, schedule: Schedule, seed: int, step: int, rank: int, spread: bool = False) -> Batch:
    """Latents with the noise and timesteps (b,) of (seed, step, rank); `spread` takes a regular grid of timesteps."""
    count = len(clean)
    timesteps = spread_timesteps(count, len(schedule), numbers(seed, 11, step, rank))
    if spread:
        timesteps = torch.arange(count) * len(schedule) // count
    noise = torch.randn(clean.shape, generator=generator(seed, 23, step, rank))
    return {"clean": clean, "noise": noise, "timesteps": timesteps}


def weighted_error(module: nn.Module, batch: Batch, schedule: Schedule, recipe: Any) -> tuple[Tensor, Metrics]:
    """Loss of a step with the recipe's weights, and its unweighted mean by timestep band."""
    return weighted_mean(denoising_error(module, batch, schedule, recipe.prediction), batch, schedule, recipe)


def weighted_mean(error: Tensor, batch: Batch, schedule: Schedule, recipe: Any) -> tuple[Tensor, Metrics]:
    """The mean of errors (B,) with the recipe's weights, and by timestep band without them."""
    weights = min_snr_weights(schedule, batch["timesteps"], recipe.min_snr).to(error.device)
    band, metrics = batch["timesteps"] * BANDS // len(schedule), {}
    for index in range(BANDS):
        inside = (band == index).float()
        metrics[f"band{index}"] = torch.stack([(error.detach() * inside).sum(), inside.sum()])
    return (weights * error).mean(), metrics


def denoising_error(module: nn.Module, batch: Batch, schedule: Schedule, prediction: str) -> Tensor:
    """(B,) mean squared error of the predicted noise or velocity; a "condition" of the batch goes to the module."""
    noisy = add_noise(batch["clean"], batch["noise"], batch["timesteps"], schedule)
    given = (batch["condition"],) if "condition" in batch else ()
    predicted = module(noisy, batch["timesteps"], *given)
    return prediction_error(
        predicted if isinstance(predicted, Tensor) else predicted.sample, batch, schedule, prediction
    )


def prediction_error(predicted: Tensor, batch: Batch, schedule: Schedule, prediction: str) -> Tensor:
    """(B,) mean squared error of a prediction of the noise, or of the velocity, in `batch`."""
    target = batch["noise"]
    if prediction == "v_prediction":
        target = predict_v(batch["clean"], batch["noise"], batch["timesteps"], schedule)
    return (predicted.float() - target).square().mean((1, 2, 3))


def _views(latents: Any) -> Tensor:
    """One latent of each person, (n, C, s, s): view i mod V of person i, not mirrored."""
    who = np.arange(len(latents))
    return torch.from_numpy(latents[who, 0 * who, who % latents.shape[2]]).float()
