"""Test sets of blind restoration on disk: low-quality faces, with their clean pictures where somebody has them.

`open_blind_dataset` opens one; `refbfr_core.faces.blind_layouts` says which there are and where to get them,
`refbfr_core.faces.blind_check` looks one over. Nothing is fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, ImageFileError
from refbfr_core.faces.blind_layouts import BlindLayout, blind_layout
from refbfr_core.faces.reference_dataset import RESOLUTION, open_square, picture_tensor
from refbfr_core.faces.reference_rows import DatasetError, PictureFinder, picture_key

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What counts as a picture; where a name is there twice, the earlier suffix is taken."""

_DEPTH = 3  # archives are often a folder in a folder


@dataclass(frozen=True)
class BlindPicture:
    """One name and its files; a file is None where it is missing, or not part of the dataset."""

    name: str
    lq: Path | None
    truth: Path | None


@dataclass(frozen=True)
class BlindItem:
    """One face, float32 RGB in [0, 1]: `lq` (1, 3, H, W), and `truth` likewise or None where nobody has it."""

    name: str
    lq: Tensor
    truth: Tensor | None


class BlindDataset:
    """A test set without references; `len`, `dataset[i]`, iteration. Open it with `open_blind_dataset`.

    Attributes
    ----------
    layout, root : what was opened. pictures : the `BlindPicture` of every name, sorted by name.
    lq_folder, truth_folder : where they were found; None where the dataset has none.
    resolution : side of the pictures given out; what has another size is resized with PIL's bicubic filter.
    seed : of the degradation, where pictures are degraded here.
    """

    def __init__(
        self,
        layout: BlindLayout,
        root: Path,
        pictures: Sequence[BlindPicture],
        folders: tuple[Path | None, Path | None],
        resolution: int,
        seed: int,
    ) -> None:
        self.layout, self.root, self.pictures = layout, root, tuple(pictures)
        self.lq_folder, self.truth_folder = folders
        self.resolution, self.seed = resolution, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> BlindItem:
        """The pictures of one name.

        Raises
        ------
        ImageFileError : a picture is missing, truncated, damaged or not square. IndexError : no such name.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.layout.title} has {len(self)} pictures here, there is no number {index}.")
        picture = self.pictures[index]
        truth = self._read(picture.truth, picture.name, "clean") if self.layout.has_truth else None
        if self.layout.preset is None:
            lq = self._read(picture.lq, picture.name, "low-quality")
        else:
            lq, _ = Degradation.preset(self.layout.preset)(truth, seeds=[self.seed_of(picture.name)])
        return BlindItem(picture.name, lq, truth)

    def __repr__(self) -> str:
        return f"BlindDataset({self.layout.title}, {len(self)} pictures, {self.resolution} px, {self.root})"

    def seed_of(self, name: str) -> int:
        """The seed that degrades the picture ``name``, the same wherever it stands in the folder."""
        return name_seed(self.layout.name, name, self.seed)

    def _read(self, path: Path | None, name: str, role: str) -> Tensor:
        if path is None:
            place = self.truth_folder if role == "clean" else self.lq_folder
            raise ImageFileError(
                f"the {role} picture of {name!r} is missing in {place} ({self.layout.title}). `refbfr datasets check "
                f"{self.layout.name} --root {self.root}` lists what is missing and where to get it."
            )
        return picture_tensor(open_square(path, self.resolution))


def name_seed(dataset: str, name: str, seed: int) -> int:
    """A seed in [0, 2^48) from three things alone: the dataset, an item's name and the seed of the study."""
    return int.from_bytes(hashlib.sha256(f"{dataset}|{name}|{seed}".encode()).digest()[:6], "big")


