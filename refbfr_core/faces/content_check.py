"""Leaks that names do not show: the same picture under two names, told by what is in the files.

Exact copies are told by their bytes; files of different length are never read, so looking tens of thousands of
photographs over costs little more than listing them. Copies saved anew are told by thumbnails, which takes decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refbfr_core.files import file_sha256

if TYPE_CHECKING:
    from PIL import Image

NEAR = 1.5
"""Mean difference of two thumbnails in grey levels below which two pictures count as one. Measured on 12 photographs of
512 px: at most 0.5 for a copy saved as JPEG (quality 20 to 90) or scaled to 200 px and back, at least 30 for another
photograph, also of the same person."""

_THUMBNAIL = 16


def copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Groups of two or more different files with the same bytes, each group and all groups sorted."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_size[path.stat().st_size].append(path)
    groups: dict[str, list[Path]] = defaultdict(list)
    for same in by_size.values():
        for path in same if len(same) > 1 else ():
            groups[file_sha256(path)].append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def shared(one: Iterable[Path], other: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a file of `one` and a file of `other` with the same bytes; a file that is in both is such a pair."""
    first, second = list(dict.fromkeys(one)), list(dict.fromkeys(other))
    both = set(first) & set(second)
    pairs = [(path, path) for path in first if path in both]
    for group in copies([*first, *second]):
        left = [path for path in group if path in set(first) and path not in both]
        right = [path for path in group if path in set(second) and path not in both]
        pairs += [(path, right[0]) for path in left if right]
    return sorted(pairs)


def own_answer(target: Path, references: Sequence[Path]) -> Path | None:
    """The first of the references that is the target, byte for byte, or None."""
    size = target.stat().st_size
    alike = [path for path in references if path.stat().st_size == size]
    if not alike:
        return None
    digest = file_sha256(target)
    return next((path for path in alike if path == target or file_sha256(path) == digest), None)


def thumbnail(picture: Image.Image) -> np.ndarray:
    """(16, 16) float32 grey levels in [0, 255], area averages of a square picture whose side 16 divides."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    return grey.reshape(_THUMBNAIL, len(grey) // _THUMBNAIL, _THUMBNAIL, -1).mean((1, 3))


def nearly_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two thumbnails are of one picture, up to how it was saved (see `NEAR`)."""
    return bool(np.abs(one - other).mean() < NEAR)
