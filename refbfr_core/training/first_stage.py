"""Training the first stage (a stock diffusers `VQModel`): encoder and decoder first, then a codebook made from data.

Esser et al. (CVPR 2021) train everything together from a random codebook; few codes then survive. Here the encoder and
the decoder learn without a codebook, with noise on the latents that makes the decoder tolerant of rounding; k-means
of the
encoder's outputs gives the codebook; and all three are trained together to the end, dead codes being replaced on the
way.
No discriminator: drawn faces have no texture worth inventing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, reduce
from diffusers import VQModel
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import from_network, to_network
from refbfr_core.models.first_stage import fold_pixels, unfold_pixels
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.models.perceptual import PerceptualFeatures
from refbfr_core.training.codebook import kmeans, nearest
from refbfr_core.training.data import pictures, ruined_crops
from refbfr_core.training.first_stage_recipes import FirstStageRecipe
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import generator, numbers
from refbfr_core.weights import load_network

VAL_PICTURES = 64
SUMMARIES = {
    "refldm-vq": "VQ first stage of the toy ReF-LDM: 128-px picture to 32 x 32 x 4 latents and back, stock VQModel.",
    "ldbfr-vqc": "Condition VQGAN of the toy LD-BFR: 128-px face to 8 x 8 codes of 64 numbers and back, stock VQModel; "
    "perceptual loss, no discriminator.",
    "ldbfr-vqo": "Output VQGAN of the toy LD-BFR: 64-px face to 32 x 32 x 3 latents, rendered at 128 px through one "
    "more doubling; perceptual loss, no discriminator.",
}


class Autoencoder(nn.Module):
    """A VQModel as one module with one forward, which is what data-parallel training wraps.

    ``forward(images, quantise, noise)`` returns the reconstruction (B, 3, h, w), the codebook loss (a scalar, 0 without
    quantisation), the latents (B, C, h/f, w/f), and the chosen codes (N,) or None.
    """

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, images: Tensor, quantise: bool, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Reconstruct images (B, 3, h, w) in [-1, 1]; ``noise`` is in units of the latents' own spread."""
        latents = self.vq.encode(fold_pixels(self.vq, images)).latents.float()
        if quantise:
            mixed, codebook_loss, (_, _, chosen) = self.vq.quantize(latents)
        else:
            spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
            mixed = latents + noise * spread * torch.randn_like(latents)
            # Keeps the unused codebook in the graph: data-parallel training wants a gradient for every parameter.
            codebook_loss, chosen = 0.0 * self.vq.quantize.embedding.weight.sum(), None
        return (
            unfold_pixels(self.vq, self.vq.decode(mixed, force_not_quantize=True).sample),
            codebook_loss,
            latents,
            chosen,
        )


