"""Datasets of photographs with references on disk: FFHQ-Ref and CelebA-Test-Ref (ReF-LDM, section 4.1).

`open_reference_dataset` opens a split; an item is a target, its references and, where there is one, its degraded
picture, all under the image contract. Nothing is fetched: see `refbfr_core.faces.reference_layouts` for the owners'
pages. `refbfr_core.faces.reference_check` looks a whole dataset over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from refbfr_core.degradation import PRESETS, Degradation
from refbfr_core.errors import ConfigError, ImageFileError, unknown_name
from refbfr_core.faces.reference_layouts import ReferenceLayout, reference_layout
from refbfr_core.faces.reference_rows import DatasetError, PictureFinder, ReferenceRow, read_mapping
from refbfr_core.images import from_uint8, read_image, stack_references, to_uint8

if TYPE_CHECKING:
    from PIL import Image

RESOLUTION = 512
MOST_REFERENCES = 5


@dataclass(frozen=True)
class ReferenceItem:
    """One target with its references, everything float32 RGB in [0, 1] at one resolution.

    `truth`: (1, 3, H, W). `lq`: (1, 3, H, W), or None where the dataset was opened without degradation. `references`:
    (1, R, 3, H, W). `target`, `reference_names`: the names in the dataset's list.
    """

    truth: Tensor
    lq: Tensor | None
    references: Tensor
    target: str
    reference_names: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceBatch:
    """Several items: `truth`, `lq` (B, 3, H, W); `references` (B, R, 3, H, W) with `mask` (B, R), False for padding."""

    truth: Tensor
    lq: Tensor | None
    references: Tensor
    mask: Tensor
    targets: tuple[str, ...]
    reference_names: tuple[tuple[str, ...], ...]


class ReferenceDataset:
    """A split of a dataset with references; `len`, `dataset[i]`, iteration. Open it with `open_reference_dataset`.

    Attributes
    ----------
    layout, root, split, rows : what was opened; `rows` are the `ReferenceRow` of the list, in its order.
    degradation : name of the stored low-quality pictures, of a degradation preset, or None.
    resolution : side of the pictures given out; what has another size is resized with PIL's bicubic filter.
    """

    def __init__(
        self,
        layout: ReferenceLayout,
        root: Path,
        split: str,
        rows: Sequence[ReferenceRow],
        finders: tuple[PictureFinder, PictureFinder, PictureFinder | None],
        degradation: str | None,
        resolution: int,
        max_references: int,
        seed: int,
    ) -> None:
        self.layout, self.root, self.split, self.rows = layout, root, split, tuple(rows)
        self.degradation, self.resolution = degradation, resolution
        self.max_references, self.seed = max_references, seed
        self._truth, self._references, self._lq = finders

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ReferenceItem:
        """The item at ``index``, with its first `max_references` references.

        Raises
        ------
        ImageFileError : a picture is missing, truncated, damaged or not square. IndexError : no such row.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.layout.title} {self.split} has {len(self)} rows, there is no row {index}.")
        index %= len(self)
        row = self.rows[index]
        names = first_references(row.references, self.max_references)
        truth = picture_tensor(self.open_truth(index))
        references = torch.stack([picture_tensor(self.open_reference(name, index))[0] for name in names])[None]
        return ReferenceItem(truth, self._degraded(index, truth), references, row.target, names)

    def __repr__(self) -> str:
        return (
            f"ReferenceDataset({self.layout.title}, split={self.split!r}, rows={len(self)}, "
            f"degradation={self.degradation!r}, {self.resolution} px)"
        )

    @property
    def weights(self) -> np.ndarray:
        """(rows,) float64 sampling weights; all 1 where the list gives none."""
        return np.array([row.weight for row in self.rows])

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the rows of the split, for checkpoints and cards."""
        text = "\n".join(f"{row.target}|{'|'.join(row.references)}|{row.weight}" for row in self.rows)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def open_truth(self, index: int) -> Image.Image:
        """The target of a row as an 8-bit RGB picture at the dataset's resolution. Raises as `dataset[i]`."""
        return self._open(self._truth, self.rows[index].target, "target", index)

    def open_reference(self, name: str, index: int) -> Image.Image:
        """A reference of row ``index`` by name, likewise."""
        return self._open(self._references, name, "reference", index)

    def files_of(self, index: int, references: Sequence[str] = ()) -> list[Path | None]:
        """Where the pictures of a row lie: target, stored degraded picture if any, the named references; None for one
        that is missing."""
        row = self.rows[index]
        stored = [] if self._lq is None else [self._lq.find(row.lq or row.target)]
        return [self._truth.find(row.target), *stored, *(self._references.find(name) for name in references)]

    def batch(self, indices: Sequence[int]) -> ReferenceBatch:
        """Several items as tensors; people with fewer references are padded and masked."""
        items = [self[index] for index in indices]
        references, mask = stack_references([list(item.references[0]) for item in items])
        lq = None if items[0].lq is None else torch.cat([item.lq for item in items])
        names = tuple(item.reference_names for item in items)
        targets = tuple(item.target for item in items)
        return ReferenceBatch(torch.cat([item.truth for item in items]), lq, references, mask, targets, names)

    def missing(self, most: int | None = None) -> list[str]:
        """Names in the list (targets, used references, stored degraded pictures) that no file was found for."""
        absent: dict[str, None] = {}
        for row in self.rows:
            wanted = [(self._truth, row.target), *((self._references, name) for name in row.references)]
            if self._lq is not None:
                wanted.append((self._lq, row.lq or row.target))
            for finder, name in wanted:
                if name not in absent and finder.find(name) is None:
                    absent[name] = None
            if most is not None and len(absent) >= most:
                break
        return list(absent)[:most]

    def _degraded(self, index: int, truth: Tensor) -> Tensor | None:
        if self._lq is not None:
            row = self.rows[index]
            return picture_tensor(self._open(self._lq, row.lq or row.target, "degraded picture", index))
        if self.degradation is None:
            return None
        # One stream for every row, so that a picture is ruined alike whatever is read before it.
        seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return Degradation.preset(self.degradation)(truth, seeds=[seed])[0]

    def _open(self, finder: PictureFinder, name: str, role: str, index: int) -> Image.Image:
        path = finder.find(name)
        row = self.rows[index]
        if path is None:
            raise ImageFileError(
                f"the {role} {name!r} ({self.layout.title} {self.split}, line {row.line}) is in none of "
                f"{finder.places()}. `refbfr datasets check {self.layout.name} --root {self.root}` lists what is "
                "missing and where to get it."
            )
        return open_square(path, self.resolution)


