"""How well a face embedder tells drawn people apart: same/different AUC on unseen identities, clean and ruined.

Protocol. Every person has several views. The gallery holds all clean pictures; a probe is a picture of the same set,
clean or ruined by a preset. A pair is (probe, gallery picture of *another view*): same person or not. AUC is the chance
that a same pair scores above a different one. "Own picture" is the cosine between a ruined picture and its own clean
version, which no pair contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import to_network

PRESETS: tuple[str, ...] = ("clean", "toy-refldm-moderate", "toy-refldm-severe")


@dataclass(frozen=True)
class EmbedderScore:
    """One embedder on one kind of probe; cosines are means, `people` and `views` say on how much."""

    embedder: str
    probes: str
    people: int
    views: int
    auc: float
    same_cosine: float
    different_cosine: float
    own_picture_cosine: float


def verification_auc(same: Tensor, different: Tensor) -> float:
    """Probability that a score of `same` exceeds one of `different`, ties counted half (Mann-Whitney U / nm).

    Args:
        same, different: 1-D scores. Raises `ConfigError` if one is empty.
    """
    if not len(same) or not len(different):
        raise ConfigError(
            f"{len(same)} same and {len(different)} different pairs; both are needed. Use more people or views."
        )
    ordered = different.double().sort().values
    below = torch.searchsorted(ordered, same.double(), right=False)
    not_above = torch.searchsorted(ordered, same.double(), right=True)
    return float((below + not_above).double().mean() / (2 * len(ordered)))


def pair_scores(probes: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all (same, different) pairs.

    Args:
        probes, gallery: (people, views, D) unit vectors of the same pictures; a picture never meets its own view.
    """
    people, views = probes.shape[:2]
    cosines = probes.flatten(0, 1) @ gallery.flatten(0, 1).T
    person = torch.arange(people).repeat_interleave(views)
    same_person = person[:, None] == person[None]
    own = torch.eye(people * views, dtype=torch.bool)
    return cosines[same_person & ~own], cosines[~same_person]


@torch.no_grad()
def embed(embedder: nn.Module, pictures: Tensor, batch: int = 64) -> Tensor:
    """Unit vectors (N, D) on the CPU of pictures (N, 3, H, W) in [0, 1]."""
    device = next(embedder.parameters()).device
    parts = [embedder.embed(to_network(part.to(device))).cpu() for part in pictures.split(batch)]
    return torch.cat(parts)


def run_embedder_study(
    embedders: Sequence[str] | dict[str, nn.Module] = ("guide", "judge"),
    people: int = 200,
    views: int = 4,
    presets: Sequence[str] = PRESETS,
    seed: int = 0,
    split: str = "test",
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Scores embedders on people of a split they were not trained on; one row an embedder and preset.

    Args:
        embedders: names of shipped networks, or networks by name.
        people, views, seed, split: which drawn pictures; views must be at least 2.
        presets: "clean" or degradation presets for the probes.

    Raises:
        ConfigError: too few people or views. UnknownNameError: an unknown embedder or preset. WeightsError: weights
            missing or damaged.
    """
    if people < 2 or views < 2:
        raise ConfigError(f"{people} people in {views} views give no pairs; use at least 2 of each.")
    if not isinstance(embedders, dict):
        from refbfr_core.weights import load_network

        embedders = {name: load_network(name, device=device) for name in embedders}
    degradations = {name: None if name == "clean" else Degradation.preset(name) for name in presets}
    faces = ToyFaces(128)
    identities = faces.identities(people, seed, split=split)
    clean = faces.render(identities, faces.views(identities, views, seed)).images.flatten(0, 1)
    galleries = {name: embed(network, clean).unflatten(0, (people, views)) for name, network in embedders.items()}
    scores = []
    for preset, degradation in degradations.items():
        pictures = clean if degradation is None else degradation(clean, seed=seed)[0]
        for name, network in embedders.items():
            gallery = galleries[name]
            probes = gallery if degradation is None else embed(network, pictures).unflatten(0, (people, views))
            same, different = pair_scores(probes, gallery)
            scores.append(
                EmbedderScore(
                    name,
                    preset,
                    people,
                    views,
                    verification_auc(same, different),
                    float(same.mean()),
                    float(different.mean()),
                    float((probes * gallery).sum(dim=-1).mean()),
                )
            )
    return pd.DataFrame([asdict(score) for score in scores])


if __name__ == "__main__":
    import sys

    sys.stdout.write(run_embedder_study().to_string(index=False, float_format=lambda value: f"{value:.4f}") + "\n")
