"""Looking CelebRef-HQ over: is it whole, does it agree with what was published, and can a pair give its answer away?

There are no splits to leak from one into another. What can go wrong is a picture that lies in two people's folders,
and a copy of a picture in the same person's folder: drawn as the reference, it is the answer.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from refbfr_core.errors import ImageFileError
from refbfr_core.faces.celebref import (
    NAME,
    people_folder,
    people_on_disk,
    read_pairs,
    recorded_pairs,
    verify_pairs,
)
from refbfr_core.faces.content_check import nearly_the_same, thumbnail
from refbfr_core.faces.reference_dataset import RESOLUTION, open_square
from refbfr_core.faces.reference_layouts import REFERENCE_LAYOUTS
from refbfr_core.faces.reference_report import DatasetReport, Finding, SplitSummary
from refbfr_core.faces.reference_rows import DatasetError
from refbfr_core.files import file_sha256

SPLIT = "test"

_EXAMPLES = 5
_SECOND_SOURCE = "3 to 20 (README of its repository) or 2 to 21 (PDGrad)"


def validate_celebref(root: str | Path, *, pictures: bool = False) -> DatasetReport:
    """Look CelebRef-HQ over; never raises for what is wrong with the data.

    Counts people and pictures, finds pictures that are stored twice, and compares recorded pairs with what is on disk.
    With `pictures` every picture is decoded too: that finds damaged ones and copies saved in another way.
    """
    layout, root = REFERENCE_LAYOUTS[NAME], Path(root)
    try:
        place, people = people_folder(root), people_on_disk(root)
    except DatasetError as error:
        return DatasetReport(layout.title, root, (), (Finding("error", "missing-piece", SPLIT, str(error)),))
    findings = _count_findings(people)
    findings += _copy_findings(place, people)
    if pictures:
        findings += _picture_findings(place, people)
    findings += _pair_findings(root)
    usable = sum(len(names) > 1 for names in people.values())
    summary = SplitSummary(SPLIT, usable, usable, len(people))
    return DatasetReport(layout.title, root, (summary,), tuple(findings))


def _count_findings(people: Mapping[str, tuple[str, ...]]) -> list[Finding]:
    layout = REFERENCE_LAYOUTS[NAME]
    sizes = [len(names) for names in people.values()]
    total, wanted = sum(sizes), layout.splits[SPLIT].identities
    findings = []
    if total != layout.images:
        findings.append(Finding("warning", "count", SPLIT, f"{total:,} pictures, published are {layout.images:,}"))
    if len(people) != wanted:
        findings.append(Finding("warning", "count", SPLIT, f"{len(people):,} people, published are {wanted:,}"))
    few = [name for name, own in people.items() if len(own) < 2]
    findings += _finding("error", "too-few", few, "people have fewer than two pictures; a pair needs two")
    message = f"{min(sizes)} to {max(sizes)} pictures a person; published is {_SECOND_SOURCE}"
    findings.append(Finding("note", "identities", SPLIT, message))
    message = (
        "neither the authors' pairs nor the 662 of Table 1 are published: Tables 2 to 6 can be repeated on a draw of "
        "one's own, Table 1 cannot"
    )
    findings.append(Finding("note", "pairs", SPLIT, message))
    return findings


def _copy_findings(place: Path, people: Mapping[str, tuple[str, ...]]) -> list[Finding]:
    """Files with the same bytes; only those of the same length are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for names in people.values():
        for name in names:
            by_size[(place / name).stat().st_size].append(name)
    groups: dict[str, list[str]] = defaultdict(list)
    for names in by_size.values():
        for name in names if len(names) > 1 else ():
            groups[file_sha256(place / name)].append(name)
    return _group_findings(groups.values(), "are the same file")


def _picture_findings(place: Path, people: Mapping[str, tuple[str, ...]]) -> list[Finding]:
    """Damaged pictures, the same pixels in different files, and nearly the same ones of one person."""
    broken: list[str] = []
    near: list[str] = []
    groups: dict[str, list[str]] = defaultdict(list)
    for names in people.values():
        thumbnails: dict[str, tuple[str, np.ndarray]] = {}
        for name in names:
            try:
                picture = open_square(place / name, RESOLUTION)
            except ImageFileError as error:
                broken.append(str(error))
                continue
            digest = hashlib.sha256(picture.tobytes()).hexdigest()
            groups[digest].append(name)
            thumbnails[name] = digest, thumbnail(picture)
        near += _near(thumbnails)
    same = [group for group in groups.values() if len(group) > 1 and not _same_bytes(place, group)]
    return [
        *_finding("error", "damaged-picture", broken, "pictures cannot be used"),
        *_group_findings(same, "are the same picture in different files"),
        *_finding("warning", "near-duplicate", near, "pairs of a person's pictures are nearly the same"),
    ]


def _near(thumbnails: Mapping[str, tuple[str, np.ndarray]]) -> list[str]:
    """Pairs whose pixels differ, but hardly. `thumbnails`: name -> (digest of the pixels, grey thumbnail)."""
    return [
        f"{one} = {other}"
        for (one, (digest, small)), (other, (other_digest, other_small)) in combinations(thumbnails.items(), 2)
        if digest != other_digest and nearly_the_same(small, other_small)
    ]


def _same_bytes(place: Path, names: Iterable[str]) -> bool:
    """Whether all are copies, which `_copy_findings` reports already."""
    return len({file_sha256(place / name) for name in names}) == 1


def _pair_findings(root: Path) -> list[Finding]:
    path = recorded_pairs(root)
    if path is None:
        message = f"no recorded pairs; `refbfr datasets pairs --root {root}` draws and records them"
        return [Finding("note", "pairs", SPLIT, message)]
    try:
        pairs = read_pairs(path)
        verify_pairs(pairs, root)
    except DatasetError as error:
        return [Finding("error", "pairs", SPLIT, str(error))]
    return [Finding("note", "pairs", SPLIT, f"{len(pairs):,} recorded pairs of seed {pairs[0].seed} are as on disk")]


def _group_findings(groups: Iterable[Iterable[str]], what: str) -> list[Finding]:
    """Groups of equal pictures: within one person, or across people."""
    own, across = [], []
    for group in groups:
        names = sorted(group)
        if len(names) < 2:
            continue
        people = {name.split("/")[0] for name in names}
        (own if len(people) == 1 else across).append(" = ".join(names))
    return [
        *_finding("warning", "duplicate-picture", own, f"groups of a person's pictures {what}"),
        *_finding("error", "leak-image", across, f"groups of pictures in several people's folders {what}"),
    ]


def _finding(level: str, kind: str, cases: list[str], what: str) -> list[Finding]:
    if not cases:
        return []
    return [Finding(level, kind, SPLIT, f"{len(cases)} {what}", len(cases), tuple(sorted(cases)[:_EXAMPLES]))]
