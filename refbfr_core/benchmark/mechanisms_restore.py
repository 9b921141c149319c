"""Restoring pictures with a trained reference mechanism, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor

from refbfr_core.devices import pick_device
from refbfr_core.diffusion import classifier_free_guidance, image_generators, image_noise, make_schedule, make_timesteps
from refbfr_core.diffusion import sample as run_ddim
from refbfr_core.errors import ConfigError
from refbfr_core.images import from_network
from refbfr_core.models import decode_latents, encode_latents, pixels_per_latent
from refbfr_core.models.mechanisms import ReferenceMechanism, load_mechanism, read_mechanism
from refbfr_core.pipelines.references import encode_references
from refbfr_core.pipelines.rows import ROW_GROUP, in_groups, row_groups

EXPORT = Path("export") / "refldm-mechanism"


@dataclass(frozen=True)
class Arm:
    """A trained mechanism with the settings it was trained under; `training` is what its export says about that."""

    network: ReferenceMechanism
    schedule: str
    prediction: str
    patch_size: int
    training: Mapping[str, Any]

    def resolution(self, vq: VQModel) -> int:
        """Side in pixels of the pictures it restores with this first stage."""
        return self.network.unet.config.sample_size * self.patch_size * pixels_per_latent(vq)


def load_arm(folder: str | Path, device: str | torch.device | None = None) -> Arm:
    """A mechanism from the folder of its run, or from that of its export. Raises `WeightsError` as `load_mechanism`."""
    folder = Path(folder)
    folder = folder / EXPORT if (folder / EXPORT).is_dir() else folder
    about = read_mechanism(folder)["about"]
    recipe = about.get("recipe")
    if recipe is None:
        raise ConfigError(f"{folder} does not say how it was trained; export it with `refbfr train refldm-mechanism`.")
    network = load_mechanism(folder).to(pick_device(device))
    return Arm(network, recipe["schedule"], recipe["prediction"], recipe["patch_size"], about)


@torch.no_grad()
def restore(
    arm: Arm,
    vq: VQModel,
    lq: Tensor,
    references: Tensor | None,
    *,
    steps: int = 10,
    guidance: float = 1.0,
    seeds: Sequence[int],
) -> Tensor:
    """Restore (B, 3, H, W) pictures in [0, 1] with DDIM; references (B, R, 3, H, W), or None. Returns (B, 3, H, W)."""
    encoded = Encoded(vq, arm.patch_size, lq, references)
    return restore_encoded(arm, encoded, None, steps, guidance, seeds)


class Encoded:
    """Pictures of a batch and their latents, each encoded once, whatever is done with them."""

    def __init__(self, vq: VQModel, patch_size: int, lq: Tensor, references: Tensor | None) -> None:
        self.vq, self.patch_size = vq, patch_size
        device = next(vq.parameters()).device
        self.lq, self.references = lq.to(device), None if references is None else references.to(device)

    @cached_property
    def lq_latents(self) -> Tensor:
        """(B, C, h, w)."""
        return in_groups(lambda rows: encode_latents(self.vq, rows, self.patch_size), self.lq)

    @cached_property
    def reference_latents(self) -> Tensor:
        """(B, R, C, h, w)."""
        return encode_references(self.vq, self.references, patch_size=self.patch_size)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        decoded = in_groups(lambda rows: decode_latents(self.vq, rows, self.patch_size), latents)
        return from_network(decoded.float())


@torch.no_grad()
def restore_encoded(
    arm: Arm, encoded: Encoded, count: int | None, steps: int, guidance: float, seeds: Sequence[int]
) -> Tensor:
    """As `RefLDMPipeline`, for any mechanism, with the first `count` references, or all of them.

    References are prepared once, guidance compares with references that are all zeros, and every network call sees
    equally many rows.
    """
    schedule, lq = make_schedule(arm.schedule), encoded.lq_latents
    used = arm.network.name != "none" and encoded.references is not None and count != 0
    latents = encoded.reference_latents[:, :count] if used else None
    guided = used and guidance != 1.0
    groups = [rows.to(lq.device) for rows in row_groups(len(lq), ROW_GROUP)]
    contexts = []
    for rows in groups:
        own = latents[rows] if used else None
        nulls = [torch.zeros_like(own)] if guided else []
        contexts.append([arm.network.prepare(each) for each in (own, *nulls)])

    def predict(x_t: Tensor, t: int) -> Tensor:
        outputs = []
        for rows, branches in zip(groups, contexts, strict=True):
            joined = torch.cat([x_t[rows], lq[rows]], dim=1)
            own, *null = [arm.network(joined, t, context) for context in branches]
            outputs.append(classifier_free_guidance(*null, own, guidance) if guided else own)
        return torch.cat(outputs)[: len(x_t)]

    noise = image_noise(image_generators(list(seeds), len(lq)), lq.shape[1:], device=lq.device)
    timesteps = make_timesteps("trailing", len(schedule), steps)
    return encoded.decode(run_ddim(predict, noise, timesteps, schedule, prediction=arm.prediction))