class FirstStageTask:
    """Train a VQModel on crops of drawn faces."""

    def __init__(self, recipe: FirstStageRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        # How often each code was chosen since the last look; each process counts its own share of the batches.
        self.memory = {"used": torch.zeros(recipe.codes)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_first_stage(recipe)
        self.module = Autoencoder(self.network)
        self.perceptual: PerceptualFeatures | None = None
        if recipe.perceptual_weight:
            self.perceptual = load_network("perceptual", device="cpu")
        self.degradation = Degradation.preset(recipe.degradation)
        self.codebook_step = round(recipe.unquantised * recipe.steps)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Random crops (b, 3, crop, crop) in [-1, 1], a few of them ruined."""
        return {"images": ruined_crops(self.images, self.recipe, self.degradation, step, rank, world)}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Charbonnier + squared error + difference of gradients, in [-1, 1] units, plus codebook and spread terms."""
        recipe, images = self.recipe, batch["images"]
        quantise = step >= self.codebook_step
        restored, codebook_loss, latents, chosen = module(images, quantise, recipe.latent_noise)
        if chosen is not None:
            self.memory["used"] += torch.bincount(chosen.flatten(), minlength=recipe.codes).cpu()
        error = restored.float() - images
        squared = error.square().mean()
        total = (
            (error.square() + 1e-6).sqrt().mean()
            + recipe.mse_weight * squared
            + recipe.edge_weight * edge_difference(restored.float(), images)
            + codebook_loss
            + recipe.spread_weight * spread_penalty(latents)
        )
        if self.perceptual is not None:
            perceptual = self.perceptual.to(images.device)
            total = total + recipe.perceptual_weight * perceptual.perceptual_distance(restored.float(), images).mean()
        # Peak-to-peak is 2 in network range.
        return total, {
            "psnr": 10 * torch.log10(4 / squared.detach()),
            "codebook": torch.as_tensor(codebook_loss).detach(),
        }

    def before_step(self, step: int, state: TrainingState) -> None:
        """Make the codebook when its time has come; replace codes that nothing chose since the last look."""
        recipe = self.recipe
        if step == self.codebook_step:
            vectors = self._sample_latents(4 * recipe.codes, step, state)
            self._set_codes(kmeans(vectors, recipe.codes, generator(recipe.seed, 17)), state)
            state.average.copy_from(self.network)
        elif step > self.codebook_step and (step - self.codebook_step) % recipe.restart_every == 0:
            used = self.memory["used"].to(state.accelerator.device)
            if state.accelerator.num_processes > 1:
                used = reduce(used.clone(), "sum")
            # Late restarts would leave codes without time to settle.
            if step < 0.8 * recipe.steps and bool((used == 0).any()):
                dead = (used == 0).nonzero().squeeze(1)
                codes = self.network.quantize.embedding.weight.detach().clone()
                codes[dead] = self._sample_latents(max(len(dead), 256), step, state)[: len(dead)]
                self._set_codes(codes, state, dead)
            self.memory["used"].zero_()

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """PSNR in dB with and without the codebook, share of codes in use and spread of latents, on unseen people."""
        return first_stage_report(network, self.val)

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {"summary": SUMMARIES[self.recipe.network], "limits": "Knows procedurally drawn faces only."}

    def finish(self, network: nn.Module) -> None:
        """Write the scale that gives latents unit spread into the network's configuration, if the recipe wants it."""
        if not self.recipe.unit_latents:
            return
        latents = encode_validation(network, self.val)
        network.register_to_config(scaling_factor=float(f"{1 / float(latents.std()):.6g}"))

    @torch.no_grad()
    def _sample_latents(self, count: int, step: int, state: TrainingState) -> Tensor:
        """``count`` encoder outputs (count, C) of training crops, the same on every process."""
        gathered: list[Tensor] = []
        self.network.eval()
        draws = numbers(self.recipe.seed, 19, step)
        while sum(map(len, gathered)) < count:
            people = draws.integers(0, len(self.images), 16)
            x = pictures(self.images, people, draws.integers(0, self.recipe.views, 16))
            latents = self.network.encode(
                fold_pixels(self.network, to_network(x).to(self.network.device))
            ).latents.float()
            vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
            gathered.append(vectors[torch.from_numpy(draws.permutation(len(vectors))[: len(vectors) // 4])])
        self.network.train()
        vectors = torch.cat(gathered)
        return broadcast(vectors, 0) if state.accelerator.num_processes > 1 else vectors

    @torch.no_grad()
    def _set_codes(self, codes: Tensor, state: TrainingState, rows: Tensor | None = None) -> None:
        """Replace (some rows of) the codebook in the network and the average, and forget the optimiser's memory of
        them."""
        rows = torch.arange(len(codes), device=codes.device) if rows is None else rows
        if state.accelerator.num_processes > 1:
            codes = broadcast(codes, 0)
        weight = self.network.quantize.embedding.weight
        weight[rows] = codes[rows]
        state.average.network.quantize.embedding.weight[rows] = codes[rows]
        memory = state.optimizer.state.get(weight, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in memory:
                memory[key][rows] = 0


def make_first_stage(recipe: FirstStageRecipe) -> VQModel:
    """A `VQModel` that halves the picture ``len(widths) - 1`` times; with tail layers an `OutputVQModel`."""
    others = len(recipe.widths) - 1
    deepest = "Attn" if recipe.attention else ""
    shape = {
        "in_channels": 3 * recipe.pixel_fold**2,
        "out_channels": 3 * recipe.pixel_fold**2,
        "block_out_channels": recipe.widths,
        "down_block_types": ("DownEncoderBlock2D",) * others + (f"{deepest}DownEncoderBlock2D",),
        "up_block_types": (f"{deepest}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * others,
        "layers_per_block": recipe.layers,
        "latent_channels": recipe.latent_channels,
        "num_vq_embeddings": recipe.codes,
        "vq_embed_dim": recipe.latent_channels,
        "norm_num_groups": recipe.groups,
        "mid_block_add_attention": recipe.attention,
        "scaling_factor": 1.0,
    }
    return OutputVQModel(**shape, tail_layers=recipe.tail_layers) if recipe.tail_layers else VQModel(**shape)


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical gradients of two batches."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def spread_penalty(latents: Tensor) -> Tensor:
    """Keeps each latent channel near mean 0 and standard deviation 1, so that k-means and noise have a scale to refer
    to."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (mean.square() + (deviation + 1e-4).log().square()).mean()


@torch.no_grad()
def encode_validation(network: nn.Module, val: FaceCache) -> Tensor:
    """Unscaled latents of the validation pictures, (n, C, h, w) on the CPU."""
    return torch.cat(
        [
            network.encode(fold_pixels(network, to_network(x).to(network.device))).latents.float().cpu()
            for x in _validation(val)
        ]
    )


@torch.no_grad()
def first_stage_report(network: nn.Module, val: FaceCache) -> dict[str, float]:
    """PSNR of the reconstructions (mean over pictures of the dB value), quantised and not, and use of the codebook."""
    quantised, plain, chosen = [], [], []
    for x in _validation(val):
        latents = network.encode(fold_pixels(network, to_network(x).to(network.device))).latents
        codes = nearest(latents.permute(0, 2, 3, 1).flatten(0, 2).float(), network.quantize.embedding.weight.float())
        chosen.append(codes.cpu())
        for free, into in ((False, quantised), (True, plain)):
            restored = from_network(
                unfold_pixels(network, network.decode(latents, force_not_quantize=free).sample.float().cpu())
            )
            into.append(-10 * torch.log10((restored - x).square().mean((1, 2, 3))))
    used = torch.cat(chosen).unique()
    return {
        "psnr_quantised": float(torch.cat(quantised).mean()),
        "psnr_unquantised": float(torch.cat(plain).mean()),
        "codes_used": len(used) / network.config.num_vq_embeddings,
    }


def _validation(val: FaceCache, chunk: int = 8) -> list[Tensor]:
    images = val.images
    count = min(VAL_PICTURES, len(images))
    x = pictures(images, np.arange(count), np.arange(count) % images.shape[1])
    return list(x.split(chunk))
