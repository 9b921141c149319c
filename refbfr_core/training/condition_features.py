"""Cached conditions: f_HQ of ruined faces computed once, so that training an injection never runs stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbfr_core.degradation import Degradation
from refbfr_core.errors import CacheError
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.faces.shards import FORMAT, PEOPLE_PER_SHARD, ShardedArray, ShardedCache, write_shard
from refbfr_core.images import to_network
from refbfr_core.models.first_stage import pixels_per_latent
from refbfr_core.models.vq_restorer import restore_features
from refbfr_core.training.latents import seeds_of
from refbfr_core.weights import load_network, weights_digest

_CHUNK = 12


class FeatureCache(ShardedCache):
    """f_HQ (float16) of every picture of a `FaceCache`, in several ruined versions.

    Parameters
    ----------
    root : folder of all caches. faces : the pictures; its people must be on disk before :meth:`build`.
    stage_one : folder that holds "ldbfr-restorer" and "ldbfr-vqc", or None for the ones shipped with the package.
    degradations, variants : version v of a picture is ruined by ``degradations[v % len]``.
    device : where to compute when ``build(workers=0)``; worker processes always use the CPU.
    """

    def __init__(
        self,
        root: str | Path,
        faces: FaceCache,
        stage_one: str | Path | None,
        degradations: Sequence[str],
        variants: int,
        device: str = "cpu",
    ) -> None:
        self.faces, self.stage_one, self.device = faces, stage_one, device
        self.degradations, self.variants = tuple(degradations), int(variants)
        self.digests = [weights_digest(name, stage_one)[:12] for name in ("ldbfr-vqc", "ldbfr-restorer")]
        vq = load_network("ldbfr-vqc", device="cpu", root=stage_one or None)
        self.numbers = vq.config.vq_embed_dim * (faces.resolution // pixels_per_latent(vq)) ** 2
        name = f"features-{faces.folder.name}-{self.variants}lq-{'-'.join(each[:8] for each in self.digests)}"
        super().__init__(Path(root) / name, faces.identities)

    @property
    def features(self) -> ShardedArray:
        """(people, views, variants, C, h, w) float16."""
        return self.array("features")

    def description(self) -> dict[str, Any]:
        """What the features depend on."""
        return {
            "format": FORMAT,
            "faces": self.faces.description(),
            "stage_one": self.digests,
            "degradations": list(self.degradations),
            "variants": self.variants,
            "people_per_shard": PEOPLE_PER_SHARD,
        }

    def nbytes(self) -> int:
        """Bytes of the complete cache."""
        return self.identities * self.faces.views * self.variants * self.numbers * 2

    def _prepare(self) -> None:
        if self.faces.ready < self.identities:
            raise CacheError(
                f"{self.faces.folder} holds {self.faces.ready} of {self.identities} people; build it first."
            )
        self._write_description()

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        make = partial(
            feature_shard, self.stage_one, self.degradations, self.variants, self.device, self.faces.seed
        )
        return make, ((self.shard(r.start), self.faces.shard(r.start) / "images.npy", r.start, len(r)) for r in missing)


@torch.inference_mode()
def feature_shard(
    stage_one: str | Path | None,
    degradations: Sequence[str],
    variants: int,
    device: str,
    seed: int,
    target: Path,
    pictures: Path,
    start: int,
    count: int,
) -> int:
    """Features of the pictures (P, V, H, W, 3) of one face shard; writes the shard ``target``.

    What happens to a picture depends on (seed, person, view, variant) only.
    """
    vq = load_network("ldbfr-vqc", device=device, root=stage_one or None)
    restorer = load_network("ldbfr-restorer", device=device, root=stage_one or None)
    presets = [Degradation.preset(name) for name in degradations]
    images = np.load(pictures, mmap_mode="r")[:count]
    rows = []
    for offset, person in enumerate(images):
        clean = torch.from_numpy(np.array(person)).permute(0, 3, 1, 2).float() / 255
        versions = []
        for variant in range(variants):
            seeds = seeds_of([seed, start + offset, view, variant] for view in range(len(clean)))
            versions.append(presets[variant % len(presets)](clean, seeds=seeds)[0])
        ruined = to_network(torch.stack(versions, 1).flatten(0, 1))  # views first, one reshape gives (views, versions)
        made = [restore_features(restorer, vq, part.to(device)).restored.cpu() for part in ruined.split(_CHUNK)]
        rows.append(torch.cat(made).half().unflatten(0, (len(clean), variants)).numpy())
    return write_shard(target, {"features": np.stack(rows)})
