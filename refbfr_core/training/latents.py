"""Cached latents: pictures and their ruined versions encoded once, so that training the denoiser never runs the
encoder.

A mirrored person is a person of its own here (faces are not symmetric): with flips a cache of N people has 2N rows, row
``2 p + 1`` being the mirror image of row ``2 p``, all its pictures and references mirrored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel

from refbfr_core.degradation import Degradation
from refbfr_core.errors import CacheError
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.faces.shards import FORMAT, PEOPLE_PER_SHARD, ShardedArray, ShardedCache, write_shard
from refbfr_core.models import encode_latents
from refbfr_core.models.moments import encode_moments
from refbfr_core.weights import load_network, network_entry, weights_digest

_CHUNK = 12


class LatentCache(ShardedCache):
    """Un-quantised latents of a `FaceCache`, float16, scaled and folded into patches as the denoiser sees them.

    Of a KL autoencoder it holds the moments instead, (8, h, w) and not scaled, see `refbfr_core.models.moments`.

    Parameters
    ----------
    root : folder of all caches.
    faces : the pictures; its people must be on disk before :meth:`build`.
    first_stage : folder that `save_network` wrote `network` into, or None for the one shipped with the package.
    degradations : presets of the ruined versions, used in turn: variant v gets ``degradations[v % len]``.
    variants : ruined versions of each picture, 0 for clean ones only. flips : also the mirrored people.
    patch_size : see `encode_latents`.
    device : where to encode when ``build(workers=0)``; worker processes always use the CPU.
    network : name of the first stage.
    """

    def __init__(
        self,
        root: str | Path,
        faces: FaceCache,
        first_stage: str | Path | None,
        degradations: Sequence[str],
        variants: int,
        flips: bool,
        patch_size: int,
        device: str = "cpu",
        network: str = "refldm-vq",
    ) -> None:
        self.faces, self.first_stage, self.device, self.network = faces, first_stage, device, network
        self.degradations, self.variants = tuple(degradations), int(variants)
        self.flips, self.patch_size = bool(flips), int(patch_size)
        self.digest = weights_digest(network, first_stage)[:12]
        kind = f"{variants}lq-{'flips' if flips else 'plain'}-patch{patch_size}"
        super().__init__(Path(root) / f"latents-{faces.folder.name}-{kind}-{self.digest}", faces.identities)

    @property
    def clean(self) -> ShardedArray:
        """(people, 1 or 2 mirror images, views, C, h, w) float16 latents of the pictures."""
        return self.array("clean")

    @property
    def ruined(self) -> ShardedArray:
        """(people, 1 or 2, views, variants, C, h, w) float16 latents of the ruined pictures."""
        return self.array("ruined")

    def description(self) -> dict[str, Any]:
        """What the latents depend on."""
        return {
            "format": FORMAT,
            "faces": self.faces.description(),
            "first_stage": self.digest,
            "degradations": list(self.degradations),
            "variants": self.variants,
            "flips": self.flips,
            "patch_size": self.patch_size,
            "people_per_shard": PEOPLE_PER_SHARD,
        }

    def nbytes(self) -> int:
        """Bytes of the complete cache, for a first stage that keeps a twelfth of the numbers of a picture, moments
        twice as many."""
        pictures = self.identities * self.faces.views * (2 if self.flips else 1) * (1 + self.variants)
        moments = issubclass(network_entry(self.network).network_class(), AutoencoderKL)
        return pictures * self.faces.resolution**2 // 4 * 2 * (2 if moments else 1)

    def _prepare(self) -> None:
        if self.faces.ready < self.identities:
            raise CacheError(
                f"{self.faces.folder} holds {self.faces.ready} of {self.identities} people; build it first."
            )
        self._write_description()

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        make = partial(
            encode_shard, self.first_stage, self.degradations, self.variants, self.flips, self.patch_size, self.device,
            self.faces.seed, self.network,
        )  # fmt: skip
        return make, ((self.shard(r.start), self.faces.shard(r.start) / "images.npy", r.start, len(r)) for r in missing)


def load_first_stage(
    folder: str | Path | None, device: str = "cpu", network: str = "refldm-vq"
) -> VQModel | AutoencoderKL:
    """The first stage from a folder of exported networks, or (None, "") the one shipped with the package."""
    return load_network(network, device=device, root=folder or None)


@torch.inference_mode()
def encode_shard(
    first_stage: str | Path | None,
    degradations: Sequence[str],
    variants: int,
    flips: bool,
    patch_size: int,
    device: str,
    seed: int,
    network: str,
    target: Path,
    pictures: Path,
    start: int,
    count: int,
) -> int:
    """Encode the pictures (P, V, H, W, 3) of one face shard, as they are and ruined; writes the shard ``target``.

    What happens to a picture depends on (seed, person, mirrored, view, variant) only.
    """
    vq = load_first_stage(first_stage, device, network)
    kl = isinstance(vq, AutoencoderKL)
    encode = partial(encode_moments, vq) if kl else partial(encode_latents, vq, patch_size=patch_size)
    presets = [Degradation.preset(name) for name in degradations]
    images = np.load(pictures, mmap_mode="r")[:count]
    clean, ruined = [], []
    for offset, person in enumerate(images):
        x = torch.from_numpy(np.array(person)).permute(0, 3, 1, 2).float() / 255
        for mirrored in range(2 if flips else 1):
            y = (x.flip(-1) if mirrored else x).contiguous()
            versions = [y]
            for variant in range(variants):
                keys = ([seed, start + offset, mirrored, view, variant] for view in range(len(y)))
                versions.append(presets[variant % len(presets)](y, seeds=seeds_of(keys))[0])
            stacked = torch.stack(versions, 1).flatten(0, 1)  # views first, so that one reshape gives (views, versions)
            latents = torch.cat([encode(part.to(device)).cpu() for part in stacked.split(_CHUNK)])
            latents = latents.half().unflatten(0, (len(y), 1 + variants)).numpy()
            clean.append(latents[:, 0])
            ruined.append(latents[:, 1:])
    shape = (count, 2 if flips else 1)
    return write_shard(
        target,
        {name: np.stack(rows).reshape(*shape, *rows[0].shape) for name, rows in (("clean", clean), ("ruined", ruined))},
    )


def seeds_of(keys: Iterable[Sequence[int]]) -> list[int]:
    """A seed for each key of non-negative integers."""
    return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]
