"""Fine-tuning with the identity loss while somebody watches: a few people, a few dozen steps, nothing kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError
from refbfr_core.faces import ToyFaces
from refbfr_core.faces.shards import ShardedArray
from refbfr_core.models import encode_latents
from refbfr_core.training.averaging import AveragedWeights
from refbfr_core.training.identity import identity_targets
from refbfr_core.training.latents import load_first_stage
from refbfr_core.training.loop import make_accelerator, make_optimizer, optimiser_step
from refbfr_core.training.recipes import RefLDMIdentityRecipe, recipe
from refbfr_core.training.refldm_identity import RefLDMIdentityTask
from refbfr_core.weights import load_network

OnStep = Callable[[int, int, Mapping[str, float]], Any]
_CHUNK = 12


@dataclass(frozen=True)
class LatentsInMemory:
    """What `RefLDMTask` reads from a `LatentCache`, without a disk."""

    clean: ShardedArray
    ruined: ShardedArray
    folder: Path = Path("memory")


def fine_tune_live(
    scale: str,
    steps: int = 30,
    seed: int = 0,
    people: int = 12,
    on_step: OnStep | None = None,
    *,
    identity_weight: float | None = None,
    lr: float | None = None,
    batch: int = 16,
    data: tuple[LatentsInMemory, ShardedArray] | None = None,
) -> nn.Module:
    """Fine-tune the shipped denoiser on a handful of drawn people; needs no cache on disk.

    Two calls with the same seed see the same people, batches, noise and timesteps, whatever the scale.

    Args:
        scale: a name of `refbfr_core.training.identity.SCALES`, or "none".
        steps: optimiser steps of `batch` samples.
        seed: of people, batches, noise and timesteps.
        people: of the split "train", six pictures of each.
        on_step: called after every step with (steps done, steps, {"loss", "denoising", "identity", ...}), for a
            progress bar or widget; what it raises ends the training.
        identity_weight, lr: None are those of the recipe "refldm-identity".
        data: what `draw_live_data` returned, to draw people once for several calls.

    Returns:
        The averaged `UNet2DModel`, in eval mode and frozen; put it into a pipeline as ``pipeline.unet``.

    Raises:
        UnknownNameError: an unknown scale. ConfigError: impossible settings.
    """
    changes = {"identity_weight": identity_weight, "lr": lr}
    chosen = recipe(
        "refldm-identity", scale=scale, steps=steps, seed=seed, people=people, batch=batch, val_people=1,
        precision="bf16" if _fast_bf16() else "no",
        **{key: value for key, value in changes.items() if value is not None},
    )  # fmt: skip
    latents, targets = draw_live_data(chosen) if data is None else data
    accelerator = make_accelerator(chosen, "cpu")
    task = RefLDMIdentityTask(chosen, latents, latents, targets)
    optimizer = make_optimizer(task.module, chosen, accelerator.device)
    average = AveragedWeights(task.network, chosen.ema)
    wrapped, optimizer = accelerator.prepare(task.module, optimizer)
    for step in range(steps):
        metrics = optimiser_step(task, wrapped, optimizer, accelerator, step)
        average.update(task.network)
        if on_step is not None:
            on_step(step + 1, steps, {key: _mean(value) for key, value in metrics.items()})
    return average.network.eval().requires_grad_(False)


@torch.no_grad()
def draw_live_data(
    chosen: RefLDMIdentityRecipe | None = None, *, people: int = 12, seed: int = 0
) -> tuple[LatentsInMemory, ShardedArray]:
    """Draw, ruin, encode and embed the people of a live fine-tuning.

    Args:
        chosen: a recipe; None is "refldm-identity" with `people` and `seed`.

    Returns:
        Latents, and the targets of the identity loss, (people, 1, views, D).
    """
    if chosen is None:
        chosen = recipe("refldm-identity", people=people, seed=seed)
    if chosen.people < chosen.batch // chosen.targets:
        raise ConfigError(
            f"{chosen.people} people are fewer than the {chosen.batch // chosen.targets} of one batch; draw more."
        )
    vq, embedder = load_first_stage(chosen.first_stage or None), load_network(chosen.embedder, device="cpu")
    faces = ToyFaces(chosen.resolution)
    identities = faces.identities(chosen.people, chosen.seed, split=chosen.split)
    images = faces.render(identities, faces.views(identities, chosen.views, chosen.seed)).images.flatten(0, 1).clone()
    clean = _encode(vq, images, chosen.patch_size)
    ruined = []
    for variant, preset in zip(range(chosen.lq_variants), _endless(chosen.degradations), strict=False):
        seeds = np.random.SeedSequence([chosen.seed, 41, variant]).generate_state(len(images)).tolist()
        ruined.append(_encode(vq, Degradation.preset(preset)(images, seeds=seeds)[0], chosen.patch_size))
    targets = torch.cat([identity_targets(vq, part, embedder, chosen.patch_size) for part in clean.split(_CHUNK)])
    shape = (chosen.people, 1, chosen.views)
    latents = LatentsInMemory(
        ShardedArray([clean.unflatten(0, shape).numpy()]),
        ShardedArray([torch.stack(ruined, 1).unflatten(0, shape).numpy()]),
    )
    return latents, ShardedArray([targets.unflatten(0, shape).numpy()])


def _encode(vq: nn.Module, images: Tensor, patch_size: int) -> Tensor:
    return torch.cat([encode_latents(vq, part, patch_size) for part in images.split(_CHUNK)])


def _endless(presets: tuple[str, ...]) -> Any:
    while True:
        yield from presets


def _mean(value: Tensor) -> float:
    """A metric as a number: pairs are (sum, count)."""
    value = value.detach().float()
    return float(value) if not value.ndim else float(value[0] / value[1].clamp(min=1e-9))


def _fast_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices itself; elsewhere bf16 is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
