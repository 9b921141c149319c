"""Training a face embedder with the additive angular margin of ArcFace (Deng et al., CVPR 2019, equation 3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import to_network
from refbfr_core.models import FaceEmbedder
from refbfr_core.training.data import degrade_some, jitter_colour, jitter_geometry, pictures, share_of
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import numbers, shuffled
from refbfr_core.training.recipes import EmbedderRecipe

CONDITIONS = {"clean": None, "moderate": "toy-refldm-moderate", "severe": "toy-refldm-severe"}


class MarginHead(nn.Module):
    """An embedder and one unit direction for each training person.

    ``forward(faces, labels, margin)``: (B, 3, 112, 112) in [-1, 1] and (B,) person numbers to (B, people) logits
    ``scale * cos(angle + margin)`` for the right person and ``scale * cos(angle)`` for all others.
    """

    def __init__(self, embedder: FaceEmbedder, people: int, scale: float) -> None:
        super().__init__()
        self.embedder, self.scale = embedder, scale
        self.directions = nn.Parameter(0.05 * torch.randn(people, embedder.config.embedding_dim))

    def forward(self, faces: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Logits (B, people) of faces (B, 3, 112, 112) in [-1, 1] with person numbers ``labels`` (B,)."""
        embedding = self.embedder(faces)
        with torch.autocast(faces.device.type, enabled=False):
            # Angles near 0 need more than bf16's eight bits.
            return margin_logits(embedding.float(), self.directions.float(), labels, self.scale, margin)


def margin_logits(embedding: Tensor, directions: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """ArcFace logits: (B, D) unit embeddings, (N, D) directions of any length, (B,) labels to (B, N).

    Where angle + margin would pass pi the cosine is continued by its tangent line, so that the loss keeps falling.
    """
    cosine = embedding @ F.normalize(directions, dim=1).T
    right = cosine.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - right * right).sqrt()
    moved = right * math.cos(margin) - sine * math.sin(margin)
    beyond = right - math.sin(math.pi - margin) * margin
    moved = torch.where(right > math.cos(math.pi - margin), moved, beyond)
    return scale * cosine.scatter(1, labels[:, None], moved)


def margin_at(step: int, steps: int, margin: float) -> float:
    """0 for the first third of the training, then linear to ``margin`` at two thirds (earlier ramps stall)."""
    return margin * min(1.0, max(0.0, 3 * step / steps - 1))


class EmbedderTask:
    """Train a :class:`FaceEmbedder` to tell the drawn people of one split apart."""

    def __init__(self, recipe: EmbedderRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        self.images, self.val = train.images, val
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = FaceEmbedder(recipe.widths, recipe.blocks, recipe.embedding, dropout=recipe.dropout)
            self.module = MarginHead(self.network, len(self.images), recipe.scale)
        self.degradation = Degradation.preset(recipe.degradation)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Jittered, partly ruined faces (b, 3, 112, 112) in [-1, 1] and the numbers of their people (b,)."""
        recipe, views = self.recipe, self.recipe.views
        part = share_of(rank, world, recipe.batch)
        chosen = shuffled(recipe.seed, step, len(self.images) * views, recipe.batch)[part]
        people, view = np.divmod(chosen, views)
        draws = numbers(recipe.seed, 11, step, rank)
        x = pictures(self.images, people, view)
        x = jitter_colour(jitter_geometry(x, draws), draws, recipe.colour, recipe.grey)
        x = degrade_some(x, self.degradation, recipe.degraded, recipe.seed, 13, step, rank)
        return {"faces": self.network.preprocess(to_network(x)), "labels": torch.from_numpy(people)}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the margin logits."""
        margin = margin_at(step, self.recipe.steps, self.recipe.margin)
        logits = module(batch["faces"], batch["labels"], margin).float()
        right = (logits.argmax(1) == batch["labels"]).float().mean()
        return F.cross_entropy(logits, batch["labels"]), {"accuracy": right, "margin": right.new_tensor(margin)}

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Same/different AUC on unseen people, and the cosine of a picture to its own ruined version, by condition."""
        return embedder_report(network, self.val)

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        never = (
            "never takes part in a training or a guidance"
            if self.recipe.network == "judge"
            else "never scores a result"
        )
        return {
            "summary": f"ArcFace-style embedder of drawn faces; as '{self.recipe.network}' it {never}.",
            "limits": "Knows procedurally drawn faces only; says nothing about photographs.",
        }


@torch.no_grad()
def embed_all(network: nn.Module, images: Tensor, chunk: int = 64) -> Tensor:
    """(N, 3, H, W) in [0, 1] to (N, D) on the CPU, in float32."""
    device = next(network.parameters()).device
    return torch.cat([network.embed(to_network(part.to(device))).float().cpu() for part in images.split(chunk)])


def embedder_report(network: nn.Module, val: FaceCache) -> dict[str, float]:
    """For clean, moderately and severely ruined probes against clean gallery pictures of people never trained on:

    ``auc_*``: probability that a same-person pair is more similar than a pair of two people; ``same_*``, ``other_*``:
    mean cosines; ``own_*``: cosine of a picture to its own ruined version.
    """
    images = val.images
    people, views = images.shape[:2]
    who, which = np.divmod(np.arange(people * views), views)
    clean = pictures(images, who, which)
    gallery = embed_all(network, clean)
    same_person = torch.from_numpy(who[:, None] == who[None])
    distinct = ~torch.eye(len(gallery), dtype=torch.bool)
    report = {}
    for name, preset in CONDITIONS.items():
        seeds = list(range(len(clean)))
        probe = gallery if preset is None else embed_all(network, Degradation.preset(preset)(clean, seeds=seeds)[0])
        cosine = probe @ gallery.T
        same, other = cosine[same_person & distinct], cosine[~same_person]
        report |= {f"auc_{name}": area_under_curve(same, other), f"same_{name}": float(same.mean())}
        report[f"other_{name}"] = float(other.mean())
        if preset is not None:
            report[f"own_{name}"] = float(cosine.diagonal().mean())
    return report


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Probability that a draw from (N,) ``positive`` exceeds one from (M,) ``negative``, ties counting half."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False) + torch.searchsorted(ordered, positive, right=True)
    return float(below.double().mean() / 2 / len(ordered))