def open_blind_dataset(
    name: str, root: str | Path, *, images: str | Path | None = None, resolution: int = RESOLUTION, seed: int = 0
) -> BlindDataset:
    """Open a test set without references that lies on disk.

    Parameters
    ----------
    name : one of `BLIND_LAYOUTS`.
    root : folder the release was unpacked into, or the folder of the pictures itself where there is only one kind.
    images : folder of the clean pictures when they do not lie in `root`.
    resolution : side of the pictures given out.
    seed : of the degradation, for the sets that are degraded here.

    Raises
    ------
    UnknownNameError : no such dataset. DatasetError : a folder is missing or holds no picture; the message says what,
    where to get it, under which licence and where to put it. ConfigError : an impossible size or seed.
    """
    layout, root = blind_layout(name), Path(root)
    if resolution < 1 or seed < 0:
        raise ConfigError(f"resolution={resolution} must be at least 1 and seed={seed} at least 0.")
    lq_folder, truth_folder = blind_folders(layout, root, images)
    lq, truth = pictures_in(lq_folder), pictures_in(truth_folder)
    # The union: a name that lacks one of its pictures must fail visibly, not shrink the dataset.
    names = sorted({*lq, *truth})
    if layout.third is not None:
        names = names[len(names) * layout.third // 3 : len(names) * (layout.third + 1) // 3]
    pictures = [BlindPicture(key, lq.get(key), truth.get(key)) for key in names]
    if not pictures:
        raise DatasetError(f"{layout.title} is empty: too few pictures in {truth_folder}. {layout.hint()}")
    return BlindDataset(layout, root, pictures, (lq_folder, truth_folder), resolution, seed)


def blind_folders(layout: BlindLayout, root: Path, images: str | Path | None = None) -> tuple[Path | None, Path | None]:
    """The folders of the low-quality and of the clean pictures; None for a kind the dataset does not have.

    Raises
    ------
    DatasetError : there is no `root`, or no folder with pictures where there should be one.
    """
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}. {layout.hint()}")
    lq = _folder_of(layout, root, layout.lq_folders, "low-quality pictures", None) if layout.lq_folders else None
    if not layout.truth_folders:
        return lq, None
    if images is not None:
        if not pictures_in(_innermost(Path(images))):
            raise DatasetError(f"there is no picture ({', '.join(SUFFIXES)}) in {images}. {layout.hint()}")
        return lq, _innermost(Path(images))
    truth = _folder_of(layout, root, layout.truth_folders, "clean pictures", lq)
    return lq, truth


def pictures_in(folder: Path | None) -> dict[str, Path]:
    """Name without suffix -> file, of the pictures in a folder; hidden files are none. Empty for None."""
    if folder is None or not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (_rank(path), path.name)):
        if _rank(path) < len(SUFFIXES) and not path.name.startswith(".") and path.is_file():
            found.setdefault(picture_key(path.name), path)
    return dict(sorted(found.items()))


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES)


def _folder_of(layout: BlindLayout, root: Path, patterns: Sequence[str], what: str, other: Path | None) -> Path:
    """The first folder that matches a pattern and holds pictures: in `root`, in its only folder, or `root` itself.

    A folder under another name is never taken for want of a better one: LFW-Test must not become WIDER-Test.
    """
    for place in dict.fromkeys((root, _innermost(root))):
        for pattern in patterns:
            for folder in PictureFinder(place, [pattern]).folders if pattern != "." else ():
                inner = _innermost(folder)
                if inner != other and pictures_in(inner):
                    return inner
    if ("." in patterns or not layout.lq_folders) and pictures_in(root):
        return root  # only one kind of picture is wanted, and here it is
    raise DatasetError(
        f"{layout.title} is incomplete: no folder with {what} ({', '.join(SUFFIXES)}) in {root}; looked for "
        f"{', '.join(pattern for pattern in patterns if pattern != '.')}. {layout.hint()}"
    )


def _innermost(folder: Path) -> Path:
    """The folder itself, or the only folder in it while it holds no pictures of its own."""
    for _ in range(_DEPTH):
        if not folder.is_dir() or pictures_in(folder):
            break
        inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
        if len(inside) != 1:
            break
        folder = inside[0]
    return folder
