"""Fine-tuning the toy denoiser with ReF-LDM's identity loss: one arm of the ablation (Hsiao et al., section 3.3).

Every arm starts from the same trained denoiser and sees the same batches, noise and timesteps; only the scale of the
identity loss differs. Its targets, embeddings of the first stage's reconstructions, never change and are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, add_noise, eps_and_x0
from refbfr_core.errors import CacheError
from refbfr_core.faces.shards import FORMAT, PEOPLE_PER_SHARD, ShardedArray, ShardedCache, write_shard
from refbfr_core.models import ReferenceCache, decode_latents, denoise
from refbfr_core.training.identity import identity_loss, identity_targets, refldm_loss
from refbfr_core.training.latents import LatentCache, load_first_stage
from refbfr_core.training.loop import Batch, Metrics
from refbfr_core.training.randomness import generator
from refbfr_core.training.recipes import RefLDMIdentityRecipe
from refbfr_core.training.refldm import BANDS, RefLDMTask, min_snr_weights
from refbfr_core.weights import load_network, weights_digest

_CHUNK = 12
_REPORT_TIMESTEPS = (100, 300, 500, 700, 900)


class IdentityTargets(ShardedCache):
    """Embeddings of the first stage's reconstructions of every picture of a `LatentCache`, float32.

    Parameters
    ----------
    root : folder of all caches. latents : must be on disk before :meth:`build`.
    embedder : name of the network, "guide". device : where ``build(workers=0)`` runs.
    """

    def __init__(self, root: str | Path, latents: LatentCache, embedder: str = "guide", device: str = "cpu") -> None:
        self.latents, self.embedder, self.device = latents, embedder, device
        self.digest = weights_digest(embedder)[:12]
        super().__init__(Path(root) / f"targets-{embedder}-{self.digest}-{latents.folder.name}", latents.identities)

    @property
    def embeddings(self) -> ShardedArray:
        """(people, 1 or 2 mirror images, views, D) float32 unit vectors."""
        return self.array("embeddings")

    def description(self) -> dict[str, Any]:
        """What the targets depend on."""
        return {
            "format": FORMAT,
            "latents": self.latents.description(),
            "embedder": self.digest,
            "people_per_shard": PEOPLE_PER_SHARD,
        }

    def nbytes(self) -> int:
        """Bytes of the complete cache, for embeddings of 256 numbers."""
        return self.identities * self.latents.faces.views * (2 if self.latents.flips else 1) * 256 * 4

    def _prepare(self) -> None:
        if self.latents.ready < self.identities:
            raise CacheError(
                f"{self.latents.folder} holds {self.latents.ready} of {self.identities} people; build it first."
            )
        if not (self.folder / "cache.json").is_file():
            self._write_description()

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        cache = self.latents
        make = partial(embed_shard, cache.first_stage, self.embedder, cache.patch_size, self.device)
        return make, ((self.shard(r.start), cache.shard(r.start) / "clean.npy", len(r)) for r in missing)


class RefLDMIdentityTask(RefLDMTask):
    """Fine-tune a trained `UNet2DModel` with `refldm_loss`; with scale "none" the loss is that of its training."""

    def __init__(
        self, recipe: RefLDMIdentityRecipe, train: LatentCache, val: LatentCache, targets: ShardedArray | None
    ) -> None:
        super().__init__(recipe, train, val)
        self.network = self.module = load_network("refldm-unet", device="cpu", root=recipe.start or None)
        self.network.requires_grad_(True)
        self.targets = targets
        self.vq = load_first_stage(recipe.first_stage or None)
        self.embedder = load_network(recipe.embedder, device="cpu")
        self.facts["start"] = weights_digest("refldm-unet", recipe.start)[:12]
        self.facts["embedder"] = weights_digest(recipe.embedder)[:12]

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """As `RefLDMTask.batch`; with an identity loss also ``targets`` (P k, D)."""
        batch = super().batch(step, rank, world)
        places = batch.pop("places").numpy()
        if self.recipe.scale == "none":
            return batch
        return batch | {"targets": torch.from_numpy(self.targets[tuple(places.T)])}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """`refldm_loss`, and its parts: ``denoising``, ``identity`` (scaled), and ID by timestep band."""
        recipe, timesteps = self.recipe, batch["timesteps"]
        device = batch["clean"].device
        parts = refldm_loss(
            module, batch["clean"], batch["ruined"], batch["references"], batch["noise"], timesteps, self.schedule,
            prediction=recipe.prediction, scale=None if recipe.scale == "none" else recipe.scale,
            weight=recipe.identity_weight, vq=self.vq.to(device), embedder=self.embedder.to(device),
            targets=batch.get("targets"), patch_size=recipe.patch_size,
            denoising_weights=min_snr_weights(self.schedule, timesteps, recipe.min_snr),
        )  # fmt: skip
        metrics: Metrics = {"denoising": parts.denoising, "identity": parts.identity}
        band = timesteps * BANDS // len(self.schedule)
        known = ~parts.identity_each.isnan()
        for index in range(BANDS):
            inside = known & (band == index)
            metrics[f"id_band{index}"] = torch.stack([parts.identity_each[inside].sum(), inside.float().sum()])
        return parts.total, metrics

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """`denoiser_report`, and the mean ID of one-step predictions on unseen people by the loss's own embedder."""
        network.to(next(self.network.parameters()).device)
        return super().evaluate(network) | self._identity_report(network)

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return super().about() | {
            "summary": "Denoiser of the toy ReF-LDM, fine-tuned with the identity loss scaled by "
            f"{self.recipe.scale!r}, weight {self.recipe.identity_weight:g}, embedder {self.recipe.embedder!r}."
        }

    @torch.no_grad()
    def _identity_report(self, network: nn.Module, people: int = 16) -> dict[str, float]:
        """``id_t<t>``: mean ID of one-step predictions at t; views 0 and 1 are references, view 2 the target."""
        device = next(network.parameters()).device
        vq, embedder = self.vq.to(device), self.embedder.to(device)
        who = range(min(people, len(self.val.clean)))
        latents = torch.from_numpy(np.stack([self.val.clean[i][0] for i in who])).float().to(device)
        lq = torch.from_numpy(np.stack([self.val.ruined[i][0, 2, 0] for i in who])).float().to(device)
        targets = identity_targets(vq, latents[:, 2], embedder, self.recipe.patch_size)
        noise = torch.randn(latents[:, 2].shape, generator=generator(0, 37)).to(device)
        cache = ReferenceCache.build(network, latents[:, :2])
        report = {}
        for t in _REPORT_TIMESTEPS:
            x0 = one_step(network, latents[:, 2], lq, cache, noise, t, self.schedule, self.recipe.prediction)
            losses = identity_loss(decode_latents(vq, x0, self.recipe.patch_size), targets, embedder)
            report[f"id_t{t}"] = float(losses.mean())
        return report


