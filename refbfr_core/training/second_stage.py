"""Training Stage II of DiffMAC (Gao et al., 2024, equation 13): bottleneck and second modulation, all else frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import add_noise, make_schedule
from refbfr_core.models.modulated_unet import denoise_modulated, freeze_unet
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import RunningMoments, latents_of
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.training.data import share_of
from refbfr_core.training.diffmac_base import draw_latents, scaling_of
from refbfr_core.training.diffmac_recipes import StageTwoRecipe
from refbfr_core.training.latent_prior import noisy_batch, prediction_error, weighted_mean
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.modulation import FineTuned
from refbfr_core.training.randomness import generator, numbers, shuffled
from refbfr_core.training.stage_one_outputs import StageOneOutputs, stage_one_unet
from refbfr_core.weights import load_network, weights_digest

STATISTICS_PICTURES = 4096


class StageTwoNetwork(nn.Module):
    """Denoiser and `SecondStage` as one module with one forward, which data-parallel training wants."""

    def __init__(self, unet: UNet2DConditionModel, network: SecondStage, scaling: float) -> None:
        super().__init__()
        self.unet, self.network, self.scaling = unet, network, scaling
        self.register_buffer("prompt", torch.zeros(1, 1, unet.config.cross_attention_dim), persistent=False)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, moments: Tensor, identity: Tensor, filling: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction (B, C, s, s), Z and lambda and the information (all (B, 2C, s, s)); without a bottleneck R, 1, 0.

        `moments` is R, `identity` an embedding (B, D), `filling` noise (B, 2C, s, s) of the compensation, `drawn` noise
        (B, C, s, s) with which s is drawn from Z: the gradient of the diffusion reaches the bottleneck through it.
        """
        made = self.network(moments, identity, filling)
        z = moments if made is None else made.moments
        share = torch.ones_like(z) if made is None else made.share
        information = torch.zeros_like(z) if made is None else made.information
        condition = latents_of(z, self.scaling, drawn)
        return (
            denoise_modulated(self.unet, noisy, timesteps, self.prompt, self.network.modulation, condition),
            z,
            share,
            information,
        )


