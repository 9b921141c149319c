"""Scoring a batch with several metrics whose networks are loaded once, and saying early which cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.metrics import Metric, compute, load_awing
from refbfr_core.metrics.blind import load_musiq, load_niqe
from refbfr_core.metrics.identity import EmbedderLike
from refbfr_core.metrics.perceptual import load_lpips
from refbfr_core.metrics.registry import find_metric
from refbfr_core.metrics.textures import load_textures
from refbfr_core.weights import load_network

IDENTITY = ("ids", "deg", "deg-over-1")
"""Metrics that rest on the embedder that a `Scorer` is given."""

_LANDMARKS = "lmd"


class Scorer:
    """Scores restorations, against the truth where a metric needs it, one dictionary an image.

    Args:
        metrics: names of `refbfr_core.metrics.REGISTRY`, each once.
        judge: the embedder behind `IDENTITY`: the shipped judge on drawn faces, an ArcFace on photographs (see
            `photo_judge`). None where no such metric is asked for.
        device: where scores are computed; default: where the judge is.
        embedder: name of the judge for `protocols`.

    Raises:
        UnknownNameError: no such metric. ConfigError: a name twice, or identity scores without a judge.
        WeightsError: a network or statistics of a metric are not there; the message says what to fetch.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        judge: EmbedderLike | None = None,
        *,
        device: torch.device | str | None = None,
        embedder: str = "the shipped judge",
    ) -> None:
        self.metrics = tuple(metrics)
        self._entries = {name: find_metric(name) for name in self.metrics}
        if len(self._entries) != len(self.metrics):
            raise ConfigError(f"a metric is named twice: {', '.join(self.metrics)}.")
        if judge is None and (asked := [name for name in self.metrics if name in IDENTITY]):
            raise ConfigError(f"{', '.join(asked)} compare embeddings, but no judge came; pass an embedder.")
        self._embedder = embedder
        self._device = torch.device(device) if device is not None else _device_of(judge)
        self._keywords: dict[str, dict[str, Any]] = {name: {"embedder": judge} for name in IDENTITY}
        shared: dict[Callable[[torch.device], Any], Any] = {}
        for name in self.metrics:
            if name in _LOADERS:
                keyword, load = _LOADERS[name]
                if load not in shared:
                    shared[load] = load(self._device)
                self._keywords[name] = {keyword: shared[load]}

    @property
    def protocols(self) -> dict[str, str]:
        """What every score means, with the embedder's name where one is used: for tables and their records."""
        return {
            name: f"{entry.protocol}; embedder here: {self._embedder}" if name in IDENTITY else entry.protocol
            for name, entry in self._entries.items()
        }

    def __call__(
        self, pictures: Tensor, truth: Tensor | None, mask: Tensor | None = None, landmarks: Tensor | None = None
    ) -> list[dict[str, float]]:
        """Score a batch.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            truth: the same of the true pictures; None where no metric compares with them.
            mask: (B, 1, H, W) in [0, 1], the face in the true pictures, for the metrics that need one.
            landmarks: (B, K, 2) exact landmarks of the true pictures. Not used by "lmd", whose two pictures must be
                looked at by one detector: its 98 points are not the points of a drawing.

        Raises:
            RefbfrError: what `refbfr_core.metrics.compute` raises.
        """
        pictures = pictures.to(self._device)
        truth = None if truth is None else truth.to(self._device)
        columns = {}
        for name, entry in self._entries.items():
            keywords = dict(self._keywords.get(name, {}))
            if entry.mask_required:
                keywords["mask"] = mask
            columns[name] = compute(name, pictures, truth, **keywords).tolist()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def computable(
    metrics: Sequence[str],
    has_truth: bool,
    has_mask: bool,
    has_landmarks: bool,
    profile: str,
    *,
    look: bool = True,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which of the metrics can be computed for a dataset, and why the others cannot.

    Args:
        metrics: names of `refbfr_core.metrics.REGISTRY`.
        has_truth, has_mask, has_landmarks: what the dataset holds for every picture. Exact landmarks of the truth alone
            make no score possible: those of the restoration would have to be found.
        profile: "toy" for drawn faces, "paper" for photographs.
        look: also look whether this machine has the files and packages a metric needs.

    Returns:
        Their names, in the order given, and a reason for each of the rest.

    Raises:
        UnknownNameError: no such metric.
    """
    reasons = {}
    for name in metrics:
        reason = _unfit(find_metric(name), has_truth, has_mask, profile)
        if reason is None and look and not (profile == "paper" and name in IDENTITY):
            reason = find_metric(name).missing()
        if reason is not None:
            reasons[name] = reason
    return tuple(name for name in metrics if name not in reasons), reasons


def photo_judge(path: str | Path | None = None, *, alignment: str = "crop") -> nn.Module:
    """An embedder for `IDENTITY` on photographs: a recogniser in ONNX, such as an ArcFace of InsightFace's packs.

    Args:
        path: the file; None takes the recogniser of the InsightFace pack on this machine
            (`refbfr_core.faces.photos.choose_pack`).
        alignment: one of `refbfr_core.models.recognition.ALIGNMENTS`; "crop" is ReF-LDM's IDS, "ffhq" moves the five
            points of the FFHQ layout to where ArcFace was trained to see them.

    Raises:
        WeightsError: there is no such file or pack, or it holds no recogniser, or several. MissingExtraError: onnx or
            onnxruntime is not installed.
    """
    from refbfr_core.faces.photos import choose_pack
    from refbfr_core.weights import load_onnx_recognition

    if path is not None:
        return load_onnx_recognition(path, alignment=alignment)
    pack = choose_pack()
    found, refused = {}, {}
    for file in sorted(pack.glob("*.onnx")):
        try:
            found[file.name] = load_onnx_recognition(file, alignment=alignment)
        except (WeightsError, ConfigError) as error:
            refused[file.name] = str(error)
    if len(found) != 1:
        why = "; ".join(refused.values())
        what = f"several recognisers ({', '.join(found)})" if found else f"no recogniser ({why})"
        raise WeightsError(f"the pack {pack} holds {what}; name the file of one.")
    return next(iter(found.values()))


def _unfit(metric: Metric, has_truth: bool, has_mask: bool, profile: str) -> str | None:
    """Why a metric says nothing about a dataset, whatever there is on this machine."""
    if metric.pictures == "drawn" and profile != "toy":
        return f"{metric.name} knows drawn faces only; on photographs take the score it stands for."
    if metric.name == _LANDMARKS and profile == "toy":
        return "lmd needs the points of the restored face too, and no detector here finds 98 points in a drawing."
    if metric.pictures == "photographs" and profile == "toy":
        return f"{metric.name} knows photographs only; on drawn faces take its stand-in, if there is one."
    if not has_truth and (metric.target_required or metric.name == _LANDMARKS):
        return f"{metric.name} compares with the true picture, and this dataset has none."
    if not has_mask and metric.mask_required:
        return f"{metric.name} needs a face mask for every picture, and this dataset has none."
    return None


def _device_of(judge: Any) -> torch.device:
    if isinstance(judge, nn.Module):
        for part in (*judge.parameters(), *judge.buffers()):
            return part.device
    return torch.device("cpu")


def _vgg(device: torch.device) -> nn.Module:
    return load_lpips("vgg", device)


def _toy(device: torch.device) -> nn.Module:
    return load_network("perceptual", device=device)


# What a metric would load for every batch: the keyword it takes it by, and how to load it. One function, one network.
_LOADERS: Mapping[str, tuple[str, Callable[[torch.device], Any]]] = MappingProxyType({
    "lpips": ("network", _vgg),
    "flpips": ("network", _vgg),
    "lpips-alex": ("network", lambda device: load_lpips("alex", device)),
    "lpips-squeeze": ("network", lambda device: load_lpips("squeeze", device)),
    "lpips-toy": ("network", _toy),
    "flpips-toy": ("network", _toy),
    "textures": ("features", load_textures),
    "niqe": ("network", lambda device: load_niqe()),
    "musiq": ("network", lambda device: load_musiq(device=device)),
    "lmd": ("detector", lambda device: load_awing(device=device)),
})  # fmt: skip
