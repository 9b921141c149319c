"""Training ReF-LDM's denoiser with references (Hsiao et al., NeurIPS 2024, sections 3.2 and 3.3; no identity loss
here)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, add_noise, make_schedule, predict_v
from refbfr_core.errors import ConfigError
from refbfr_core.faces.shards import ShardedArray
from refbfr_core.models import ReferenceCache, denoise
from refbfr_core.models.cachekv import base_network
from refbfr_core.models.mechanism_base import ReferenceMechanism
from refbfr_core.training.data import share_of
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import generator, numbers, shuffled
from refbfr_core.training.recipes import RefLDMRecipe

BANDS = 5
ARMS = ("none", "right1", "right2", "wrong2")


class RefLDMTask:
    """Train a `UNet2DModel` to predict noise from a noisy latent, a ruined latent and, through CacheKV, references.

    A person's references run through the network once and serve all of the person's targets in the batch; gradients
    flow
    through them.
    """

    def __init__(self, recipe: RefLDMRecipe, train: LatentCache, val: LatentCache) -> None:
        self.recipe = recipe
        self.clean, self.ruined, self.val = train.clean, train.ruined, val
        people, self.mirrors, self.views = self.clean.shape[:3]
        self.rows = people * self.mirrors
        if len(recipe.reference_counts) > self.views:
            raise ConfigError(
                f"{len(recipe.reference_counts) - 1} references and a target do not fit {self.views} views."
            )
        self.schedule = make_schedule(recipe.schedule)
        self.facts: dict[str, Any] = {"people": people, "latents": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_denoiser(recipe, channels=self.clean.shape[3], size=self.clean.shape[4])
        self.module = self.network

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Latents of this process's people: P = batch / targets / world people, k = targets.

        ``clean`` (P k, C, h, w), ``ruined`` likewise (zeros where dropped), ``references`` (P, R, C, h, w) of other
        views
        than the targets (zeros where dropped; R may be 0), ``noise``, ``timesteps`` (P k,), and ``places`` (P k, 3):
        person, mirror image and view of each target.
        """
        recipe = self.recipe
        people = recipe.batch // recipe.targets
        if people % world:
            raise ConfigError(
                f"{people} people a batch cannot be shared by {world} processes; change batch or targets."
            )
        count = int(numbers(recipe.seed, 5, step).choice(len(recipe.reference_counts), p=recipe.reference_counts))
        rows = shuffled(recipe.seed, step, self.rows, people)[share_of(rank, world, people)]
        draws = numbers(recipe.seed, 11, step, rank)
        who, mirrored = np.divmod(rows, self.mirrors)
        references, targets = zip(*(split_views(self.views, count, recipe.targets, draws) for _ in rows), strict=True)
        owner, mirror = np.repeat(who, recipe.targets), np.repeat(mirrored, recipe.targets)
        target = np.concatenate(targets)
        variant = draws.integers(0, self.ruined.shape[3], len(target))
        clean = _gather(self.clean, owner, mirror, target)
        ruined = _gather(self.ruined, owner, mirror, target, variant)
        ruined[torch.from_numpy(draws.random(len(ruined)) < recipe.drop_lq)] = 0
        chosen = np.concatenate(references)
        refs = _gather(self.clean, np.repeat(who, count), np.repeat(mirrored, count), chosen) if count else clean[:0]
        refs = refs.reshape(len(rows), count, *clean.shape[1:])
        refs[torch.from_numpy(draws.random(len(rows)) < recipe.drop_references)] = 0
        return {
            "clean": clean,
            "ruined": ruined,
            "references": refs,
            "noise": torch.randn(clean.shape, generator=generator(recipe.seed, 23, step, rank)),
            "timesteps": spread_timesteps(len(clean), len(self.schedule), draws),
            "places": torch.from_numpy(np.stack([owner, mirror, target], 1)),
        }

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Mean squared error of the predicted noise (spec section 4), and the same by timestep band."""
        error = denoising_error(module, batch, self.schedule, self.recipe.prediction)
        weights = min_snr_weights(self.schedule, batch["timesteps"], self.recipe.min_snr).to(error.device)
        band = batch["timesteps"] * BANDS // len(self.schedule)
        detached, metrics = error.detach(), {}
        for index in range(BANDS):
            inside = (band == index).float()
            metrics[f"band{index}"] = torch.stack([(detached * inside).sum(), inside.sum()])
        metrics[f"refs{batch['references'].shape[1]}"] = detached.mean()
        return (weights * error).mean(), metrics

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Loss on unseen people with the same noise in every arm: no, one, two right and two wrong references."""
        return denoiser_report(network, self.val, self.schedule, self.recipe.prediction)

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Denoiser of the toy ReF-LDM: stock UNet2DModel on patchified first-stage latents, "
            "references through CacheKV.",
            "limits": "Knows procedurally drawn faces only. A restored face is a guess.",
        }


