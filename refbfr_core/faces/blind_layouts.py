"""Test sets of blind restoration: which there are, how their pictures lie on disk, and where their owners publish them.

*Blind* means without references: a low-quality picture, and for the synthetic sets the clean one. Plain frozen records;
no picture ships here and nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.errors import unknown_name
from refbfr_core.faces.reference_layouts import Source

NOT_STATED = "not stated"


@dataclass(frozen=True)
class BlindLayout:
    """A folder of aligned low-quality faces, with or without the clean ones.

    Attributes
    ----------
    name, title : the short name `open_blind_dataset` takes, and the name in the papers.
    images : how many pictures the papers count.
    lq_folders : where the low-quality pictures may lie, relative to the dataset's folder, as patterns without regard to
        case; the first that is there and holds pictures is taken. Empty where they are made here.
    truth_folders : likewise for the clean ones; empty where nobody has them.
    preset : degradation the low-quality pictures are made with, where they are made here.
    third : which third of the pictures, sorted by name, belongs to the set; None for all.
    sources : where to get the pieces. notes : what else a reader of a table should know.
    public : whether the owners publish the pictures at all.
    """

    name: str
    title: str
    images: int
    lq_folders: tuple[str, ...] = ()
    truth_folders: tuple[str, ...] = ()
    preset: str | None = None
    third: int | None = None
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    public: bool = True

    @property
    def has_truth(self) -> bool:
        """Whether there are clean pictures to compare with."""
        return bool(self.truth_folders)

    def how_to_get(self) -> str:
        """Where every piece comes from, as text of several lines."""
        lines = [f"{self.title} ({self.name})"]
        for source in self.sources:
            lines += [f"  {source.what}", f"    from {source.page}", f"    licence: {source.licence}"]
            lines.append(f"    place: {source.place}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def hint(self) -> str:
        """One sentence for error messages: whom to ask for the pieces, and where they belong."""
        pieces = "; ".join(
            f"{source.what}: {source.page} (licence: {source.licence}), to be put in {source.place}"
            for source in self.sources
        )
        if not self.public:
            return f"The owners do not publish it: {pieces}."
        return f"The owners publish {pieces}. `refbfr datasets list` shows all."


_VQFR = "https://github.com/TencentARC/VQFR#straight_ruler-evaluation"
_GFPGAN = "https://xinntao.github.io/projects/gfpgan"
_CODEFORMER = "https://shangchenzhou.com/projects/CodeFormer"
_CELEBA_LICENCE = (
    f"{NOT_STATED} for the test set; its photographs are CelebA-HQ's, for non-commercial research only (agreement of "
    "CelebAMask-HQ)"
)
_CELEBA_TRUTH = ("celeba_512_validation", "celeba*hq*", "*hq*", "*gt*", "*truth*")
_DEEPER = "; or that in the only folder of ROOT"


def _dr2(severity: str, third: int) -> BlindLayout:
    return BlindLayout(
        name=f"celeba-test-dr2-{severity}",
        title=f"CelebA-Test, DR2 split {severity}",
        images=1_000,
        truth_folders=_CELEBA_TRUTH,
        preset=f"ldbfr-{severity}",
        third=third,
        sources=(
            Source(
                "3,000 clean pictures (the HQ part of CelebA-Test)",
                _VQFR,
                _CELEBA_LICENCE,
                f"ROOT/celeba_512_validation{_DEEPER}",
            ),
        ),
        notes=(
            "no degraded pictures of DR2 (https://github.com/Kaldwin0106/DR2_Drgradation_Remover) or LD-BFR were found "
            f"and no list of which are {severity}: here they are the {('first', 'second', 'last')[third]} third of "
            f"the names in order, degraded with the preset ldbfr-{severity} from a seed that the name decides",
        ),
    )


_ALL = (
    BlindLayout(
        name="celeba-test",
        title="CelebA-Test",
        images=3_000,
        lq_folders=("celeba_512_validation_lq", "celeba*lq*", "*lq*", "*input*"),
        truth_folders=_CELEBA_TRUTH,
        sources=(
            Source(
                "3,000 degraded and clean pictures",
                _VQFR,
                _CELEBA_LICENCE,
                "ROOT/celeba_512_validation_lq and ROOT/celeba_512_validation",
            ),
        ),
        notes=(
            "other papers degraded the same clean pictures in their own way (DAEFR: self_celeba_512_v2); rows on those "
            "cannot be compared",
        ),
    ),
    *(_dr2(severity, third) for third, severity in enumerate(("mild", "medium", "severe"))),
    BlindLayout(
        name="lfw-test",
        title="LFW-Test",
        images=1_711,
        lq_folders=("lfw_cropped_faces", "*lfw*", "cropped_faces", "."),
        sources=(
            Source("1,711 real low-quality faces", f"{_VQFR} or {_GFPGAN}", NOT_STATED, "ROOT/lfw_cropped_faces"),
        ),
        notes=(
            "RestoreFormer's copy (https://github.com/wzhouxiff/RestoreFormer) is aligned anew with dlib: other "
            "pictures under the same name",
        ),
    ),
    BlindLayout(
        name="wider-test",
        title="WIDER-Test",
        images=970,
        lq_folders=("Wider-Test", "*wider*", "."),
        sources=(Source("970 real low-quality faces", _CODEFORMER, NOT_STATED, "ROOT/Wider-Test"),),
    ),
    BlindLayout(
        name="celebchild",
        title="CelebChild-Test",
        images=180,
        lq_folders=("CelebChild-Test", "*child*", "."),
        sources=(
            Source("180 real pictures of children", f"{_GFPGAN} or {_VQFR}", NOT_STATED, "ROOT/CelebChild-Test"),
        ),
    ),
    BlindLayout(
        name="webphoto",
        title="WebPhoto-Test",
        images=407,
        lq_folders=("WebPhoto-Test", "*webphoto*", "."),
        sources=(Source("407 real low-quality faces", f"{_GFPGAN} or {_VQFR}", NOT_STATED, "ROOT/WebPhoto-Test"),),
        notes=("the README of VQFR counts 469, DiffMAC and others 407",),
    ),
    BlindLayout(
        name="hfw",
        title="HFW",
        images=1_200,
        lq_folders=("HFW", "*hfw*", "."),
        sources=(
            Source(
                "1,200 faces of heterogeneous domains",
                "https://arxiv.org/abs/2403.10098",
                NOT_STATED,
                "ROOT/HFW",
            ),
        ),
        notes=("collected by the authors of DiffMAC; no page to get it from was found, so its column stays empty",),
        public=False,
    ),
)

BLIND_LAYOUTS: Mapping[str, BlindLayout] = MappingProxyType({layout.name: layout for layout in _ALL})
"""Every known test set without references, by name; read-only."""


def blind_layout(name: str) -> BlindLayout:
    """The layout called ``name``.

    Raises
    ------
    UnknownNameError : no such dataset; the message gives the nearest name.
    """
    if name not in BLIND_LAYOUTS:
        raise unknown_name("blind test set", name, BLIND_LAYOUTS)
    return BLIND_LAYOUTS[name]
