"""Who is it? Identity similarity of a ruined picture and of its restoration to the same person's other pictures.

Photographs are scored by a recognition network for photographs (an InsightFace pack), drawn faces by the judge that
ships here. Neither takes part in a restoration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from refbfr_core.cli.restoration import Picture
    from refbfr_core.faces.photos import PhotoAligner


class Scorer(Protocol):
    """Something that can tell who is on a picture."""

    name: str

    def compare(
        self, picture: Picture, restored: torch.Tensor, references: Sequence[Picture], target: Picture | None
    ) -> dict[str, Any]:
        """Score one restoration; see `_report` for what comes back."""


@dataclass(frozen=True)
class PhotoScorer:
    """Scores photographs with the recognition network of an InsightFace pack, on faces aligned by five points."""

    aligner: PhotoAligner

    @property
    def name(self) -> str:
        """The network, in words."""
        return f"recognition network of the InsightFace pack {self.aligner.folder.name!r}"

    def compare(
        self, picture: Picture, restored: torch.Tensor, references: Sequence[Picture], target: Picture | None
    ) -> dict[str, Any]:
        """Score in one frame: points found on a ruined picture move, and a score would move with them.

        The points come from the target when there is one in the same frame (equal picture size), else from the LQ crop,
        else, where no face is found on it, from the template every aligned crop follows.
        """
        from refbfr_core.faces.alignment import move_points, template_points

        points, source = template_points(restored.shape[-1]), "template"
        for name, frame in (("target", target), ("lq", picture)):
            if frame is None or frame.photo.shape != picture.photo.shape:
                continue
            found = self._points(frame)
            if found is not None:
                points, source = move_points(picture.face.matrix, found), name
                break
        lq, result = (self.aligner.embed(image, points) for image in (picture.image, restored))
        to_references = [self._of(reference) for reference in references]
        to_target = None if target is None else self._of(target)
        return {**_report(self.name, lq, result, to_references, to_target), "points_from": source}

    def _points(self, picture: Picture) -> np.ndarray | None:
        """Return the five points in the picture as it is in its file: (5, 2), or None when no face is found."""
        if picture.face.points is not None:
            return picture.face.points
        found = self.aligner.find(picture.photo)
        return found[0].points if found else None

    def _of(self, picture: Picture) -> torch.Tensor:
        """Return the identity vector of a clean picture by its own points, by the template where no face is found."""
        from refbfr_core.faces.alignment import template_points

        points = self._points(picture)
        if points is None:
            return self.aligner.embed(picture.image, template_points(picture.image.shape[-1]))
        return self.aligner.embed(picture.photo, points)


@dataclass(frozen=True)
class JudgeScorer:
    """Scores drawn faces with the judge, the embedder that only judges."""

    embedder: Any
    name: str = "judge (trained on drawn faces)"

    def compare(
        self, picture: Picture, restored: torch.Tensor, references: Sequence[Picture], target: Picture | None
    ) -> dict[str, Any]:
        """Score crops as they are: drawn faces share one frame."""
        to_target = None if target is None else self._of(target.image)
        to_references = [self._of(reference.image) for reference in references]
        return _report(self.name, self._of(picture.image), self._of(restored), to_references, to_target)

    def _of(self, image: torch.Tensor) -> torch.Tensor:
        import torch

        from refbfr_core.images import to_network

        device = next(self.embedder.parameters()).device
        with torch.no_grad():
            return self.embedder.embed(to_network(image.to(device)))[0].cpu()


def _report(
    name: str, lq: torch.Tensor, restored: torch.Tensor, references: Sequence[torch.Tensor], target: torch.Tensor | None
) -> dict[str, Any]:
    """Return cosines before (`lq`) and after (`restored`): to the target, to each reference, and the latter's mean."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return round(float(a @ b), 4)

    report: dict[str, Any] = {"embedder": name, "unit": "cosine similarity, -1 to 1, higher is more alike"}
    if references:
        each = {
            who: [cosine(vector, one) for one in references] for who, vector in (("lq", lq), ("restored", restored))
        }
        report["to_references"] = {
            who: {"mean": round(float(np.mean(values)), 4), "each": values} for who, values in each.items()
        }
    if target is not None:
        report["to_target"] = {"lq": cosine(lq, target), "restored": cosine(restored, target)}
    return report


def describe(report: dict[str, Any]) -> str:
    """Return the scores as one line for people."""
    parts = []
    if "to_target" in report:
        scores = report["to_target"]
        parts.append(f"to the target {scores['lq']:.3f} -> {scores['restored']:.3f}")
    if "to_references" in report:
        scores = report["to_references"]
        count = len(scores["lq"]["each"])
        parts.append(
            f"to the references (mean of {count}) {scores['lq']['mean']:.3f} -> {scores['restored']['mean']:.3f}"
        )
    return f"identity similarity, input -> restored: {'; '.join(parts)} [{report['embedder']}]"
