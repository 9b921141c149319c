"""CelebRef-HQ on disk, and the pairs PDGrad (section 4.1.2) makes of it: one ground truth, one reference a person.

The dataset (Li et al., DMDNet, TPAMI 2022) is one folder a person with that person's pictures in it, aligned, 512 px:

    ROOT/00005/0.png, ROOT/00005/1.png, …, ROOT/00022/0.png, …

Nothing is fetched; `refbfr datasets list` says where its owners publish it. That layout is the one of the examples in
their repository; the archive itself was not at hand when this was written. Suffixes and the names of folders and files
are therefore taken as they come.

**Pairs.** PDGrad takes two random pictures of each of the 1,005 people and restores the one with the other as its
reference. The authors' draw is not published, so ours is recorded: `celebref_pairs` draws with a seed, `write_pairs`
keeps names and SHA-256, `read_pairs` and `verify_pairs` bring back exactly that. Table 1 of the article uses the 662
pairs on which the landmarks of ASFFNet and DMDNet work; that list is not published either, so Table 1 cannot be
repeated on the same pictures. Tables 2 to 6 use all 1,005.

A person's pair depends on the seed, the folder's name and the names and contents of the files in it, on nothing else:
not on other people, the order in which a file system lists, or the machine. It comes from the raw stream of a bit
generator, which NumPy promises not to change, and not from a distribution, of which it makes no such promise.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from refbfr_core.errors import ConfigError
from refbfr_core.faces.reference_dataset import RESOLUTION, ReferenceDataset
from refbfr_core.faces.reference_layouts import REFERENCE_LAYOUTS
from refbfr_core.faces.reference_rows import DatasetError, ReferenceRow, checked_name
from refbfr_core.files import file_sha256, write_text

NAME = "celebref-hq"
PAIRS_FILE = "pairs.csv"
"""Where `refbfr datasets check` looks for recorded pairs, in the dataset's folder."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Pair:
    """Two pictures of one person: what is restored, and what it is restored with.

    `seed`: of the draw. `identity`: the person's folder. `truth`, `reference`: files relative to the folder of the
    people, with forward slashes. `truth_sha256`, `reference_sha256`: of the files as they lie on disk.
    """

    seed: int
    identity: str
    truth: str
    reference: str
    truth_sha256: str
    reference_sha256: str


def people_folder(root: str | Path) -> Path:
    """The folder that holds the people's folders: `root`, or the only folder in it, as archives often have one.

    Raises
    ------
    DatasetError : there is no folder `root`, or none with pictures in it.
    """
    root = Path(root)
    hint = REFERENCE_LAYOUTS[NAME].hint()
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}. {hint}")
    place = root
    for _ in range(3):
        folders = _folders(place)
        if any(_pictures(folder) for folder in folders):
            return place
        if len(folders) != 1:
            break
        place = folders[0]
    raise DatasetError(
        f"CelebRef-HQ is incomplete: no folder in {root} has pictures ({', '.join(_SUFFIXES)}) in it; expected one "
        f"folder a person, such as {root / '00005' / '0.png'}. {hint}"
    )


def people_on_disk(root: str | Path) -> dict[str, tuple[str, ...]]:
    """The people by the names of their folders, and each one's pictures relative to `people_folder`, all sorted.

    A folder without pictures is a person with none. Raises `DatasetError` as `people_folder` does.
    """
    return {
        folder.name: tuple(f"{folder.name}/{name}" for name in _pictures(folder))
        for folder in _folders(people_folder(root))
    }


def celebref_pairs(root: str | Path, seed: int = 0) -> list[Pair]:
    """One pair for every person, in the order of the folders' names (PDGrad, section 4.1.2).

    The two pictures are the first two of a shuffle; a copy of the ground truth, byte for byte, is passed over as a
    reference, because it would give the answer away.

    Raises
    ------
    DatasetError : the dataset is missing, or a person has fewer than two different pictures. ConfigError : a negative
    seed.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; expected 0 or more.")
    place = people_folder(root)
    pairs, alone = [], []
    for identity, names in people_on_disk(root).items():
        pair = _pair(place, identity, names, seed)
        if pair is None:
            alone.append(identity)
        else:
            pairs.append(pair)
    if alone:
        raise DatasetError(
            f"{len(alone)} people in {place} have fewer than two different pictures ({', '.join(alone[:5])}), and a "
            f"pair needs two. Unpack the dataset again, or remove their folders; see `refbfr datasets check {NAME}`."
        )
    return pairs


def write_pairs(path: str | Path, pairs: Sequence[Pair]) -> Path:
    """Records pairs as a CSV file, one row a person, columns as the fields of `Pair`; returns `path`.

    Raises
    ------
    ConfigError : no pairs, or of several seeds. OutputError, DiskFullError : the place cannot be written to.
    """
    if not pairs or len({pair.seed for pair in pairs}) > 1:
        raise ConfigError(f"{len(pairs)} pairs of {len({p.seed for p in pairs})} seeds; expected one draw, one seed.")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns())
    writer.writerows(astuple(pair) for pair in pairs)
    write_text(path, text.getvalue())
    return Path(path)


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs that `write_pairs` recorded.

    Raises
    ------
    DatasetError : the file is missing or not such a record; the message names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; draw pairs with `refbfr datasets pairs`.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); write it again with `refbfr datasets pairs`.") from error
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
        if tuple(header) != _columns():
            raise DatasetError(f"{path} has the columns {', '.join(header)}; expected {', '.join(_columns())}.")
        pairs = [_read_pair(path, reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}; write it again.") from error
    seeds, people = {pair.seed for pair in pairs}, {pair.identity for pair in pairs}
    if len(seeds) != 1 or len(people) != len(pairs):
        raise DatasetError(
            f"{path} has {len(pairs)} rows for {len(people)} people and {len(seeds)} seeds; expected one row a person "
            "and one seed."
        )
    return pairs


def recorded_pairs(root: str | Path) -> Path | None:
    """The record of pairs in the dataset's folder, beside the people or above them, or None."""
    places = (Path(root), people_folder(root))
    return next((place / PAIRS_FILE for place in places if (place / PAIRS_FILE).is_file()), None)