def one_step(
    network: nn.Module,
    clean: Tensor,
    lq: Tensor,
    cache: ReferenceCache | None,
    noise: Tensor,
    t: int,
    schedule: Schedule,
    prediction: str = "epsilon",
) -> Tensor:
    """The one-step prediction x0_hat at timestep t, not clipped: latents (B, C, h, w) to the same shape."""
    noisy = add_noise(clean, noise, t, schedule)
    output = denoise(network, torch.cat([noisy, lq], 1), t, cache)
    return eps_and_x0(output, noisy, t, schedule, prediction)[1]


@torch.inference_mode()
def embed_shard(
    first_stage: str | Path | None, embedder: str, patch_size: int, device: str, target: Path, latents: Path, count: int
) -> int:
    """Decode and embed the clean latents (people, mirrors, views, C, h, w) of a shard; writes the shard ``target``."""
    vq, network = load_first_stage(first_stage, device), load_network(embedder, device=device)
    clean = torch.from_numpy(np.load(latents, mmap_mode="r")[:count].astype(np.float32))
    flat = clean.flatten(0, 2)
    parts = [identity_targets(vq, part.to(device), network, patch_size).cpu() for part in flat.split(_CHUNK)]
    return write_shard(target, {"embeddings": torch.cat(parts).unflatten(0, clean.shape[:3]).numpy()})