class StageTwoTask:
    """Train a `SecondStage` on cached outputs of Stage I."""

    def __init__(
        self,
        recipe: StageTwoRecipe,
        train: tuple[LatentCache, StageOneOutputs],
        val: tuple[LatentCache, StageOneOutputs],
    ) -> None:
        self.recipe = recipe
        self.data, self.val = _Pictures(recipe, *train), _Pictures(recipe, *val)
        self.scaling = scaling_of(recipe.first_stage)
        self.schedule = make_schedule(recipe.schedule)
        name, folder = stage_one_unet(recipe)
        self.unet = load_network(name, device="cpu", root=folder or None)
        first = load_network("diffmac-one", device="cpu", root=recipe.stage_one or None)
        self.facts: dict[str, Any] = {
            "people": len(self.data.clean),
            "stage_one": train[1].folder.name,
            name: weights_digest(name, folder)[:12],
            "diffmac-one": weights_digest("diffmac-one", recipe.stage_one)[:12],
        }
        self.memory: dict[str, Tensor] = {}
        second = make_second_stage(recipe, first, self.data.clean, self.data.identity.shape[-1])
        self.module = StageTwoNetwork(freeze_unet(self.unet, recipe.train_unet), second, self.scaling)
        self.network = second if recipe.train_unet == "none" else FineTuned(second, self.unet)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Drawn latents of clean faces with noise and timesteps, R, the identity, and the noises of Z and s."""
        recipe, data = self.recipe, self.data
        part = share_of(rank, world, recipe.batch)
        who, view = np.divmod(shuffled(recipe.seed, step, data.people * data.views, recipe.batch)[part], data.views)
        draws = numbers(recipe.seed, 13, step, rank)
        version = draws.integers(0, data.variants, len(who))
        other = (view + 1 + draws.integers(0, data.photos.shape[1] - 1, len(who))) % data.photos.shape[1]
        batch, clean = data.gather(who, view, version, other)
        keys = (recipe.seed, step, rank)
        latents = draw_latents(clean, self.scaling, recipe.seed, 29, step, rank)
        return (
            noisy_batch(latents, self.schedule, *keys)
            | batch
            | {"mode": latents_of(clean, self.scaling)}
            | _noises(clean, recipe.seed, step, rank)
        )

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Equation 13, and its parts: `information` (11), `reconstruction` (10), the mean of lambda."""
        recipe = self.recipe
        error, z, share, information = self._run(module, batch)
        total, metrics = weighted_mean(error, batch, self.schedule, recipe)
        reconstruction = (latents_of(z, self.scaling) - batch["mode"]).square().mean()
        if recipe.compensation != "off":
            total = total + recipe.info_weight * information.mean() + recipe.rec_weight * reconstruction
        metrics |= {
            "information": information.mean().detach(),
            "reconstruction": reconstruction.detach(),
            "share": share.mean().detach(),
        }
        return total, metrics

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """On unseen people: `val`, the error of the prediction; `reconstruction`; `information` in nats a number; the
        mean of lambda, over all channels and over the means and log-variances alone."""
        second, unet = (network.part, network.unet) if isinstance(network, FineTuned) else (network, self.unet)
        device = next(network.parameters()).device
        data, who = self.val, np.arange(self.val.people)
        batch, clean = data.gather(who, 0 * who, 0 * who, 0 * who + data.photos.shape[1] - 1)
        latents = latents_of(clean, self.scaling)
        batch |= noisy_batch(latents, self.schedule, 0, 0, 0, spread=True) | {"mode": latents} | _noises(clean, 0, 0, 0)
        batch = {key: value.to(device) for key, value in batch.items()}
        module = StageTwoNetwork(unet, second, self.scaling).to(device)
        error, z, share, information = self._run(module, batch)
        means, log_variances = share.chunk(2, dim=1)
        return {
            "val": float(error.mean()),
            "reconstruction": float((latents_of(z, self.scaling) - batch["mode"]).square().mean()),
            "information": float(information.mean()),
            "share": float(share.mean()),
            "share_means": float(means.mean()),
            "share_log_variances": float(log_variances.mean()),
        }

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": f"Stage II of the toy DiffMAC, row {label_of(self.recipe)} of its Table 3: bottleneck and "
            "second modulation of diffmac-unet.",
            "limits": "Knows procedurally drawn faces only. A restored face is a guess.",
        }

    def _run(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noisy = add_noise(batch["clean"], batch["noise"], batch["timesteps"], self.schedule)
        given = (batch[name] for name in ("moments", "identity", "filling", "drawn"))
        predicted, z, share, information = module(noisy, batch["timesteps"], *given)
        error = prediction_error(predicted, batch, self.schedule, self.recipe.prediction)
        return error, z.float(), share.float(), information.float()


class _Pictures:
    """Clean moments, R and identities of the pictures of a cache, as the recipe wants them."""

    def __init__(self, recipe: StageTwoRecipe, moments: LatentCache, outputs: StageOneOutputs) -> None:
        self.clean, self.identity, self.photos = moments.clean, outputs.identity, outputs.photos
        self.from_input, self.from_photo = recipe.source == "input", recipe.identity == "reference"
        self.passed = moments.ruined if self.from_input else outputs.moments
        self.people, self.views, self.variants = outputs.identity.shape[:3]

    def gather(self, who: np.ndarray, view: np.ndarray, version: np.ndarray, other: np.ndarray) -> tuple[Batch, Tensor]:
        """R and the identity of pictures, and the moments of their clean faces; `other` are the photos' views."""
        places = (who, 0 * who, view, version) if self.from_input else (who, view, version)
        identity = self.photos[who, other] if self.from_photo else self.identity[who, view, version]
        batch = {
            "moments": torch.from_numpy(self.passed[places]).float(),
            "identity": torch.from_numpy(identity).float(),
        }
        return batch, torch.from_numpy(self.clean[who, 0 * who, view]).float()


def _noises(moments: Tensor, *keys: int) -> Batch:
    """The compensation's noise and that of the draw of s, for moments of this shape."""
    half = (len(moments), moments.shape[1] // 2, *moments.shape[2:])
    return {
        "filling": torch.randn(moments.shape, generator=generator(*keys, 37)),
        "drawn": torch.randn(half, generator=generator(*keys, 43)),
    }


def label_of(recipe: StageTwoRecipe) -> str:
    """The row of Table 3 that a recipe trains: "0.001_id", "0.1_n", "0.01_none", "no1_0.1_n", "2AdaIN"."""
    if recipe.compensation == "off":
        return "2AdaIN"
    short = {"identity": "id", "noise": "n", "none": "none"}[recipe.compensation]
    short = "ref" if recipe.identity == "reference" else short
    return f"{'no1_' if recipe.source == 'input' else ''}{recipe.info_weight:g}_{short}"


def make_second_stage(recipe: StageTwoRecipe, first: FeatureModulation, clean: Any, identity_dim: int) -> SecondStage:
    """A `SecondStage` whose modulation is Stage I's and whose statistics are those of clean pictures' moments.

    `clean` is (people, 1, views, 2C, h, w); the statistics are per channel, by Welford's method.
    """
    channels = clean.shape[3]
    bottleneck = None
    if recipe.compensation != "off":
        bottleneck = {
            "channels": channels, "identity_dim": identity_dim, "compensation": recipe.compensation, "kl": recipe.kl,
            "statistics_side": 0, "min_std": recipe.min_std, "bias": recipe.bias,
        }  # fmt: skip
    modulation = {key: value for key, value in first.config.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        second = SecondStage(modulation, bottleneck, source=recipe.source, label=label_of(recipe))
    second.modulation.load_state_dict(first.state_dict())
    if second.bottleneck is not None:
        statistics = RunningMoments(per_channel=True)
        people = min(len(clean), max(1, STATISTICS_PICTURES // clean.shape[2]))
        for start in range(0, people, 16):
            who = np.arange(start, min(start + 16, people))
            for view in range(clean.shape[2]):
                statistics.update(torch.from_numpy(clean[who, 0 * who, 0 * who + view]))
        second.bottleneck.set_statistics(statistics.mean, statistics.std)
    return second