def make_denoiser(recipe: RefLDMRecipe, channels: int, size: int) -> UNet2DModel:
    """A stock UNet2DModel with attention at every level, 2C channels in and C out."""
    levels = len(recipe.widths)
    return UNet2DModel(
        sample_size=size,
        in_channels=2 * channels,
        out_channels=channels,
        block_out_channels=recipe.widths,
        layers_per_block=recipe.layers,
        down_block_types=("AttnDownBlock2D",) * levels,
        up_block_types=("AttnUpBlock2D",) * levels,
        attention_head_dim=recipe.head_width,
        norm_num_groups=recipe.groups,
        norm_eps=1e-5,
        freq_shift=0,
        flip_sin_to_cos=True,
    )


def denoising_error(module: nn.Module, batch: Batch, schedule: Schedule, prediction: str = "epsilon") -> Tensor:
    """Mean squared error for every target, (P k,) float32: of the noise (the paper) or of the velocity v."""
    noisy = add_noise(batch["clean"], batch["noise"], batch["timesteps"], schedule)
    predicted = predict(module, torch.cat([noisy, batch["ruined"]], 1), batch["timesteps"], batch["references"])
    target = batch["noise"]
    if prediction == "v_prediction":
        target = predict_v(batch["clean"], batch["noise"], batch["timesteps"], schedule)
    return (predicted.float() - target).square().mean((1, 2, 3))


def predict(module: nn.Module, sample: Tensor, timesteps: Tensor, references: Tensor) -> Tensor:
    """The network's prediction (P k, C, h, w) for k targets each of P people, whose references enter once for all k.

    ``module`` is a stock `UNet2DModel`, used with CacheKV, or a `ReferenceMechanism`.
    """
    share, network = len(sample) // max(1, len(references)), base_network(module)
    if isinstance(network, ReferenceMechanism):
        return module(sample, timesteps, network.prepare(references).repeat_interleave(share))
    cache = ReferenceCache.build(module, references).repeat_interleave(share) if references.shape[1] else None
    return denoise(module, sample, timesteps, cache)


def split_views(views: int, references: int, targets: int, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Different views for the references, and targets among the others: as many different ones as there are, then
    again."""
    order = draws.permutation(views)
    others = order[references:]
    repeats = -(-targets // len(others))
    return order[:references], np.tile(others, repeats)[:targets]


def spread_timesteps(count: int, total: int, draws: np.random.Generator) -> Tensor:
    """(count,) timesteps, each uniform on 0 ... total-1, together evenly spread: less noise in the gradient for
    nothing.

    One random offset shifts a regular grid; a permutation decides who gets which.
    """
    places = (draws.permutation(count) + draws.random()) / count
    return torch.from_numpy((places * total).astype(np.int64) % total)


def min_snr_weights(schedule: Schedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights min(1, gamma / snr), for noise prediction those of Hang et al. (ICCV 2023, eq. 8); all 1 for gamma 0."""
    if gamma <= 0:
        return torch.ones(len(timesteps))
    snr = schedule.snr.float()[timesteps.cpu()]
    return snr.clamp(max=gamma) / snr


@torch.no_grad()
def denoiser_report(
    network: nn.Module, val: LatentCache, schedule: Schedule, prediction: str = "epsilon", people: int = 48
) -> dict[str, float]:
    """``val_<arm>``: mean squared noise error; same pictures, noise and timesteps in every arm. Views 0, 1 are
    references,
    view 2 the target; the wrong person is the next one. ``gain`` = none - right2, ``harm`` = wrong2 - right2."""
    clean, ruined = val.clean, val.ruined
    count = min(people, len(clean))
    who, zero = np.arange(count), np.zeros(count, int)
    device = next(network.parameters()).device
    target = _gather(clean, who, zero, zero + 2).to(device)
    lq = _gather(ruined, who, zero, zero + 2, zero).to(device)
    right = torch.stack([_gather(clean, who, zero, zero + view) for view in (0, 1)], 1).to(device)
    arms = {"none": right[:, :0], "right1": right[:, :1], "right2": right, "wrong2": right.roll(1, 0)}
    noise = torch.randn(target.shape, generator=generator(0, 29)).to(device)
    report = {}
    for arm in ARMS:
        losses = []
        for repeat in range(2):
            t = (torch.arange(count) * len(schedule) // count + 7 * repeat).clamp(max=len(schedule) - 1)
            t = t[torch.randperm(count, generator=generator(0, 31, repeat))].to(device)
            batch = {"clean": target, "ruined": lq, "references": arms[arm], "noise": noise, "timesteps": t}
            losses.append(denoising_error(network, batch, schedule, prediction).mean())
        report[f"val_{arm}"] = float(torch.stack(losses).mean())
    return report | {
        "gain": report["val_none"] - report["val_right2"],
        "harm": report["val_wrong2"] - report["val_right2"],
    }


def _gather(array: ShardedArray, *indices: np.ndarray) -> Tensor:
    """Entries of a latent array at integer positions, as (n, C, h, w) float32."""
    return torch.from_numpy(array[tuple(indices)]).float()
