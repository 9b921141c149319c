"""Training an unconditional pixel diffusion with a learned variance (Nichol and Dhariwal, ICML 2021): PDGrad's prior.

The objective is theirs, L_simple + lambda L_vlb (eq. 16): the squared error trains the mean, the variational bound the
variance only (its mean is held fixed).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, add_noise, eps_and_x0, make_schedule, predict_v
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import to_network
from refbfr_core.models.adm_unet import ADMUNet, zero_output
from refbfr_core.training.data import mirror_half, pictures, share_of
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.pdgrad_recipes import PixelDiffusionRecipe
from refbfr_core.training.randomness import generator, numbers, shuffled
from refbfr_core.training.refldm import BANDS, min_snr_weights, spread_timesteps
from refbfr_core.weights import load_network, weights_digest

VAL_PICTURES = 48


class PixelDiffusionTask:
    """Train an `ADMUNet` to denoise drawn faces, and to say how much noise each step should add."""

    def __init__(self, recipe: PixelDiffusionRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.schedule = make_schedule(recipe.schedule)
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_pixel_denoiser(recipe)
        if recipe.start:
            self.network.load_state_dict(load_network(recipe.network, device="cpu", root=recipe.start).state_dict())
            self.facts["start"] = weights_digest(recipe.network, recipe.start)[:12]
        self.module = self.network

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Faces (b, 3, H, W) in [-1, 1], half of them mirrored, with noise and timesteps (b,)."""
        recipe = self.recipe
        part = share_of(rank, world, recipe.batch)
        chosen = shuffled(recipe.seed, step, len(self.images) * recipe.views, recipe.batch)[part]
        draws = numbers(recipe.seed, 11, step, rank)
        x = to_network(pictures(self.images, *np.divmod(chosen, recipe.views)))
        x = mirror_half(x, draws) if recipe.flips else x
        return {
            "clean": x,
            "noise": torch.randn(x.shape, generator=generator(recipe.seed, 23, step, rank)),
            "timesteps": spread_timesteps(len(x), len(self.schedule), draws),
        }

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """L_simple + lambda L_vlb, and the squared error by timestep band."""
        recipe = self.recipe
        error, bound = denoising_terms(module, batch, self.schedule, recipe.prediction)
        weights = error_weights(self.schedule, batch["timesteps"], recipe.prediction, recipe.min_snr).to(error.device)
        band = batch["timesteps"] * BANDS // len(self.schedule)
        metrics = {"vlb": bound.detach().mean()}
        for index in range(BANDS):
            inside = (band == index).float()
            metrics[f"band{index}"] = torch.stack([(error.detach() * inside).sum(), inside.sum()])
        return (weights * error).mean() + recipe.vlb_weight * len(self.schedule) * bound.mean(), metrics

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Errors on unseen people, see `pixel_diffusion_report`."""
        return pixel_diffusion_report(network, self.val, self.schedule, self.recipe.prediction)

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Unconditional pixel diffusion with a learned variance on 128-px drawn faces, toy twin of the "
            f"FFHQ-512 network of DifFace. It predicts {self.recipe.prediction}; the published one predicts epsilon.",
            "limits": "Knows procedurally drawn faces only. A restored face is a guess.",
        }


def make_pixel_denoiser(recipe: PixelDiffusionRecipe) -> ADMUNet:
    """The recipe's network, with the layers at zero that ADM starts from zero."""
    return zero_output(ADMUNet(**recipe.network_shape(), bounded_code=recipe.bounded_code))


def denoising_terms(module: nn.Module, batch: Batch, schedule: Schedule, prediction: str) -> tuple[Tensor, Tensor]:
    """The squared error of the prediction and one term of the bound, a value for each picture.

    Args:
        module: (x_t (B, 3, H, W), timesteps (B,)) -> object with `sample` (B, 6, H, W).
        batch: "clean" (B, 3, H, W) in [-1, 1], "noise", "timesteps" (B,).
        schedule, prediction: of the process; "epsilon" or "v_prediction".

    Returns:
        (B,) mean squared error over pixels and channels, with gradient for the first half of the output; and
        (B,) KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per dimension, with gradient for the variance only;
        at t = 0 the negative log density of the clean picture instead (their eq. 5 to 7).
    """
    clean, noise, t = batch["clean"], batch["noise"], batch["timesteps"]
    noisy = add_noise(clean, noise, t, schedule)
    predicted, code = module(noisy, t).sample.float().chunk(2, dim=1)
    targets = {"epsilon": noise, "sample": clean}
    target = targets[prediction] if prediction in targets else predict_v(clean, noise, t, schedule)
    error = (predicted - target).square().mean((1, 2, 3))
    _, x0 = eps_and_x0(predicted.detach(), noisy, t, schedule, prediction)
    return error, variance_bound(code, x0, clean, t, schedule)


