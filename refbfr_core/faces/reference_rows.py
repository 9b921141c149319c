"""Reading the lists of a reference dataset (who is the target, which photos are its references) and finding the files.

A mapping is a CSV file with a row for each target: ``gt_image``, ``ref_image`` (the text of a Python list of file
names), optionally ``lq_image`` and ``weight``.
"""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from refbfr_core.errors import RefbfrError

TARGET, REFERENCES, LQ, WEIGHT = "gt_image", "ref_image", "lq_image", "weight"
_MOST_CHARACTERS = 1_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class DatasetError(RefbfrError, ValueError):
    """A dataset on disk lacks a piece, or one of its lists cannot be understood."""


@dataclass(frozen=True)
class ReferenceRow:
    """One target and its references, as the list names them.

    `line` is where it stands in the file (the header is line 1); `lq` is None where the list names no degraded
    picture; `weight` is the sampling weight, 1 where the list gives none.
    """

    line: int
    target: str
    references: tuple[str, ...]
    lq: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be understood, and why."""

    line: int
    reason: str


def picture_key(name: str) -> str:
    """What tells pictures of a dataset apart: the file name without folders and suffix ("images/00012.png": 00012)."""
    return PurePosixPath(name.replace("\\", "/")).stem


def parse_names(text: str) -> tuple[str, ...]:
    """File names from the text of a Python list; nothing in the text is ever run.

    Raises
    ------
    DatasetError : not a list of non-empty relative file names.
    """
    shown = text if len(text) <= 60 else text[:57] + "..."
    if len(text) > _MOST_CHARACTERS:
        raise DatasetError(f"a list of {len(text)} characters is no list of references: {shown!r}")
    try:
        names = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DatasetError(f"{shown!r} is not the text of a list of file names, such as ['00012.png']") from error
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{shown!r} is not a list of file names, such as ['00012.png']")
    return tuple(checked_name(name) for name in names)


def read_mapping(path: str | Path) -> tuple[list[ReferenceRow], list[Unreadable]]:
    """The rows of a mapping, and those that could not be understood.

    Raises
    ------
    DatasetError : the file is missing, is no text, has no rows or lacks a column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; unpack the release of the dataset there.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); unpack the release of the dataset again.") from error
    reader = csv.DictReader(text.splitlines())
    columns = [name.strip() for name in reader.fieldnames or ()]
    if missing := [name for name in (TARGET, REFERENCES) if name not in columns]:
        raise DatasetError(
            f"{path} lacks the column {' and '.join(missing)}; it has {', '.join(columns) or 'none'}. "
            "Unpack the release of the dataset again."
        )
    reader.fieldnames = columns
    rows, unreadable = [], []
    try:
        for cells in reader:
            try:
                rows.append(_row(reader.line_num, cells))
            except DatasetError as error:
                unreadable.append(Unreadable(reader.line_num, str(error)))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}; unpack the release again.") from error
    if not rows and not unreadable:
        raise DatasetError(f"{path} has a header but no rows; unpack the release of the dataset again.")
    return rows, unreadable


def read_listing(path: str | Path) -> tuple[str, ...]:
    """File names of a split, one a line.

    Raises
    ------
    DatasetError : the file is missing or no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; unpack the release of the dataset there.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); unpack the release of the dataset again.") from error
    return tuple(line.strip() for line in lines if line.strip())


class PictureFinder:
    """Finds pictures by the names a list gives them, in several folders.

    A name is looked for as it stands, by its last part, and in FFHQ's folders of a thousand (00000/, 01000/, ...); then
    again with another suffix, because some people keep the same pictures in another format.
    ``folders`` may be patterns relative to ``root``, matched without regard to case; those that exist are kept.
    """

    def __init__(self, root: str | Path, folders: Sequence[str | Path]) -> None:
        self.root = Path(root)
        self.wanted = tuple(str(folder) for folder in folders)
        self.folders = list(dict.fromkeys(place for folder in folders for place in self._matching(folder)))

    def find(self, name: str) -> Path | None:
        """The file called ``name``, or None."""
        whole = PurePosixPath(name.replace("\\", "/"))
        tails = [whole, PurePosixPath(whole.name)]
        if whole.stem.isdecimal():
            tails.append(PurePosixPath(f"{int(whole.stem) // 1000 * 1000:05d}") / whole.name)
        others = [tail.with_suffix(suffix) for suffix in _SUFFIXES for tail in tails if tail.suffix != suffix]
        for choice in (tails, others):
            for folder in self.folders:
                for tail in choice:
                    if (folder / tail).is_file():
                        return folder / tail
        return None

    def places(self) -> str:
        """Where it looks, for messages."""
        return ", ".join(str(folder) for folder in self.folders) or f"{self.root} ({', '.join(self.wanted)}: not there)"

    def _matching(self, folder: str | Path) -> Iterable[Path]:
        places = [self.root]
        if Path(folder).is_absolute():
            return [Path(folder)] if Path(folder).is_dir() else []
        for part in Path(folder).parts:
            if "*" in part:
                places = [p for place in places if place.is_dir() for p in sorted(place.iterdir()) if _like(p, part)]
            else:
                places = [place / part for place in places]
        return [place for place in places if place.is_dir()]


def _like(path: Path, pattern: str) -> bool:
    return PurePosixPath(path.name.lower()).match(pattern.lower())


def _row(line: int, cells: dict[str, str | None]) -> ReferenceRow:
    if None in cells or None in cells.values():
        raise DatasetError("the row has more or fewer cells than the header; a list with commas belongs in quotes")
    target = checked_name(cells[TARGET].strip())
    references = parse_names(cells[REFERENCES])
    if not references:
        raise DatasetError(f"{target} has no reference")
    lq = cells.get(LQ, "").strip()
    text = cells.get(WEIGHT, "").strip()
    try:
        weight = float(text) if text else 1.0
    except ValueError as error:
        raise DatasetError(f"the weight {text!r} of {target} is not a number") from error
    if not math.isfinite(weight) or weight < 0:
        raise DatasetError(f"the weight {text!r} of {target} is not a finite number of at least 0")
    return ReferenceRow(line, target, references, checked_name(lq) if lq else None, weight)


def checked_name(name: str) -> str:
    """``name`` if it is a relative path that stays inside the dataset's folder. Raises `DatasetError` otherwise."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or not path.name:
        raise DatasetError(f"{name!r} is not a file name")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise DatasetError(f"{name!r} is not a path inside the dataset's folder")
    return name
