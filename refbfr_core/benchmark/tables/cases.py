"""What a table is made of: datasets of items, and the pictures of an item, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TableCase:
    """The pictures of one item, all float32 RGB in [0, 1].

    Attributes:
        lq: (1, 3, H, W) what is restored.
        truth: (1, 3, H, W), or None where nobody has it.
        right, wrong: (1, R, 3, H, W) references of the person, and of somebody else; None where there are none.
        mask: (1, 1, H, W) in [0, 1], the face in the true picture; None where it is not known exactly.
        landmarks: (1, K, 2) exact x, y in pixels of the true picture; None likewise.
    """

    lq: Tensor
    truth: Tensor | None = None
    right: Tensor | None = None
    wrong: Tensor | None = None
    mask: Tensor | None = None
    landmarks: Tensor | None = None


@dataclass(frozen=True)
class TableItem:
    """One picture to restore, by name.

    Attributes:
        dataset: name of its dataset.
        name: unique in the dataset, usable as a file's stem.
        group: who is on it; intervals resample groups, because pictures of one person are not independent.
        seed: of the noise a method draws for it.
        digest: hexadecimal digits that change with anything that decides its pictures: of files their SHA-256, of a
            drawing the recipe. (The version of the code is added by the engine.)
        load: reads or draws the pictures. It may raise a `RefbfrError`, such as for a damaged file or a missing
            reference; every row of the item is then a failure with that reason.
    """

    dataset: str
    name: str
    group: str
    seed: int
    digest: str
    load: Callable[[], TableCase]


@dataclass(frozen=True)
class TableDataset:
    """The items that a column of a table is measured on.

    Attributes:
        name, title: as in commands, and as in headings.
        protocol: one line: what it is, how it was ruined, how many there are, which references.
        items: what there is on this machine.
        resolution: side of the pictures in pixels.
        has_truth, has_references: whether scores against the truth, and arms with references, are possible.
        expected: how many items the papers count; None where none states it.
    """

    name: str
    title: str
    protocol: str
    items: tuple[TableItem, ...]
    resolution: int
    has_truth: bool
    has_references: bool
    expected: int | None = None
