"""Cached outputs of DiffMAC's Stage I: what Stage II trains on (Gao et al., 2024, algorithm 1).

X_D1 costs a whole diffusion a picture, so it is made once, by the sampler that serves at test time. A build that is
killed goes on with the shards that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbfr_core.diffusion import image_generators, make_schedule, make_timesteps
from refbfr_core.errors import CacheError
from refbfr_core.faces.shards import FORMAT, PEOPLE_PER_SHARD, ShardedArray, ShardedCache, write_shard
from refbfr_core.images import from_network, to_network
from refbfr_core.pipelines.diffmac_stages import (
    child_generators,
    condition_of,
    identity_of_pictures,
    moments_of_pictures,
    pictures_of_latents,
    restore_latents,
)
from refbfr_core.training.diffmac_recipes import StageTwoRecipe
from refbfr_core.training.latents import LatentCache, seeds_of
from refbfr_core.weights import load_network, weights_digest

_CHUNK = 8
SPACING = "adm"


class StageOneOutputs(ShardedCache):
    """Moments R of X_D1 (float16) and identity embeddings, of the first views of every person of a `LatentCache`.

    Parameters
    ----------
    root : folder of all caches.
    moments : of the same pictures, clean and ruined by the recipe's degradations; its people must be on disk.
    recipe : says where the networks are (`first_stage`, `start`, `stage_one`, `embedder`), how Stage I samples
        (`inference_steps`, `schedule`, `prediction`), and how many views and versions it restores (`cached_views`,
        `cached_variants`).
    device : where to compute when ``build(workers=0)``; worker processes always use the CPU.
    """

    def __init__(self, root: str | Path, moments: LatentCache, recipe: StageTwoRecipe, device: str = "cpu") -> None:
        self.moments_cache, self.recipe, self.device = moments, recipe, device
        self.views = min(recipe.cached_views, moments.faces.views)
        self.unet = stage_one_unet(recipe)
        self.digests = [
            weights_digest(name, folder)[:12]
            for name, folder in (
                ("diffmac-vae", recipe.first_stage),
                self.unet,
                ("diffmac-one", recipe.stage_one),
                (recipe.embedder, ""),
            )
        ]
        kind = f"{self.views}views-{recipe.cached_variants}lq-{recipe.inference_steps}steps"
        name = f"stage1-{moments.faces.folder.name}-{kind}-{'-'.join(each[:6] for each in self.digests)}"
        super().__init__(Path(root) / name, moments.identities)

    @property
    def moments(self) -> ShardedArray:
        """(people, views, variants, 8, h, w) float16, E_X_D1."""
        return self.array("moments")

    @property
    def identity(self) -> ShardedArray:
        """(people, views, variants, D) float32 of unit length, F_ID(X_D1)."""
        return self.array("identity")

    @property
    def photos(self) -> ShardedArray:
        """(people, all views, D) float32 of unit length, F_ID of the clean pictures, which serve as other photos."""
        return self.array("photos")

    def description(self) -> dict[str, Any]:
        """What the outputs depend on."""
        recipe = self.recipe
        return {
            "format": FORMAT,
            "moments": self.moments_cache.description(),
            "networks": self.digests,
            "views": self.views,
            "variants": recipe.cached_variants,
            "sampler": [recipe.inference_steps, SPACING, recipe.schedule, recipe.prediction],
            "people_per_shard": PEOPLE_PER_SHARD,
        }

    def nbytes(self) -> int:
        """Bytes of the complete cache, for embeddings of 512 numbers."""
        pictures = self.identities * self.views * self.recipe.cached_variants
        return pictures * (self.moments_cache.faces.resolution**2 // 2 * 2 + 512 * 4)

    def _prepare(self) -> None:
        if self.moments_cache.ready < self.identities:
            raise CacheError(
                f"{self.moments_cache.folder} holds {self.moments_cache.ready} of {self.identities} people; build it "
                "first."
            )
        if not (self.folder / "cache.json").is_file():
            self._write_description()

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        make = partial(output_shard, self.recipe, self.unet, self.views, self.device, self.moments_cache.faces.seed)
        return make, (
            (
                self.shard(r.start),
                self.moments_cache.shard(r.start) / "ruined.npy",
                self.moments_cache.faces.shard(r.start) / "images.npy",
                r.start,
                len(r),
            )
            for r in missing
        )


def stage_one_unet(recipe: StageTwoRecipe) -> tuple[str, str]:
    """Name and folder ("" the shipped ones) of Stage I's denoiser: fine-tuned where the folder of Stage I has it."""
    if recipe.stage_one and (Path(recipe.stage_one) / "diffmac-one-unet").is_dir():
        return "diffmac-one-unet", recipe.stage_one
    return "diffmac-unet", recipe.start


@torch.inference_mode()
def output_shard(
    recipe: StageTwoRecipe,
    denoiser: tuple[str, str],
    views: int,
    device: str,
    seed: int,
    target: Path,
    ruined: Path,
    pictures: Path,
    start: int,
    count: int,
) -> int:
    """Restore the ruined moments (P, 1, V, variants, 8, h, w) of one shard and write the shard ``target``.

    The noise of a picture depends on (seed, person, view, variant) only.
    """
    vae = load_network("diffmac-vae", device=device, root=recipe.first_stage or None)
    name, folder = denoiser
    unet = load_network(name, device=device, root=folder or None)
    modulation = load_network("diffmac-one", device=device, root=recipe.stage_one or None)
    embedder = load_network(recipe.embedder, device=device)
    schedule = make_schedule(recipe.schedule)
    timesteps = make_timesteps(SPACING, len(schedule), recipe.inference_steps)
    prompt = torch.zeros(1, 1, unet.config.cross_attention_dim, device=device)
    moments = np.load(ruined, mmap_mode="r")[:count, 0, :views, : recipe.cached_variants]
    faces = np.load(pictures, mmap_mode="r")[:count]
    rows: dict[str, list[np.ndarray]] = {"moments": [], "identity": [], "photos": []}
    for offset in range(count):
        given = torch.from_numpy(np.array(moments[offset])).flatten(0, 1).float().to(device)
        keys = [[seed, 41, start + offset, *divmod(place, recipe.cached_variants)] for place in range(len(given))]
        noise = child_generators(image_generators(seeds_of(keys), len(given)), 3)[0]
        latents = restore_latents(
            unet, modulation, prompt, condition_of(vae, given), noise, timesteps, schedule, recipe.prediction, _CHUNK
        )
        restored = from_network(pictures_of_latents(vae, latents, _CHUNK))
        photos = torch.from_numpy(np.array(faces[offset])).permute(0, 3, 1, 2).float() / 255
        made = {
            "moments": moments_of_pictures(vae, restored, _CHUNK).half(),
            "identity": identity_of_pictures(embedder, to_network(restored), _CHUNK),
        }
        for name, value in made.items():
            rows[name].append(value.cpu().unflatten(0, (views, recipe.cached_variants)).numpy())
        rows["photos"].append(identity_of_pictures(embedder, to_network(photos), _CHUNK).cpu().numpy())
    return write_shard(target, {name: np.stack(each) for name, each in rows.items()})
