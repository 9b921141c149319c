"""Datasets of photographs on disk as items of a table: read when they are needed, keyed by what is in the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from refbfr_core.benchmark.tables.cases import TableCase, TableItem
from refbfr_core.degradation import PRESETS, Degradation
from refbfr_core.errors import ConfigError
from refbfr_core.faces.blind_dataset import BlindDataset, name_seed
from refbfr_core.faces.reference_check import identity_groups
from refbfr_core.faces.reference_dataset import ReferenceDataset, first_references, picture_tensor
from refbfr_core.faces.reference_rows import DatasetError, picture_key
from refbfr_core.files import file_sha256


class FileDigests:
    """SHA-256 of files, each read once. A missing file counts as "missing", so that finding it later is a change."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path | None) -> str:
        """64 hexadecimal digits, or "missing"."""
        if path is None or not path.is_file():
            return "missing"
        if path not in self._known:
            self._known[path] = file_sha256(path)
        return self._known[path]


def blind_items(dataset: str, data: BlindDataset, *, seed: int, limit: int | None) -> tuple[TableItem, ...]:
    """One item a picture, its own group: nothing is known about who is on it."""
    files = FileDigests()
    recipe = {"preset": data.layout.preset, "seed": data.seed, "resolution": data.resolution}
    items = []
    for index, picture in enumerate(data.pictures[:limit]):
        # What degrades the picture depends on its name, so the name is part of what decides the pictures.
        parts = {"name": picture.name, "lq": files.of(picture.lq), "truth": files.of(picture.truth)}
        own = name_seed(dataset, picture.name, seed)
        load = partial(_load_blind, data, index)
        items.append(TableItem(dataset, picture.name, picture.name, own, _digest({**recipe, **parts}), load))
    return tuple(items)


def reference_items(
    dataset: str, data: ReferenceDataset, *, preset: str | None, seed: int, limit: int | None
) -> tuple[TableItem, ...]:
    """One item a row of the list, grouped by person.

    Args:
        data: opened without degradation where `preset` is given, with stored low-quality pictures otherwise.
        preset: degradation of the targets, from a seed that an item's name decides.
        limit: the first so many; who is a stranger to whom does not depend on it.

    Raises:
        DatasetError: two rows have the same target.
    """
    names = [_item_name(data, row.target) for row in data.rows]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise DatasetError(
            f"{data.layout.title} has several rows for {', '.join(twice[:3])}; a table needs one. `refbfr datasets "
            f"check {data.layout.name} --root {data.root}` lists them."
        )
    people = _People(data)
    files = FileDigests()
    recipe = {"preset": preset, "resolution": data.resolution}
    items = []
    for index, name in enumerate(names[:limit]):
        degradation_seed = None if preset is None else name_seed(dataset, name, data.seed)
        case = _ReferenceCase(data, index, people.wrong(index), preset, degradation_seed)
        parts = {"degraded with": degradation_seed, "files": [files.of(path) for path in case.files()]}
        own = name_seed(dataset, name, seed)
        items.append(TableItem(dataset, name, people.of[index], own, _digest({**recipe, **parts}), case.load))
    return tuple(items)


@dataclass(frozen=True)
class _ReferenceCase:
    """Row `index` of a dataset; `wrong` is the row of the list that the wrong references stand in, and their names."""

    data: ReferenceDataset
    index: int
    wrong: tuple[int, tuple[str, ...]] | None
    preset: str | None
    seed: int | None

    def load(self) -> TableCase:
        """The pictures of the row.

        Raises:
            ImageFileError: a picture is missing or damaged. DatasetError: the target is among its references.
        """
        item = self.data[self.index]
        for name, reference in zip(item.reference_names, item.references[0], strict=True):
            if torch.equal(reference, item.truth[0]):
                raise DatasetError(
                    f"the reference {name!r} of {item.target!r} is the target itself, pixel by pixel: it would give "
                    f"the answer away. See `refbfr datasets check {self.data.layout.name} --root {self.data.root}`."
                )
        lq = item.lq
        if self.preset is not None:
            lq, _ = Degradation.preset(self.preset)(item.truth, seeds=[self.seed])
        wrong = None
        if self.wrong is not None:
            row, names = self.wrong
            wrong = torch.stack([picture_tensor(self.data.open_reference(name, row))[0] for name in names])[None]
        return TableCase(lq=lq, truth=item.truth, right=item.references, wrong=wrong)

    def files(self) -> list[Path | None]:
        """Every file the case is made of; None for those that are missing."""
        right = first_references(self.data.rows[self.index].references, self.data.max_references)
        own = self.data.files_of(self.index, right)
        if self.wrong is None:
            return own
        row, names = self.wrong
        return [*own, *self.data.files_of(row, names)[-len(names) :]]


class _People:
    """Who is on which row of a list (`of`), and whose pictures are the wrong references of a row."""

    def __init__(self, data: ReferenceDataset) -> None:
        self._data = data
        if data.layout.people_in_folders:
            self.of = [PurePosixPath(row.target).parts[0] for row in data.rows]
        else:
            groups = identity_groups({data.split: data.rows})
            self.of = [groups[picture_key(row.target)] for row in data.rows]
        order = list(dict.fromkeys(self.of))
        self._next = dict(zip(order, [*order[1:], *order[:1]], strict=True))
        pictures: dict[str, tuple[int, tuple[str, ...]]] = {}
        for index, (person, row) in enumerate(zip(self.of, data.rows, strict=True)):
            first, names = pictures.get(person, (index, ()))
            pictures[person] = first, tuple(dict.fromkeys((*names, *row.references)))
        self._pictures = pictures

    def wrong(self, index: int) -> tuple[int, tuple[str, ...]] | None:
        """The next person's first row, and as many of that person's reference pictures as the row itself has.

        None where there is only one person. A person with fewer pictures lends what there is.
        """
        stranger = self._next[self.of[index]]
        if stranger == self.of[index]:
            return None
        first, names = self._pictures[stranger]
        count = len(first_references(self._data.rows[index].references, self._data.max_references))
        return first, names[:count]


def check_limit(limit: int | None, references: int) -> None:
    """Raises ConfigError for a `limit` below 1 or no references."""
    if (limit is not None and limit < 1) or references < 1:
        raise ConfigError(f"limit={limit} and references={references} must be at least 1; leave limit out for all.")


def check_stored(degradation: str) -> bool:
    """Whether the low-quality pictures of a degradation lie on disk, rather than being made with a preset."""
    return degradation not in PRESETS


def _load_blind(data: BlindDataset, index: int) -> TableCase:
    item = data[index]
    return TableCase(lq=item.lq, truth=item.truth)


def _item_name(data: ReferenceDataset, target: str) -> str:
    if data.layout.people_in_folders:  # file names repeat from person to person
        return "_".join(PurePosixPath(target).with_suffix("").parts)
    return picture_key(target)


def _digest(recipe: Mapping[str, object] | Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