def open_reference_dataset(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    degradation: str | None = None,
    images: str | Path | None = None,
    resolution: int = RESOLUTION,
    max_references: int = MOST_REFERENCES,
    seed: int = 0,
) -> ReferenceDataset:
    """Open a split of a reference dataset that lies on disk.

    Parameters
    ----------
    name : "ffhq-ref", "celeba-test-ref", or "celebref-hq", whose pairs are those of its pairs.csv if there is one, else
        those of seed 0 (`refbfr_core.faces.celebref.open_celebref` chooses).
    root : folder the release was unpacked into.
    split : "train", "val" or "test"; None is "test".
    degradation : stored low-quality pictures ("severe" or "moderate" for FFHQ-Ref's test split, "release" for
        CelebA-Test-Ref), or a preset of `refbfr_core.degradation.PRESETS`, applied to the target with `seed`; None
        gives items without a degraded picture.
    images : folder of the high-quality photographs when they do not lie in `root`.
    resolution : side of the pictures given out.
    max_references : the first so many of a row are used.

    Raises
    ------
    UnknownNameError : an unknown dataset, split or degradation. DatasetError : a piece is missing or a row cannot be
    understood. ConfigError : impossible sizes.
    """
    layout = reference_layout(name)
    root, split = Path(root), layout.default_split if split is None else split
    if split not in layout.splits:
        raise unknown_name(f"split of {layout.title}", split, layout.splits)
    if resolution < 1 or max_references < 1:
        raise ConfigError(f"resolution={resolution} and max_references={max_references} must be at least 1.")
    if layout.people_in_folders:
        from refbfr_core.faces.celebref import open_celebref, recorded_pairs

        place = root if images is None else images
        pairs = recorded_pairs(place)
        return open_celebref(place, pairs=pairs, degradation=degradation, resolution=resolution, seed=seed)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}. {layout.hint()}")
    mapping = root / layout.splits[split].mapping
    if not mapping.is_file():
        raise DatasetError(f"{layout.title} is incomplete: {mapping} is missing. {layout.hint()}")
    rows, unreadable = read_mapping(mapping)
    if unreadable:
        first = unreadable[0]
        raise DatasetError(
            f"{len(unreadable)} rows of {mapping} cannot be understood, the first in line {first.line}: "
            f"{first.reason}. Unpack the release again, or see `refbfr datasets check {name} --root {root}`."
        )
    finders = picture_finders(layout, root, images, degradation, split)
    for finder in finders[:2]:
        if not finder.folders:
            raise DatasetError(f"{layout.title} is incomplete: no photographs in {finder.places()}. {layout.hint()}")
    return ReferenceDataset(layout, root, split, rows, finders, degradation, resolution, max_references, seed)


