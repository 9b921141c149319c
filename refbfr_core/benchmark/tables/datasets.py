"""The datasets of the tables: drawn people at three severities, and the papers' photographs on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from refbfr_core.benchmark.cases import case_seed, draw_people, next_person
from refbfr_core.benchmark.severities import SEVERITIES, preset_of
from refbfr_core.benchmark.tables.cases import TableCase, TableDataset, TableItem
from refbfr_core.benchmark.tables.photographs import blind_items, check_limit, check_stored, reference_items
from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.faces import Rendering, open_reference_dataset
from refbfr_core.faces.blind_dataset import open_blind_dataset
from refbfr_core.faces.blind_layouts import BLIND_LAYOUTS
from refbfr_core.faces.reference_dataset import RESOLUTION
from refbfr_core.faces.reference_layouts import REFERENCE_LAYOUTS, Source
from refbfr_core.faces.training_overlaps import TrainingOverlap, training_overlaps


@dataclass(frozen=True)
class TableSource:
    """Where a dataset of the tables comes from.

    Attributes:
        name, title: as in `TableDataset`.
        kind: "drawn", "references" (photographs with references) or "blind" (without).
        layout: name of its layout in `REFERENCE_LAYOUTS` or `BLIND_LAYOUTS`; "" for drawn ones.
        degradation: stored low-quality pictures or the preset they are made with; "" where they are real or stored
            without a choice.
        expected: how many items the papers count.
        has_truth, has_references: as in `TableDataset`.
        sources: the pieces, with page, licence and place. notes: what a reader of a table should know.
        overlaps: systems known to have been trained on it.
    """

    name: str
    title: str
    kind: str
    layout: str
    degradation: str
    expected: int | None
    has_truth: bool
    has_references: bool
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    overlaps: tuple[TrainingOverlap, ...] = ()

    @property
    def licence(self) -> str:
        """The licences of its pieces."""
        return "; ".join(dict.fromkeys(source.licence for source in self.sources))


def drawn_dataset(
    severity: str,
    people: int = 24,
    references: int = 4,
    seed: int = 0,
    split: str = "test",
    resolution: int = 128,
) -> TableDataset:
    """Drawn people, one picture to restore of each: the cases of `refbfr_core.benchmark.cases.make_cases`, one by one.

    Pictures are drawn when an item is loaded; those of one person never depend on which other items are loaded.

    Args:
        severity: "mild", "medium" or "severe"; the degradation is the preset `preset_of(severity)`.
        people: how many; references: pictures of the person, and as many of the next person as wrong ones.
        seed: of people, views, degradation and noise alike. split: of the drawn people. resolution: side in pixels.

    Raises:
        UnknownNameError: another severity. ConfigError: fewer than two people (nobody would have wrong references) or
            no reference.
    """
    if severity not in SEVERITIES:
        raise unknown_name("severity", severity, SEVERITIES)
    if people < 2 or references < 1:
        raise ConfigError(
            f"people={people} and references={references}; wrong references need a second person, and every item a "
            "reference. Use at least 2 and 1."
        )
    drawn = _DrawnPeople(people, references, seed, split, resolution, preset_of(severity))
    name = f"drawn-{severity}"
    items = tuple(
        TableItem(
            dataset=name,
            name=f"person-{index:03d}",
            group=f"person-{index:03d}",
            seed=case_seed(index, seed),
            digest=drawn.digest(index),
            load=partial(drawn.load, index),
        )
        for index in range(people)
    )
    return TableDataset(
        name=name,
        title=f"Drawn faces, {severity}",
        protocol=f"{people} drawn people of split {split}, {resolution} px, degradation {drawn.preset}, seed {seed}; "
        f"{references} references of the same person in other views; wrong references: the next person's.",
        items=items,
        resolution=resolution,
        has_truth=True,
        has_references=True,
        expected=None,
    )


def table_dataset(
    name: str,
    root: str | Path,
    *,
    images: str | Path | None = None,
    references: int = 5,
    seed: int = 0,
    limit: int | None = None,
    resolution: int = RESOLUTION,
) -> TableDataset:
    """A dataset of photographs on disk, as a table needs it.

    Folders and lists are looked at now and every file of an item is hashed once; pictures are decoded when an item is
    loaded. What is wrong with one picture fails that item alone, when it is loaded.

    Args:
        name: one of `TABLE_DATASETS` that is not drawn.
        root: folder the release was unpacked into. images: folder of the high-quality photographs if they lie
            elsewhere.
        references: how many of a row are used, the first ones; wrong ones are as many of the next person in the list.
        seed: of the noise, and of the degradation where pictures are degraded here; together with an item's name, so
            that neither depends on what else is in the folder.
        limit: only the first so many items. resolution: side of the pictures.

    Raises:
        UnknownNameError: no such dataset. DatasetError: a folder or list is missing or cannot be understood; says what,
            where to get it, under which licence and where to put it. ConfigError: impossible numbers.
    """
    if name not in TABLE_DATASETS:
        raise unknown_name("dataset", name, TABLE_DATASETS)
    source = TABLE_DATASETS[name]
    if source.kind == "drawn":
        raise ConfigError(f"{name} is drawn, not read from a folder; make it with `drawn_dataset`.")
    check_limit(limit, references)
    if source.kind == "blind":
        data = open_blind_dataset(source.layout, root, images=images, resolution=resolution, seed=seed)
        items = blind_items(name, data, seed=seed, limit=limit)
        how = f"degraded with {source.degradation}, seed {seed} and name" if source.degradation else "as published"
        what = f"{'with' if source.has_truth else 'no'} truth, no references"
    else:
        stored = check_stored(source.degradation)
        data = open_reference_dataset(
            source.layout,
            root,
            "test",
            degradation=source.degradation if stored else None,
            images=images,
            resolution=resolution,
            max_references=references,
            seed=seed,
        )
        preset = None if stored else source.degradation
        items = reference_items(name, data, preset=preset, seed=seed, limit=limit)
        how = "low-quality pictures as published" if stored else f"degraded with {preset}, seed {seed} and name"
        most = data.max_references
        what = f"the first {most} references of the list, wrong ones: the next person's"
    counted = f"{len(items):,} of {source.expected:,}" if source.expected else f"{len(items):,}"
    return TableDataset(
        name=name,
        title=source.title,
        protocol=f"{source.title}, {counted} pictures, {resolution} px, {how}; {what}.",
        items=items,
        resolution=resolution,
        has_truth=source.has_truth,
        has_references=source.has_references,
        expected=source.expected,
    )


class _DrawnPeople:
    """Draws the items of one dataset.

    The two people drawn last are kept: an item needs its own person and the next one, whom the next item needs again.
    Loading one after another therefore draws everybody once (0.35 s a person of 5 pictures at 128 px on one core)
    instead of twice.
    """

    def __init__(self, people: int, references: int, seed: int, split: str, resolution: int, preset: str) -> None:
        self.people, self.references, self.seed, self.split = people, references, seed, split
        self.resolution, self.preset = resolution, preset
        self._last: tuple[tuple[int, Rendering], ...] = ()

    def digest(self, index: int) -> str:
        """What the pictures of person `index` depend on, as 64 hexadecimal digits."""
        recipe = {
            "drawn": self.preset,
            "people": self.people,
            "references": self.references,
            "seed": self.seed,
            "split": self.split,
            "resolution": self.resolution,
            "index": index,
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def load(self, index: int) -> TableCase:
        """The pictures of person `index`, with the renderer's own face mask and landmarks."""
        stranger = next_person(index, self.people)
        own, other = self._draw((index, stranger))
        truth = _copy(own.images[:, 0])
        lq, _ = Degradation.preset(self.preset)(truth, seeds=[case_seed(index, self.seed)])
        return TableCase(
            lq=lq,
            truth=truth,
            right=_copy(own.images[:, 1:]),
            wrong=_copy(other.images[:, 1:]),
            mask=_copy(own.face_mask[:, 0]),
            landmarks=_copy(own.landmarks[:, 0]),
        )

    def _draw(self, indices: Sequence[int]) -> list[Rendering]:
        known = dict(self._last)
        place = {"seed": self.seed, "split": self.split, "resolution": self.resolution}
        for index in indices:
            if index not in known:
                known[index] = draw_people([index], self.people, 1 + self.references, **place)
        self._last = tuple((index, known[index]) for index in indices)
        return [known[index] for index in indices]