def verify_pairs(pairs: Sequence[Pair], root: str | Path) -> None:
    """Compares every file of the pairs with the SHA-256 recorded for it.

    Raises
    ------
    DatasetError : files are missing or differ; the message counts them and names the first.
    """
    place = people_folder(root)
    missing, changed = [], []
    for pair in pairs:
        for name, digest in ((pair.truth, pair.truth_sha256), (pair.reference, pair.reference_sha256)):
            if not (place / name).is_file():
                missing.append(name)
            elif file_sha256(place / name) != digest:
                changed.append(name)
    if missing or changed:
        raise DatasetError(
            f"the recorded pairs are not those on disk in {place}: {len(missing)} files are missing and "
            f"{len(changed)} differ from their SHA-256 ({', '.join((missing + changed)[:3])}). Use the dataset they "
            "were drawn from, or draw new ones with `refbfr datasets pairs`."
        )


def open_celebref(
    root: str | Path,
    *,
    pairs: Sequence[Pair] | str | Path | None = None,
    pair_seed: int = 0,
    degradation: str | None = "pdgrad",
    resolution: int = RESOLUTION,
    seed: int = 0,
) -> ReferenceDataset:
    """The pairs as a dataset: an item is a ground truth, its degraded picture and one reference, in [0, 1].

    Parameters
    ----------
    root : folder the dataset was unpacked into.
    pairs : recorded pairs, or the file they are in, which are verified; None draws them with `pair_seed`.
    degradation : a preset of `refbfr_core.degradation.PRESETS` ("pdgrad" is the article's eq. 27), applied to the
        ground truth with `seed`; None gives items without a degraded picture.
    resolution : side of the pictures given out.

    Raises
    ------
    DatasetError : the dataset is missing or not the one the pairs were drawn from. UnknownNameError : no such preset.
    ConfigError : an impossible size or seed.
    """
    from refbfr_core.degradation import PRESETS
    from refbfr_core.errors import unknown_name

    if degradation is not None and degradation not in PRESETS:
        raise unknown_name("degradation of CelebRef-HQ", degradation, PRESETS)
    if resolution < 1:
        raise ConfigError(f"resolution={resolution} must be at least 1.")
    place = people_folder(root)
    if pairs is None:
        chosen = celebref_pairs(root, pair_seed)
    else:
        chosen = read_pairs(pairs) if isinstance(pairs, (str, Path)) else list(pairs)
        verify_pairs(chosen, root)
    rows = [ReferenceRow(line, pair.truth, (pair.reference,)) for line, pair in enumerate(chosen, start=2)]
    finders = (ExactFinder(place), ExactFinder(place), None)
    return ReferenceDataset(REFERENCE_LAYOUTS[NAME], place, "test", rows, finders, degradation, resolution, 1, seed)


class ExactFinder:
    """Finds pictures by their whole relative name only.

    File names repeat from person to person, so that a search by the last part would give somebody else's picture.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = [root]

    def find(self, name: str) -> Path | None:
        """The file called ``name``, or None."""
        path = self.root / name
        return path if path.is_file() else None

    def places(self) -> str:
        """Where it looks, for messages."""
        return str(self.root)


def _pair(place: Path, identity: str, names: Sequence[str], seed: int) -> Pair | None:
    """The pair of one person, or None where all the pictures are copies of one."""
    if len(names) < 2:
        return None
    truth, *others = (names[i] for i in _shuffle(len(names), identity, seed))
    digest = file_sha256(place / truth)
    for other in others:
        if (other_digest := file_sha256(place / other)) != digest:
            return Pair(seed, identity, truth, other, digest, other_digest)
    return None


def _shuffle(count: int, identity: str, seed: int) -> list[int]:
    words = np.frombuffer(hashlib.sha256(identity.encode()).digest(), dtype="<u4")
    stream = np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()]))
    return np.argsort(stream.random_raw(count), kind="stable").tolist()


def _folders(place: Path) -> list[Path]:
    """Folders in a folder, sorted by name, without hidden ones and those that archivers leave behind."""
    found = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    return sorted(found, key=lambda path: path.name)


def _pictures(folder: Path) -> list[str]:
    """Names of the pictures in a folder, sorted; hidden files (as some systems write beside a picture) are none."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _columns() -> tuple[str, ...]:
    return tuple(field.name for field in fields(Pair))


def _read_pair(path: Path, line: int, cells: list[str]) -> Pair:
    try:
        seed, identity, truth, reference, *digests = cells
        if len(digests) != 2 or any(len(digest) != 64 or set(digest) - set("0123456789abcdef") for digest in digests):
            raise ValueError("expected two SHA-256 of 64 hexadecimal digits")
        if not seed.isdecimal():
            raise ValueError(f"the seed {seed!r} is no number")
        if truth == reference or digests[0] == digests[1]:
            raise ValueError("a picture is its own reference")
        return Pair(int(seed), identity, checked_name(truth), checked_name(reference), *digests)
    except ValueError as error:  # DatasetError is one
        raise DatasetError(f"{path}, line {line}: {error}. Write it again with `refbfr datasets pairs`.") from error
