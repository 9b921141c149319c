"""Looking a reference dataset over: is everything there, does it agree with the paper, and do identities leak?

An evaluation with references is worthless when a person of the test split was seen in training, so the splits are
compared in three ways: by image, by reference list, and by *identity group*, a connected component of the graph whose
edges join a target with each of its references.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from refbfr_core.errors import ImageFileError, unknown_name
from refbfr_core.faces.content_check import nearly_the_same, own_answer, shared, thumbnail
from refbfr_core.faces.reference_dataset import RESOLUTION, open_square, picture_finders
from refbfr_core.faces.reference_layouts import ReferenceLayout, reference_layout
from refbfr_core.faces.reference_report import DatasetReport, Finding, SplitSummary, finding
from refbfr_core.faces.reference_rows import (
    DatasetError,
    PictureFinder,
    ReferenceRow,
    picture_key,
    read_listing,
    read_mapping,
)


def validate(
    name: str,
    root: str | Path,
    *,
    images: str | Path | None = None,
    splits: Sequence[str] | None = None,
    pictures: bool = False,
) -> DatasetReport:
    """Look a dataset on disk over.

    Parameters
    ----------
    name : "ffhq-ref", "celeba-test-ref" or "celebref-hq".
    root : folder the release was unpacked into. images : folder of the photographs when they lie elsewhere.
    splits : which to look at; None looks at all. Leaks are found among those.
    pictures : also decode every picture, which finds truncated files but takes minutes to hours.

    Raises
    ------
    UnknownNameError : no such dataset or split. What is wrong with the data is reported, not raised.
    """
    layout = reference_layout(name)
    root = Path(root)
    for split in splits or ():
        if split not in layout.splits:
            raise unknown_name(f"split of {layout.title}", split, layout.splits)
    if layout.people_in_folders:
        from refbfr_core.faces.celebref_check import validate_celebref

        return validate_celebref(root if images is None else images, pictures=pictures)
    chosen = [split for split in layout.splits if splits is None or split in splits]
    if not root.is_dir():
        piece = Finding("error", "missing-piece", "all", f"there is no folder {root}. {layout.hint()}")
        return DatasetReport(layout.title, root, (), (piece,))
    findings: list[Finding] = []
    rows = {split: found for split in chosen if (found := _rows_of(layout, root, split, findings)) is not None}
    listings = {split: found for split in chosen if (found := _listing_of(layout, root, split, findings)) is not None}
    for split in rows:
        findings += _own_findings(split, rows[split])
        findings += _file_findings(layout, root, images, split, rows[split], pictures)
    findings += _content_findings(layout, root, images, rows, pictures)
    groups = identity_groups(rows)
    findings += leak_findings(rows, listings, groups)
    summaries = []
    for split, own in rows.items():
        count = len({groups[picture_key(row.target)] for row in own})
        summaries.append(SplitSummary(split, len(own), sum(len(row.references) for row in own), count))
        findings += _count_findings(layout, split, len(own), count)
    return DatasetReport(layout.title, root, tuple(summaries), tuple(findings))


def identity_groups(rows: Mapping[str, Iterable[ReferenceRow]]) -> dict[str, str]:
    """Picture key -> name of its identity group, the connected component of the reference lists of all splits.

    The name is the smallest key in the group. (Union-find with path halving.)
    """
    parent: dict[str, str] = {}

    def root_of(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for own in rows.values():
        for row in own:
            for name in row.references:
                one, other = sorted((root_of(picture_key(row.target)), root_of(picture_key(name))))
                parent[other] = one
    return {key: root_of(key) for key in parent}


def leak_findings(
    rows: Mapping[str, Sequence[ReferenceRow]], listings: Mapping[str, Sequence[str]], groups: Mapping[str, str]
) -> list[Finding]:
    """What two splits share: images, people, and references that another split's listing claims.

    `rows` and `listings` by split; `groups` from `identity_groups`.
    """
    findings = []
    uses = {
        split: {picture_key(name) for row in own for name in (row.target, *row.references)}
        for split, own in rows.items()
    }
    lists = {split: {picture_key(name) for name in names} for split, names in listings.items()}
    people = {split: {groups[key] for key in keys} for split, keys in uses.items()}
    names = list(dict.fromkeys([*rows, *listings]))
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            pair = f"{one}/{other}"
            shared = uses.get(one, set()) & uses.get(other, set())
            findings += finding("leak-image", pair, shared, "images are targets or references in both splits")
            same = people.get(one, set()) & people.get(other, set())
            findings += finding("leak-identity", pair, same, "identity groups occur in both splits")
            both = lists.get(one, set()) & lists.get(other, set())
            findings += finding("leak-list", pair, both, "images are listed in both splits")
        others = set().union(*(keys for split, keys in lists.items() if split != one)) - lists.get(one, set())
        crossing = [
            row.target
            for row in rows.get(one, ())
            if any(picture_key(name) in others for name in (row.target, *row.references))
        ]
        findings += finding("leak-list", one, crossing, "rows use images that are listed in another split")
        if one in lists and one in uses:
            strange = uses[one] - lists[one] - others
            findings += finding("leak-list", one, strange, "images are used but listed in no split", level="warning")
    return findings


def _rows_of(layout: ReferenceLayout, root: Path, split: str, findings: list[Finding]) -> list[ReferenceRow] | None:
    path = root / layout.splits[split].mapping
    try:
        rows, unreadable = read_mapping(path)
    except DatasetError as error:
        cure = f" {layout.hint()}" if not path.is_file() else ""
        findings.append(Finding("error", "missing-piece", split, f"{error}{cure}"))
        return None
    if unreadable:
        examples = [f"line {each.line}: {each.reason}" for each in unreadable]
        findings += finding("unreadable-row", split, examples, "rows cannot be understood")
    return rows


def _listing_of(layout: ReferenceLayout, root: Path, split: str, findings: list[Finding]) -> tuple[str, ...] | None:
    listing = layout.splits[split].listing
    if listing is None:
        return None
    try:
        return read_listing(root / listing)
    except DatasetError as error:
        message = f"{error} Without it, leaks are looked for among the reference lists only."
        findings.append(Finding("warning", "missing-piece", split, message))
        return None


def _own_findings(split: str, rows: Sequence[ReferenceRow]) -> list[Finding]:
    """What one list gets wrong by itself."""
    often = [name for name, count in Counter(picture_key(row.target) for row in rows).items() if count > 1]
    selves = [row.target for row in rows if picture_key(row.target) in {picture_key(n) for n in row.references}]
    twice = [row.target for row in rows if len({picture_key(n) for n in row.references}) < len(row.references)]
    return [
        *finding("duplicate-row", split, often, "targets have more than one row"),
        *finding("self-reference", split, selves, "targets are among their own references"),
        *finding("duplicate-reference", split, twice, "rows name a reference twice", level="warning"),
    ]


def _file_findings(
    layout: ReferenceLayout,
    root: Path,
    images: str | Path | None,
    split: str,
    rows: Sequence[ReferenceRow],
    decode: bool,
) -> list[Finding]:
    """Which files are missing, damaged or confused with one another."""
    findings: list[Finding] = []
    try:
        truth, references, _ = picture_finders(layout, root, images, None, split)
    except DatasetError as error:
        return [Finding("error", "missing-piece", split, str(error))]
    roles: list[tuple[str, PictureFinder, list[str]]] = [
        ("targets", truth, [row.target for row in rows]),
        ("references", references, list(dict.fromkeys(name for row in rows for name in row.references))),
    ]
    for degradation in layout.lq_folders if split == "test" else ():
        finder = PictureFinder(root, layout.lq_folders[degradation])
        roles.append((f"degraded pictures ({degradation})", finder, [row.lq or row.target for row in rows]))
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for role, finder, names in roles:
        if not finder.folders:
            message = f"no folder of {role}: {finder.places()}. {layout.hint()}"
            findings.append(Finding("error", "missing-piece", split, message))
            continue
        files[role] = {name: path for name in names if (path := finder.find(name)) is not None}
        absent = [name for name in names if name not in files[role]]
        findings += finding("missing-file", split, absent, f"{role} are in none of {finder.places()}")
    for role in files:
        if role.startswith("degraded"):
            same = [
                row.target
                for row in rows
                if (path := files[role].get(row.lq or row.target)) and path == files["targets"].get(row.target)
            ]
            findings += finding("same-file", split, same, f"{role} and their targets are the same file")
    if decode:
        places = dict.fromkeys(path for found in files.values() for path in found.values())
        broken = [reason for path in places if (reason := _damage(path))]
        findings += finding("damaged-picture", split, broken, "pictures cannot be used")
    return findings


def _content_findings(
    layout: ReferenceLayout,
    root: Path,
    images: str | Path | None,
    rows: Mapping[str, Sequence[ReferenceRow]],
    decode: bool,
) -> list[Finding]:
    """Leaks that names do not show: copies of a target among its references, and pictures in two splits."""
    findings: list[Finding] = []
    used: dict[str, list[Path]] = {}
    for split, own in rows.items():
        try:
            truth, references, _ = picture_finders(layout, root, images, None, split)
        except DatasetError:  # `_file_findings` has said so
            continue
        find = cache(references.find)
        copied, similar, paths = [], [], []
        for row in own:
            target = truth.find(row.target)
            others = [path for name in row.references if (path := find(name)) not in (None, target)]
            paths += [*filter(None, [target]), *others]
            if target is None:
                continue
            if copy := own_answer(target, others):
                copied.append(f"{row.target} = {copy.name}")
            elif decode and (copy := _similar(target, others)):
                similar.append(f"{row.target} = {copy.name}")
        used[split] = list(dict.fromkeys(paths))
        findings += finding("self-reference", split, copied, "targets are copies of one of their own references")
        findings += finding("near-duplicate", split, similar, "targets are nearly one of their own references")
    for one, other in combinations(used, 2):
        pairs = [f"{path.name} = {twin.name}" for path, twin in shared(used[one], used[other]) if path != twin]
        what = "pictures of the one split are copies of pictures of the other"
        findings += finding("leak-image", f"{one}/{other}", pairs, what)
    return findings


def _similar(target: Path, others: Sequence[Path]) -> Path | None:
    try:
        own = thumbnail(open_square(target, RESOLUTION))
        return next((path for path in others if nearly_the_same(own, thumbnail(open_square(path, RESOLUTION)))), None)
    except ImageFileError:  # reported as a damaged picture
        return None


def _damage(path: Path) -> str | None:
    try:
        open_square(path, RESOLUTION)
    except ImageFileError as error:
        return str(error)
    return None


def _count_findings(layout: ReferenceLayout, split: str, rows: int, groups: int) -> list[Finding]:
    wanted = layout.splits[split]
    findings = []
    if rows != wanted.rows:
        message = f"{rows:,} targets, the paper reports {wanted.rows:,}"
        findings.append(Finding("warning", "count", split, message))
    if wanted.identities is not None and groups != wanted.identities:
        # The paper's people come from face embeddings, which the lists do not carry, so this proves nothing.
        message = f"{groups:,} identity groups in the lists, the paper reports {wanted.identities:,} people"
        findings.append(Finding("note", "identities", split, message))
    return findings