def error_weights(schedule: Schedule, timesteps: Tensor, prediction: str, gamma: float) -> Tensor:
    """Weights (B,) of squared errors that amount to min(snr, gamma) in units of x_0 (Hang et al., ICCV 2023): the error
    of x_0 is that of epsilon over the snr. All 1 for gamma 0."""
    if prediction == "sample" and gamma > 0:
        return schedule.snr.float()[timesteps.cpu()].clamp(max=gamma)
    return min_snr_weights(schedule, timesteps, gamma)


def variance_bound(code: Tensor, x0: Tensor, clean: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """One term of L_vlb for pictures (B, C, H, W) at timesteps (B,), in bits per dimension, (B,).

    Both Gaussians have the form a x_0 + b x_t, so their means differ by a (x0 - clean) whatever x_t is. ``code`` in
    [-1, 1] interpolates the logarithm of the variance between beta tilde and beta (their eq. 15).
    """
    q = schedule
    before, level = q.alphas_cumprod_prev, q.alphas_cumprod
    small = q.betas * (1 - before) / (1 - level)
    small = torch.cat([small[1:2], small[1:]])  # at t = 0 it would be zero; the reference takes the next one
    coefficient = q.betas * before.sqrt() / (1 - level)
    log_small, log_large = (q.coefficients(table.log(), t, code) for table in (small, q.betas))
    share = (code + 1) / 2
    log_variance = share * log_large + (1 - share) * log_small
    squared = (q.coefficients(coefficient, t, code) * (x0 - clean)).square()
    precision = (-log_variance).exp()
    divergence = 0.5 * (log_variance - log_small - 1 + (log_small.exp() + squared) * precision)
    density = 0.5 * (math.log(2 * math.pi) + log_variance + squared * precision)
    # A grey level is 2/255 wide: density of a continuous picture to probability of an 8-bit one.
    likelihood = density - math.log(2 / 255)
    first = (t == 0).view(-1, 1, 1, 1)
    return torch.where(first, likelihood, divergence).mean((1, 2, 3)) / math.log(2)


@torch.no_grad()
def pixel_diffusion_report(
    network: nn.Module, val: FaceCache, schedule: Schedule, prediction: str
) -> dict[str, float]:
    """On unseen people with fixed noise: `val_error` (of the prediction), `val_vlb` (bits per dimension of a step), and
    `psnr_at_T` in dB of the one-step estimate of x_0, clamped, from timesteps T = 100, 300, 500, 700."""
    count = min(VAL_PICTURES, len(val.images))
    who = np.arange(count)
    x = to_network(pictures(val.images, who, who % val.images.shape[1]))
    device = next(network.parameters()).device
    noise = torch.randn(x.shape, generator=generator(0, 29))
    t = (torch.arange(count) * len(schedule) // count)[torch.randperm(count, generator=generator(0, 31))]
    errors, bounds = [], []
    for part in torch.arange(count).split(8):
        batch = {"clean": x[part].to(device), "noise": noise[part].to(device), "timesteps": t[part].to(device)}
        error, bound = denoising_terms(network, batch, schedule, prediction)
        errors.append(error)
        bounds.append(bound)
    report = {"val_error": float(torch.cat(errors).mean()), "val_vlb": float(torch.cat(bounds).mean())}
    for level in (100, 300, 500, 700):
        values = []
        for part in torch.arange(min(count, 16)).split(8):
            noisy = add_noise(x[part], noise[part], level, schedule).to(device)
            predicted = network(noisy, level).sample.float()[:, :3]
            _, x0 = eps_and_x0(predicted, noisy, level, schedule, prediction)
            # Peak-to-peak is 2 in network range.
            values.append(10 * torch.log10(4 / (x0.clamp(-1, 1).cpu() - x[part]).square().mean((1, 2, 3))))
        report[f"psnr_at_{level}"] = float(torch.cat(values).mean())
    return report
