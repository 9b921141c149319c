"""Which reference datasets there are, how their releases are laid out on disk, and where their owners publish them.

Plain frozen records, so that reading this registry costs nothing. No photograph and no list of photographs ships here,
and nothing is ever fetched: the pages and licences below tell a reader where to get the pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from refbfr_core.errors import unknown_name


@dataclass(frozen=True)
class Source:
    """One piece of a dataset: what it is, the page of its owners, under which licence, and where it belongs."""

    what: str
    page: str
    licence: str
    place: str


@dataclass(frozen=True)
class SplitLayout:
    """One split.

    Attributes
    ----------
    mapping : CSV file with the columns gt_image and ref_image, relative to the dataset's folder.
    rows, identities : what the paper reports; None where it gives no number.
    listing : text file that names every image of the split, one a line; None where the release has none.
    """

    mapping: str
    rows: int
    identities: int | None = None
    listing: str | None = None


@dataclass(frozen=True)
class ReferenceLayout:
    """A dataset of faces with references of the same people.

    Attributes
    ----------
    name, title : the short name `open_reference_dataset` takes, and the name in the paper.
    splits : name -> `SplitLayout`.
    truth_folders : where the high-quality targets may lie, relative to the dataset's folder, tried in this order.
    reference_folders : likewise for references.
    truth_in_release : whether the targets come with the lists; otherwise they come with the references.
    lq_folders : degradation -> folders of the stored low-quality test images.
    sources : where to get the pieces.
    people_in_folders : there is one folder a person instead of lists (`refbfr_core.faces.celebref`); the mapping is
        then the record of pairs, which is written here and not by the owners.
    images : how many pictures there are in all, where the paper reports it.
    """

    name: str
    title: str
    splits: Mapping[str, SplitLayout]
    truth_folders: tuple[str, ...]
    reference_folders: tuple[str, ...]
    truth_in_release: bool = False
    lq_folders: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    sources: tuple[Source, ...] = ()
    people_in_folders: bool = False
    images: int | None = None

    def __reduce__(self) -> tuple:
        # Worker processes get a layout by name: its read-only mappings cannot be sent.
        return reference_layout, (self.name,)

    @property
    def default_split(self) -> str:
        """The split that is meant for measuring."""
        return "test"

    def how_to_get(self) -> str:
        """Where every piece comes from, as text of several lines."""
        lines = [f"{self.title} ({self.name})"]
        for source in self.sources:
            lines += [f"  {source.what}", f"    from {source.page}", f"    licence: {source.licence}"]
            lines.append(f"    place: {source.place}")
        return "\n".join(lines)

    def hint(self) -> str:
        """One sentence for error messages: whom to ask for the pieces."""
        pages = "; ".join(f"{source.what}: {source.page} ({source.licence})" for source in self.sources)
        return f"The owners publish {pages}. `refbfr datasets list` says where each piece belongs."


_RELEASE_PAGE = "https://github.com/ChiWeiHsiao/ref-ldm/releases/tag/0.1.0"
_RELEASE_LICENCE = "non-commercial research only (authors' README)"

_FFHQ_FOLDERS = ("images1024x1024", "images512x512", "images")
_CELEBA_FOLDERS = ("CelebAMask-HQ/CelebA-HQ-img", "CelebA-HQ-img")
_CELEBA_TEST = "celeba_test_images"


def _ffhq_split(name: str, rows: int, identities: int) -> SplitLayout:
    return SplitLayout(
        f"reference_mapping/{name}_references.csv", rows, identities, f"id_based_ffhq_split/{name}_image.txt"
    )


_FFHQ_REF = ReferenceLayout(
    name="ffhq-ref",
    title="FFHQ-Ref",
    # ReF-LDM, section 4.1: 20,405 images of 6,523 people.
    splits=MappingProxyType(
        {
            "train": _ffhq_split("train", 18_816, 6_073),
            "val": _ffhq_split("val", 732, 300),
            "test": _ffhq_split("test", 857, 150),
        }
    ),
    truth_folders=_FFHQ_FOLDERS,
    reference_folders=_FFHQ_FOLDERS,
    lq_folders=MappingProxyType(
        {"severe": ("test_images/severe_degrad",), "moderate": ("test_images/moderate_degrad",)}
    ),
    sources=(
        Source(
            "reference lists, identity-based splits and degraded test images (FFHQ-Ref)",
            _RELEASE_PAGE,
            _RELEASE_LICENCE,
            "ROOT/reference_mapping, ROOT/id_based_ffhq_split, ROOT/test_images",
        ),
        Source(
            "the photographs (FFHQ, aligned, 1024 px)",
            "https://github.com/NVlabs/ffhq-dataset",
            "CC BY-NC-SA 4.0 by NVIDIA for the set; each photo keeps the licence of its photographer",
            "ROOT/images1024x1024, flat or in folders of a thousand; or anywhere with --images",
        ),
    ),
)

_CELEBA_TEST_REF = ReferenceLayout(
    name="celeba-test-ref",
    title="CelebA-Test-Ref",
    splits=MappingProxyType({"test": SplitLayout("test_references.csv", 2_533)}),
    truth_folders=(f"{_CELEBA_TEST}/*hq*", f"{_CELEBA_TEST}/*gt*", _CELEBA_TEST, *_CELEBA_FOLDERS),
    reference_folders=_CELEBA_FOLDERS,
    truth_in_release=True,
    lq_folders=MappingProxyType({"release": (f"{_CELEBA_TEST}/*lq*", _CELEBA_TEST)}),
    sources=(
        Source(
            "reference list and test images, degraded and clean (CelebA-Test-Ref)",
            _RELEASE_PAGE,
            _RELEASE_LICENCE,
            "ROOT/test_references.csv, ROOT/celeba_test_images",
        ),
        Source(
            "the reference photographs (CelebAMask-HQ)",
            "https://github.com/switchablenorms/CelebAMask-HQ",
            "non-commercial research and education only (its README); the photos belong to their owners",
            "ROOT/CelebAMask-HQ/CelebA-HQ-img; or anywhere with --images",
        ),
    ),
)

_CELEBREF_HQ = ReferenceLayout(
    name="celebref-hq",
    title="CelebRef-HQ",
    # PDGrad, section 4.1.2: one pair a person.
    splits=MappingProxyType({"test": SplitLayout("pairs.csv", 1_005, 1_005)}),
    truth_folders=(".",),
    reference_folders=(".",),
    truth_in_release=True,
    sources=(
        Source(
            "the photographs (CelebRef-HQ, aligned, 512 px), one archive on Google Drive",
            "https://github.com/csxmli2016/DMDNet#celebref-hq-dataset",
            "non-commercial research only, no further copying or distribution (agreement in the owners' README)",
            "ROOT/<person>/<picture>, or that in the one folder of ROOT",
        ),
    ),
    people_in_folders=True,
    images=10_555,
)

REFERENCE_LAYOUTS: Mapping[str, ReferenceLayout] = MappingProxyType(
    {layout.name: layout for layout in (_FFHQ_REF, _CELEBA_TEST_REF, _CELEBREF_HQ)}
)
"""Every known dataset with references, by name; read-only."""


def reference_layout(name: str) -> ReferenceLayout:
    """The layout called ``name``.

    Raises
    ------
    UnknownNameError : no such dataset; the message gives the nearest name.
    """
    if name not in REFERENCE_LAYOUTS:
        raise unknown_name("reference dataset", name, REFERENCE_LAYOUTS)
    return REFERENCE_LAYOUTS[name]
