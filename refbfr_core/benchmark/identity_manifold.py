"""Why should an identity loss count less at large t? The paper's explanation, tested on drawn people.

ReF-LDM (Hsiao et al., NeurIPS 2024, section 3.3) scales the identity loss by sqrt(alpha_bar_t) because, at large t, the
one-step prediction x0_hat is a picture the face embedder never saw in its training. If so, embeddings of decoded
x0_hat leave the set of embeddings of clean faces as t grows. Three numbers say how far they are from it:

    neighbours   mean cosine distance to the k nearest clean pictures of *other* people
    mahalanobis  of the embedding before it is scaled to unit length, under mean and covariance of clean pictures
    norm         length of that embedding, relative to the mean of clean pictures (a known sign of quality)

Clean pictures of the same people, which are in no gallery either, show what is normal; the degraded inputs show what
the numbers say of pictures that are known to be ruined. Beside them stands "niqe-toy", which looks at the pictures
alone: whether a *picture* is unlike clean faces is another question than whether its *embedding* is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from refbfr_core.benchmark.cases import make_cases
from refbfr_core.diffusion import add_noise, eps_and_x0, image_noise, schedule_from_scheduler
from refbfr_core.errors import ConfigError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import from_network, to_network
from refbfr_core.metrics import compute, mean_interval, unavailable
from refbfr_core.models import FaceEmbedder, ReferenceCache, decode_latents, denoise, encode_latents
from refbfr_core.pipelines.references import encode_references

TIMESTEPS = (20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980)
TRUTH, REBUILT, INPUT, PREDICTED = "truth", "reconstruction", "input", "prediction"
MEASURES = ("cosine", "neighbours", "mahalanobis", "norm")
QUALITY = "niqe-toy"
_NEIGHBOURS = 5
_BATCH = 16


@dataclass(frozen=True)
class CleanFaces:
    """What clean faces look like to an embedder: a gallery of N unit vectors, and a Gaussian of the raw embeddings.

    `gallery` (N, D); `mean` (D,), `whitening` (D, D) with whitening^T whitening the inverse covariance; `norm` the mean
    length of raw embeddings.
    """

    gallery: Tensor
    mean: Tensor
    whitening: Tensor
    norm: float

    def neighbours(self, embeddings: Tensor, k: int = _NEIGHBOURS) -> Tensor:
        """(B,) mean cosine distance, in [0, 2], of unit vectors (B, D) to their k nearest in the gallery."""
        return 1 - (embeddings @ self.gallery.T).topk(min(k, len(self.gallery)), dim=1).values.mean(dim=1)

    def mahalanobis(self, raw: Tensor) -> Tensor:
        """(B,) Mahalanobis distance of raw embeddings (B, D) divided by sqrt(D): about 1 for clean faces."""
        return ((raw - self.mean) @ self.whitening.T).norm(dim=1) / raw.shape[1] ** 0.5


@dataclass(frozen=True)
class ManifoldStudy:
    """Result of `x0_manifold_study`.

    Attributes:
        rows: one row a person, timestep and embedder: "embedder", "person", "kind" ("truth", "reconstruction", "input"
            or "prediction"), "t" (-1 but for predictions), "cosine" to the first stage's reconstruction of the truth,
            "neighbours", "mahalanobis", "norm", and where it can be computed "niqe-toy", the same for all embedders.
        pictures: (timesteps, people, 3, H, W) in [0, 1], the decoded predictions, for a figure.
        truth, lq: (people, 3, H, W) in [0, 1].
        timesteps: of the first axis of `pictures`.
        settings: everything that decides the numbers.
    """

    rows: pd.DataFrame
    pictures: Tensor
    truth: Tensor
    lq: Tensor
    timesteps: tuple[int, ...]
    settings: dict[str, Any]

    def table(self, embedder: str) -> pd.DataFrame:
        """Means over people by timestep, below truth, reconstruction and input; "outside" is the share of people whose
        "neighbours" exceeds what 95 % of the clean pictures stay below."""
        own = self.rows[self.rows.embedder == embedder]
        limit = own[own.kind == TRUTH].neighbours.quantile(0.95)
        grouped = own.assign(outside=(own.neighbours > limit).astype(float)).groupby(["kind", "t"], sort=False)
        measured = [name for name in (*MEASURES, QUALITY) if name in own.columns]
        return grouped[[*measured, "outside"]].mean()

    def interval(self, embedder: str, measure: str, t: int) -> Any:
        """`Interval` over people of a measure at one timestep."""
        own = self.rows[(self.rows.embedder == embedder) & (self.rows.t == t) & (self.rows.kind == PREDICTED)]
        return mean_interval(own[measure].to_numpy())


def x0_manifold_study(
    people: int = 16,
    timesteps: Sequence[int] = TIMESTEPS,
    *,
    references: int = 2,
    preset: str = "toy-refldm-severe",
    seed: int = 0,
    split: str = "test",
    gallery: int = 128,
    embedders: dict[str, nn.Module] | Sequence[str] = ("guide", "judge"),
    pipeline: DiffusionPipeline | None = None,
    device: str | torch.device | None = None,
) -> ManifoldStudy:
    """Embeds one-step predictions at several timesteps and measures how far they are from clean faces.

    Args:
        people, seed, split, preset, references: which drawn people, how ruined, and how many references condition the
            prediction.
        timesteps: t of the predictions, in the range of the schedule.
        gallery: clean pictures of as many other people.
        embedders: names of shipped networks, or `FaceEmbedder`s by name.
        pipeline: ReF-LDM; None loads the shipped one.

    Raises:
        ConfigError: too few people or pictures, or a timestep out of range. UnknownNameError, WeightsError.
    """
    if people < 2 or gallery < 8 or not timesteps:
        raise ConfigError(f"people={people}, gallery={gallery}, {len(timesteps)} timesteps; use at least 2, 8 and 1.")
    if not isinstance(embedders, dict):
        from refbfr_core.weights import load_network

        embedders = {name: load_network(name, device=device) for name in embedders}
    if pipeline is None:
        from refbfr_core.pipelines import load_pipeline

        pipeline = load_pipeline("refldm", device=device)
    cases = make_cases(
        list(range(people)), people + gallery, preset=preset, references=references, seed=seed, split=split,
        resolution=pipeline.resolution,
    )  # fmt: skip
    clean = _gallery(people, gallery, seed, split, pipeline.resolution)
    vq, patch_size = pipeline.vq, pipeline.config.patch_size
    with torch.no_grad():
        latents = encode_latents(vq, cases.truth, patch_size)
        rebuilt = decode_latents(vq, latents, patch_size)
        predictions = _predictions(pipeline, latents, cases.lq, cases.right, cases.seeds, timesteps)
        decoded = [torch.cat([decode_latents(vq, part, patch_size) for part in x0.split(_BATCH)]) for x0 in predictions]
        groups = [(TRUTH, -1, to_network(cases.truth)), (REBUILT, -1, rebuilt), (INPUT, -1, to_network(cases.lq))]
        groups += [(PREDICTED, t, pictures) for t, pictures in zip(timesteps, decoded, strict=True)]
        quality = [_quality(pictures) for _, _, pictures in groups]
        lines = []
        for name, embedder in embedders.items():
            faces = describe_clean(embedder, to_network(clean))
            target = raw_embeddings(embedder, rebuilt)
            for (kind, t, pictures), scores in zip(groups, quality, strict=True):
                values = _measure(faces, raw_embeddings(embedder, pictures), target)
                lines += [
                    {"embedder": name, "person": person, "kind": kind, "t": t, **own, **score}
                    for person, (own, score) in enumerate(zip(values, scores, strict=True))
                ]
    settings = {
        "people": people, "references": references, "preset": preset, "seed": seed, "split": split,
        "gallery": gallery, "neighbours": _NEIGHBOURS, "embedders": list(embedders),
    }  # fmt: skip
    pictures = torch.stack([from_network(part.float().cpu()) for part in decoded])
    return ManifoldStudy(pd.DataFrame(lines), pictures, cases.truth, cases.lq, tuple(timesteps), settings)


def raw_embeddings(embedder: nn.Module, pictures: Tensor) -> Tensor:
    """Embeddings (B, D) before they are scaled to unit length, float64, of pictures (B, 3, H, W) in [-1, 1].

    Raises:
        ConfigError: not a `FaceEmbedder`: only its last layer is known.
    """
    if not isinstance(embedder, FaceEmbedder):
        raise ConfigError(f"{type(embedder).__name__} does not show its raw embeddings; use a FaceEmbedder.")
    seen: list[Tensor] = []
    hook = embedder.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        for part in pictures.split(_BATCH):
            embedder.embed(part.to(next(embedder.parameters()).device))
    finally:
        hook.remove()
    return torch.cat(seen).double().cpu()


def describe_clean(embedder: nn.Module, pictures: Tensor) -> CleanFaces:
    """The clean faces (N, 3, H, W) in [-1, 1] as an embedder sees them.

    With fewer pictures than dimensions the covariance is shrunk halfway towards a multiple of the identity matrix.
    """
    raw = raw_embeddings(embedder, pictures)
    mean = raw.mean(dim=0)
    covariance = (raw - mean).T @ (raw - mean) / (len(raw) - 1)
    share = 0.5 if len(raw) <= 2 * raw.shape[1] else 0.05
    shrunk = (1 - share) * covariance + share * covariance.diagonal().mean() * torch.eye(len(mean), dtype=raw.dtype)
    whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk))
    return CleanFaces(F.normalize(raw, dim=1), mean, whitening, float(raw.norm(dim=1).mean()))


def _measure(faces: CleanFaces, raw: Tensor, target: Tensor) -> list[dict[str, float]]:
    unit = F.normalize(raw, dim=1)
    columns = {
        "cosine": (unit * F.normalize(target, dim=1)).sum(dim=1),
        "neighbours": faces.neighbours(unit),
        "mahalanobis": faces.mahalanobis(raw),
        "norm": raw.norm(dim=1) / faces.norm,
    }
    return [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]


def _quality(pictures: Tensor) -> list[dict[str, float]]:
    """The quality of pictures in [-1, 1], one dictionary each; empty ones where it cannot be computed."""
    if unavailable(QUALITY):
        return [{}] * len(pictures)
    return [{QUALITY: score} for score in compute(QUALITY, from_network(pictures.float().cpu())).tolist()]


def _predictions(
    pipeline: DiffusionPipeline, latents: Tensor, lq: Tensor, right: Tensor, seeds: list[int], timesteps: Sequence[int]
) -> list[Tensor]:
    """x0_hat for every timestep, (people, C, h, w) each; a person's noise is the same at all of them."""
    schedule, prediction = schedule_from_scheduler(pipeline.scheduler), pipeline.scheduler.config.prediction_type
    patch_size, encoding = pipeline.config.patch_size, pipeline.config.reference_encoding
    degraded = encode_latents(pipeline.vq, lq, patch_size)
    own = encode_references(pipeline.vq, right, patch_size=patch_size, encoding=encoding)
    noise = image_noise([torch.Generator().manual_seed(seed) for seed in seeds], latents.shape[1:])
    noise = noise.to(latents.device)
    cache = ReferenceCache.build(pipeline.unet, own)
    out = []
    for t in timesteps:
        noisy = add_noise(latents, noise, t, schedule)
        output = denoise(pipeline.unet, torch.cat([noisy, degraded], dim=1), t, cache)
        out.append(eps_and_x0(output, noisy, t, schedule, prediction)[1])
    return out


def _gallery(people: int, count: int, seed: int, split: str, resolution: int) -> Tensor:
    """One clean picture of each of `count` people beyond the first `people`: (count, 3, H, W) in [0, 1]."""
    faces = ToyFaces(resolution)
    others = faces.identities(people + count, seed, split=split)[people:]
    return faces.render(others, faces.views(others, 1, seed)).images[:, 0].clone()
