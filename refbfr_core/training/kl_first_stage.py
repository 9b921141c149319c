"""Training the KL autoencoder of the toy DiffMAC, a stock diffusers `AutoencoderKL` (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import from_network, to_network
from refbfr_core.models.first_stage import fold_pixels, unfold_pixels
from refbfr_core.training.data import pictures, ruined_crops
from refbfr_core.training.diffmac_recipes import KLFirstStageRecipe
from refbfr_core.training.first_stage import edge_difference
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.weights import load_network

VAL_PICTURES = 64


class KLAutoencoder(nn.Module):
    """An AutoencoderKL as one module with one forward, which is what data-parallel training wraps."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w) in [-1, 1] to their reconstruction from a drawn latent, and the moments (B, 2C, ...)."""
        posterior = self.vae.encode(fold_pixels(self.vae, images)).latent_dist
        drawn = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        return unfold_pixels(self.vae, self.vae.decode(drawn).sample), posterior.parameters


class KLFirstStageTask:
    """Train an AutoencoderKL on crops of drawn faces."""

    def __init__(self, recipe: KLFirstStageRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_kl_first_stage(recipe)
        self.module = KLAutoencoder(self.network)
        self.perceptual = load_network("perceptual", device="cpu") if recipe.perceptual_weight else None
        self.degradation = Degradation.preset(recipe.degradation)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Random crops (b, 3, crop, crop) in [-1, 1], a few of them ruined."""
        return {"images": ruined_crops(self.images, self.recipe, self.degradation, step, rank, world)}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Charbonnier, squared error, gradients and perceptual distance in [-1, 1] units, plus the divergence."""
        recipe, images = self.recipe, batch["images"]
        restored, moments = module(images)
        error = restored.float() - images
        squared = error.square().mean()
        divergence = DiagonalGaussianDistribution(moments.float()).kl().sum() / (moments.numel() // 2)
        total = (
            (error.square() + 1e-6).sqrt().mean()
            + recipe.mse_weight * squared
            + recipe.edge_weight * edge_difference(restored.float(), images)
            + recipe.kl_weight * divergence
        )
        if self.perceptual is not None:
            perceptual = self.perceptual.to(images.device)
            total = total + recipe.perceptual_weight * perceptual.perceptual_distance(restored.float(), images).mean()
        # Peak-to-peak is 2 in network range.
        return total, {"psnr": 10 * torch.log10(4 / squared.detach()), "kl": divergence.detach()}

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Mean PSNR in dB, `psnr` of the posterior's mean and `psnr_drawn` of a draw, and the spread of the means."""
        return kl_first_stage_report(network, self.val)

    def finish(self, network: nn.Module) -> None:
        """Write the scale that gives latents unit spread into the network's configuration."""
        spread = self.evaluate(network)["latent_std"]
        network.register_to_config(scaling_factor=float(f"{1 / spread:.6g}"))

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "KL autoencoder of the toy DiffMAC: 128-px picture to moments 8 x 32 x 32 and back, stock "
            "AutoencoderKL with folded pixels; perceptual loss, no discriminator.",
            "limits": "Knows procedurally drawn faces only.",
        }


def make_kl_first_stage(recipe: KLFirstStageRecipe) -> AutoencoderKL:
    """An `AutoencoderKL` without attention that halves the folded picture ``len(widths) - 1`` times."""
    levels = len(recipe.widths)
    return AutoencoderKL(
        in_channels=3 * recipe.pixel_fold**2,
        out_channels=3 * recipe.pixel_fold**2,
        block_out_channels=recipe.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=recipe.layers,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


@torch.no_grad()
def kl_first_stage_report(network: AutoencoderKL, val: FaceCache) -> dict[str, float]:
    """PSNR (mean over pictures of the dB value), from the mean and from a draw; standard deviation of the means."""
    count = min(VAL_PICTURES, len(val.images))
    who = np.arange(count)
    means, report = [], {"psnr": [], "psnr_drawn": []}
    noise = torch.Generator().manual_seed(0)
    for x in pictures(val.images, who, who % val.images.shape[1]).split(8):
        posterior = network.encode(fold_pixels(network, to_network(x).to(network.device))).latent_dist
        means.append(posterior.mean.float().cpu())
        drawn = torch.randn(posterior.mean.shape, generator=noise).to(posterior.mean)
        for key, latents in (("psnr", posterior.mean), ("psnr_drawn", posterior.mean + posterior.std * drawn)):
            restored = from_network(unfold_pixels(network, network.decode(latents).sample.float().cpu()))
            report[key].append(-10 * torch.log10((restored - x).square().mean((1, 2, 3))))
    return {key: float(torch.cat(rows).mean()) for key, rows in report.items()} | {
        "latent_std": float(torch.cat(means).std())
    }
