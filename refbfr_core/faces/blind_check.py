"""Looking a test set of blind restoration over: is it whole, is it the papers', and can its answers have been seen?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from refbfr_core.errors import ImageFileError
from refbfr_core.faces.blind_dataset import SUFFIXES, BlindDataset, open_blind_dataset
from refbfr_core.faces.blind_layouts import BlindLayout, blind_layout
from refbfr_core.faces.content_check import copies, shared
from refbfr_core.faces.reference_dataset import RESOLUTION, open_reference_dataset, open_square
from refbfr_core.faces.reference_report import DatasetReport, Finding, SplitSummary, finding
from refbfr_core.faces.reference_rows import DatasetError, picture_key
from refbfr_core.faces.training_overlaps import training_overlaps

SPLIT = "test"


def validate_blind(
    name: str,
    root: str | Path,
    *,
    images: str | Path | None = None,
    pictures: bool = False,
    training: str | Path | None = None,
) -> DatasetReport:
    """Look a test set on disk over; what is wrong with the data is reported, never raised.

    Counts and pairs the pictures, reads their sizes, finds pictures that are there twice, low-quality pictures that
    are their own clean ones, and test pictures among training pictures; says what is known to have been trained on it.

    Parameters
    ----------
    name, root, images : as for `open_blind_dataset`.
    pictures : also decode every picture, which finds truncated files but takes minutes.
    training : folder of photographs something was trained on; a test picture that lies there too is an error.

    Raises
    ------
    UnknownNameError : no such dataset.
    """
    layout, root = blind_layout(name), Path(root)
    notes = _notes(layout)
    try:
        data = open_blind_dataset(name, root, images=images)
    except DatasetError as error:
        piece = Finding("error", "missing-piece", SPLIT, str(error))
        return DatasetReport(layout.title, root, (), (piece, *notes))
    findings = [*_count_findings(data), *_pair_findings(data), *_size_findings(data), *_copy_findings(data)]
    if training is not None:
        findings += _training_findings(data, Path(training))
    if pictures:
        findings += _damage_findings(data)
    summary = SplitSummary(SPLIT, len(data), None, None)
    return DatasetReport(layout.title, root, (summary,), (*findings, *notes))


def overlap_findings(dataset: str) -> list[Finding]:
    """What is known to have been trained on a dataset, as notes; and that nothing is known, where nothing is."""
    overlaps = [Finding("note", "training-overlap", SPLIT, str(overlap)) for overlap in training_overlaps(dataset)]
    if overlaps:
        return overlaps
    message = "nothing was found about systems trained on these pictures; that is no proof that none was"
    return [Finding("note", "training-overlap", SPLIT, message)]


def training_leaks(
    name: str, root: str | Path, training: str | Path, *, images: str | Path | None = None
) -> list[Finding]:
    """Test targets of a dataset with references that lie, byte for byte, in a folder of training photographs."""
    try:
        data = open_reference_dataset(name, root, "test", images=images)
    except DatasetError:  # whoever asks has looked the dataset over and been told
        return []
    targets = [path for index in range(len(data)) if (path := data.files_of(index)[0]) is not None]
    return training_findings(targets, Path(training))


def training_findings(paths: Iterable[Path], folder: Path) -> list[Finding]:
    """Test pictures that lie, byte for byte, in a folder of training photographs or in a folder inside it."""
    if not folder.is_dir():
        return [Finding("error", "missing-piece", SPLIT, f"there is no folder {folder} of training photographs")]
    seen = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not seen:
        return [Finding("error", "missing-piece", SPLIT, f"no photograph in {folder} or below it")]
    own = [path.resolve() for path in paths]
    pairs = shared(own, [path.resolve() for path in seen])
    cases = [f"{one.name} = {other.name}" for one, other in pairs]
    found = finding("leak-image", SPLIT, cases, f"test pictures are among the training photographs of {folder}")
    checked = f"compared with {len(seen):,} training photographs in {folder}"
    return [*found, Finding("note", "training", SPLIT, checked)]


def _notes(layout: BlindLayout) -> list[Finding]:
    return [*(Finding("note", "remark", SPLIT, note) for note in layout.notes), *overlap_findings(layout.name)]


def _files(data: BlindDataset) -> list[Path]:
    return [path for one in data.pictures for path in (one.lq, one.truth) if path is not None]


def _count_findings(data: BlindDataset) -> list[Finding]:
    if len(data) == data.layout.images:
        return []
    message = f"{len(data):,} pictures, the papers count {data.layout.images:,}"
    return [Finding("warning", "count", SPLIT, message)]


def _pair_findings(data: BlindDataset) -> list[Finding]:
    """Names without one of their pictures, and names that are there in several formats."""
    findings = []
    if data.layout.lq_folders:
        absent = [one.name for one in data.pictures if one.lq is None]
        findings += finding("missing-file", SPLIT, absent, f"low-quality pictures are missing in {data.lq_folder}")
    if data.layout.has_truth:
        absent = [one.name for one in data.pictures if one.truth is None]
        findings += finding("missing-file", SPLIT, absent, f"clean pictures are missing in {data.truth_folder}")
    for folder in filter(None, (data.lq_folder, data.truth_folder)):
        twice = defaultdict(list)
        for path in folder.iterdir():
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                twice[picture_key(path.name)].append(path.name)
        cases = [" and ".join(sorted(names)) for names in twice.values() if len(names) > 1]
        what = f"names are there in several formats in {folder}; the first of {', '.join(SUFFIXES)} is taken"
        findings += finding("duplicate-name", SPLIT, sorted(cases), what, level="warning")
    return findings


def _size_findings(data: BlindDataset) -> list[Finding]:
    """Sizes from the files' headers; damaged headers are left to `_damage_findings` and to loading."""
    oblong, other = [], []
    for path in _files(data):
        size = _size(path)
        if size is None:
            continue
        if size[0] != size[1]:
            oblong.append(f"{path.name}: {size[0]}x{size[1]}")
        elif size[0] != RESOLUTION:
            other.append(f"{path.name}: {size[0]} px")
    message = f"pictures are not {RESOLUTION} px, as the papers' are, and will be resized"
    return [
        *finding("size", SPLIT, oblong, "pictures are not square, so they are not aligned faces"),
        *finding("size", SPLIT, other, message, level="warning"),
    ]


def _size(path: Path) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _copy_findings(data: BlindDataset) -> list[Finding]:
    """Degraded pictures that are the clean ones, and pictures that are there under several names."""
    given_away = [path.name for path, _ in shared(*_kinds(data))]
    doubled = [group for kind in _kinds(data) for group in copies(kind)]
    cases = [" = ".join(path.name for path in group) for group in doubled]
    what = "low-quality pictures are clean ones, byte for byte"
    return [
        *finding("same-file", SPLIT, given_away, what),
        *finding("duplicate-picture", SPLIT, cases, "groups of pictures are the same file under several names"),
    ]


def _kinds(data: BlindDataset) -> tuple[list[Path], list[Path]]:
    lq = [one.lq for one in data.pictures if one.lq is not None]
    return lq, [one.truth for one in data.pictures if one.truth is not None]


def _training_findings(data: BlindDataset, folder: Path) -> list[Finding]:
    return training_findings(_files(data), folder)


def _damage_findings(data: BlindDataset) -> list[Finding]:
    broken = []
    for path in _files(data):
        try:
            open_square(path, RESOLUTION)
        except ImageFileError as error:
            broken.append(str(error))
    return finding("damaged-picture", SPLIT, broken, "pictures cannot be used")