def _copy(part: Tensor) -> Tensor:
    # The renderer works without gradients on tensors the cache keeps; what is handed out is the receiver's own.
    return torch.empty_like(part).copy_(part)


def _drawn_source(severity: str) -> TableSource:
    source = Source("drawn people", "drawn by this package, nothing to get", "that of this package", "nowhere")
    title = f"Drawn faces, {severity}"
    name = f"drawn-{severity}"
    return TableSource(name, title, "drawn", "", preset_of(severity), None, True, True, (source,))


def _reference_source(name: str, layout: str, degradation: str, title: str) -> TableSource:
    known = REFERENCE_LAYOUTS[layout]
    expected = known.splits["test"].rows
    overlaps = training_overlaps(layout)
    return TableSource(
        name, title, "references", layout, degradation, expected, True, True, known.sources, (), overlaps
    )


def _blind_source(name: str) -> TableSource:
    known = BLIND_LAYOUTS[name]
    return TableSource(
        name,
        known.title,
        "blind",
        name,
        known.preset or "",
        known.images,
        known.has_truth,
        False,
        known.sources,
        known.notes,
        training_overlaps(name),
    )


_ALL = (
    *(_drawn_source(severity) for severity in SEVERITIES),
    _reference_source("ffhq-ref-severe", "ffhq-ref", "severe", "FFHQ-Ref-Severe"),
    _reference_source("ffhq-ref-moderate", "ffhq-ref", "moderate", "FFHQ-Ref-Moderate"),
    _reference_source("celeba-test-ref", "celeba-test-ref", "release", "CelebA-Test-Ref"),
    _reference_source("celebref-hq", "celebref-hq", "pdgrad", "CelebRef-HQ"),
    *(_blind_source(name) for name in BLIND_LAYOUTS),
)

TABLE_DATASETS: Mapping[str, TableSource] = MappingProxyType({source.name: source for source in _ALL})
"""Every dataset of the tables by name, with its title, the count of the papers, sources and licences; read-only."""
