"""Drawn faces on disk: a cache that training reads through memory maps instead of drawing the same pictures every
epoch.

Person ``i`` of a split depends on the seed and ``i`` only, so a finished cache can be made larger later, and a
training can
already use the people that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbfr_core.errors import CacheError, ConfigError
from refbfr_core.faces.shards import FORMAT, PEOPLE_PER_SHARD, ShardedArray, ShardedCache, write_shard

LANDMARKS = 98
# Two machines differ in the last bits of a float, two versions of a renderer visibly.
_SAME_DRAWING = 2 / 255

Renderer = Callable[[int], Any]


def toy_faces(resolution: int) -> Any:
    """The renderer of this package, made where it is needed: worker processes call this by name."""
    from refbfr_core.faces.toy import ToyFaces

    return ToyFaces(resolution)


class FaceCache(ShardedCache):
    """Pictures of the first ``identities`` people of a split, ``views`` of each, drawn once and kept on disk.

    Nothing is drawn before :meth:`build` is called; it draws what is missing and goes on where a killed run stopped.

    Parameters
    ----------
    root : folder of all caches; this one lives in ``<root>/<split>-seed<seed>-<views>views-<resolution>px``.
    split : "train", "judge", "val" or "test"; identity-disjoint by construction.
    identities, views : how many people, how many pictures of each.
    resolution : side of a picture in pixels.
    seed : of people and views.
    renderer : makes the object that draws, from the resolution; importable by name, because worker processes call it.

    Raises
    ------
    ConfigError : sizes below one. CacheError : the folder holds a cache of something else.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        identities: int,
        views: int,
        resolution: int = 128,
        seed: int = 0,
        renderer: Renderer = toy_faces,
    ) -> None:
        if views < 1 or resolution < 1:
            raise ConfigError(f"a face cache needs views and resolution of at least 1, got {views} and {resolution}.")
        self.split, self.views, self.resolution = split, int(views), int(resolution)
        self.seed, self.renderer = int(seed), renderer
        super().__init__(Path(root) / f"{split}-seed{seed}-{views}views-{resolution}px", identities)

    def __repr__(self) -> str:
        return (
            f"FaceCache({self.split!r}, {self.identities} people x {self.views} views, {self.resolution} px, "
            f"seed {self.seed}: {self.ready} people on disk in {self.folder})"
        )

    @property
    def images(self) -> ShardedArray:
        """(ready, views, H, W, 3) uint8 RGB, memory-mapped."""
        return self.array("images")

    @property
    def landmarks(self) -> ShardedArray:
        """(ready, views, 98, 2) float32, x and y in pixels, memory-mapped."""
        return self.array("landmarks")

    @property
    def identity(self) -> ShardedArray:
        """(ready, D) float32, the identity vectors the people were drawn from."""
        return self.array("identity")

    def nbytes(self) -> int:
        """Bytes of the complete cache (file headers aside)."""
        return self.identities * self.views * (self.resolution * self.resolution * 3 + LANDMARKS * 2 * 4)

    def description(self) -> dict[str, Any]:
        """What the pictures depend on."""
        return {
            "format": FORMAT,
            "split": self.split,
            "seed": self.seed,
            "views": self.views,
            "resolution": self.resolution,
            "people_per_shard": PEOPLE_PER_SHARD,
        }

    def _prepare(self) -> None:
        """Refuse to mix pictures of a renderer that draws differently with those that are there."""
        probe = _probe(self.renderer(self.resolution), self.split, self.seed)
        if not (self.folder / "cache.json").is_file():
            self._write_description(probe=probe)
        found = self._read_description().get("probe", [])
        if len(found) != len(probe) or max(abs(a - b) for a, b in zip(found, probe, strict=True)) > _SAME_DRAWING:
            raise CacheError(
                f"{self.folder} was drawn by another version of the renderer, so old and new pictures would be mixed; "
                "delete the folder or use another root."
            )

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        people = self.renderer(self.resolution).identities(self.identities, self.seed, split=self.split)
        jobs = ((self.shard(r.start), people[r.start : r.stop], self.views, self.seed) for r in missing)
        return partial(draw_shard, self.renderer, self.resolution), jobs


def draw_shard(renderer: Renderer, resolution: int, target: Path, people: Any, views: int, seed: int) -> int:
    """Draw all views of some people into the shard folder ``target``; returns how many people."""
    drawer = renderer(resolution)
    images, landmarks = [], []
    for index in range(len(people)):  # one by one: a person's pictures fit the processor's cache, a shard's do not
        person = people[index : index + 1]
        drawn = drawer.render(person, drawer.views(person, views, seed))
        pixels = (drawn.images[0].clamp(0, 1) * 255).round().to(torch.uint8)
        images.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
        landmarks.append(drawn.landmarks[0].float().cpu().numpy())
    identity = people.vector.cpu().numpy().astype(np.float32)
    return write_shard(target, {"images": np.stack(images), "landmarks": np.stack(landmarks), "identity": identity})


def _probe(drawer: Any, split: str, seed: int) -> list[float]:
    """The first picture of a cache averaged over 8 x 8 areas: enough to notice that a renderer draws differently."""
    person = drawer.identities(1, seed, split=split)
    drawn = drawer.render(person, drawer.views(person, 1, seed)).images
    small = torch.nn.functional.adaptive_avg_pool2d(drawn[0].float().cpu(), 8)
    return [round(value, 4) for value in small.flatten().tolist()]