def picture_finders(
    layout: ReferenceLayout, root: Path, images: str | Path | None, degradation: str | None, split: str
) -> tuple[PictureFinder, PictureFinder, PictureFinder | None]:
    """Where targets, references and stored degraded pictures are looked for; the last is None unless some are wanted.

    Raises
    ------
    UnknownNameError : neither stored pictures nor a preset. DatasetError : the folder of stored pictures is missing, or
    `images` is.
    """
    extra: tuple[str, ...] = ()
    if images is not None:
        if not Path(images).is_dir():
            raise DatasetError(f"there is no folder {images} with the photographs. {layout.hint()}")
        extra = (str(Path(images).absolute()),)
    truth = (*layout.truth_folders, *extra) if layout.truth_in_release else (*extra, *layout.truth_folders)
    found = PictureFinder(root, truth), PictureFinder(root, (*extra, *layout.reference_folders))
    if degradation is None or degradation in PRESETS:
        return *found, None
    stored = layout.lq_folders if split == "test" else {}
    if degradation not in stored:
        raise unknown_name(f"degradation of {layout.title} {split}", degradation, [*stored, *PRESETS])
    lq = PictureFinder(root, layout.lq_folders[degradation])
    if not lq.folders:
        raise DatasetError(f"{layout.title} is incomplete: no degraded pictures in {lq.places()}. {layout.hint()}")
    return *found, lq


def first_references(names: Sequence[str], count: int) -> tuple[str, ...]:
    """What is used when restoring: the first ``count`` of a list, fewer if it is shorter (ReF-LDM's release)."""
    return tuple(names[:count])


def training_references(names: Sequence[str], count: int, draws: np.random.Generator) -> tuple[str, ...]:
    """What is used in training: the list shuffled, repeated until there are ``count``, cut to ``count`` (likewise)."""
    order = [names[i] for i in draws.permutation(len(names))]
    return tuple((order * -(-count // len(order)))[:count])


def open_square(path: str | Path, resolution: int) -> Image.Image:
    """A square picture as 8-bit RGB of ``resolution`` px, with PIL's bicubic filter where the size differs.

    Raises
    ------
    ImageFileError : missing, truncated, damaged, no image, or not square.
    """
    from PIL import Image

    pixels = to_uint8(read_image(path))[0].numpy()
    height, width = pixels.shape[:2]
    if height != width:
        raise ImageFileError(
            f"{path} is {width}x{height}; aligned faces are square. Use the aligned pictures of the dataset's owners."
        )
    picture = Image.fromarray(pixels)
    if width == resolution:
        return picture
    return picture.resize((resolution, resolution), Image.Resampling.BICUBIC)


def picture_tensor(picture: Image.Image) -> Tensor:
    """An 8-bit RGB picture under the image contract: (1, 3, H, W) float32 in [0, 1]."""
    return from_uint8(np.asarray(picture)[None])
