"""Which systems have seen which test set, or people on it, in training: what a fair table must say beside its numbers.

A test picture that was trained on is remembered, not restored. Nothing on disk shows this; it is in what the authors
write about their training. Only what was read there stands here, each entry with the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class TrainingOverlap:
    """One source of contamination of a test set.

    Attributes
    ----------
    systems : names as in the papers' tables; empty where it concerns any network trained on `trained_on`.
    trained_on : the training data.
    why : how they overlap with the test set.
    source : the page this was read on.
    """

    systems: tuple[str, ...]
    trained_on: str
    why: str
    source: str

    def __str__(self) -> str:
        who = ", ".join(self.systems) or "any network"
        return f"{who}, trained on {self.trained_on}: {self.why} ({self.source})"


_FFHQ_WHY = "FFHQ's 70,000 photographs hold every FFHQ-Ref target, and nothing is said of leaving its test people out"


def _ffhq(systems: tuple[str, ...], source: str) -> TrainingOverlap:
    return TrainingOverlap(systems, "FFHQ", _FFHQ_WHY, source)


_FFHQ_REF = (
    TrainingOverlap(
        ("CodeFormer", "VQFR", "DAEFR", "DMDNet"),
        "FFHQ",
        "the authors of FFHQ-Ref state that these were trained on all of FFHQ or on another split than theirs, "
        "which is by person",
        "ReF-LDM, section 5.3.1",
    ),
    _ffhq(("CodeFormer",), "https://github.com/sczhou/CodeFormer/blob/master/docs/train.md"),
    _ffhq(("VQFR",), "https://github.com/TencentARC/VQFR"),
    _ffhq(("GFPGAN",), "https://github.com/TencentARC/GFPGAN"),
    _ffhq(("DAEFR",), "https://github.com/LIAGM/DAEFR"),
    _ffhq(("RestoreFormer", "RestoreFormer++"), "https://github.com/wzhouxiff/RestoreFormerPlusPlus"),
    _ffhq(("GPEN",), "https://github.com/yangxy/GPEN"),
    _ffhq(("PMRF",), "https://github.com/ohayonguy/PMRF"),
    _ffhq(("DifFace",), "https://github.com/zsyOAOA/DifFace"),
    TrainingOverlap(
        ("PGDiff", "PDGrad"),
        "FFHQ",
        "both guide the diffusion network of DifFace",
        "https://github.com/pq-yang/PGDiff; PDGrad, section 4.1",
    ),
    TrainingOverlap(
        ("DiffBIR",), "FFHQ", "its first stage for faces is DifFace's SwinIR", "https://github.com/XPixelGroup/DiffBIR"
    ),
    _ffhq(("LD-BFR",), "LD-BFR, section 4.1"),
)

_CELEBA = (
    TrainingOverlap(
        (),
        "CelebA-HQ or CelebAMask-HQ",
        "the 3,000 test pictures are taken from CelebA-HQ's 30,000; that includes face parsers trained on "
        "CelebAMask-HQ, such as the one that fLPIPS takes its mask from",
        "ReF-LDM, section 5.1.2",
    ),
)

_CELEBREF = (
    TrainingOverlap(
        ("ASFFNet",),
        "CelebRef-HQ",
        "the public 512 px network was trained again on this dataset; which people were held out is not stated",
        "https://github.com/csxmli2016/ASFFNet512",
    ),
    TrainingOverlap(
        ("DMDNet",),
        "CelebRef-HQ",
        "its authors made the dataset to train and to evaluate; which people were held out is not stated",
        "https://github.com/csxmli2016/DMDNet; ReF-LDM, section 4.4",
    ),
)

TRAINING_OVERLAPS: Mapping[str, tuple[TrainingOverlap, ...]] = MappingProxyType(
    {"ffhq-ref": _FFHQ_REF, "celeba-test-ref": _CELEBA, "celeba-test": _CELEBA, "celebref-hq": _CELEBREF}
)
"""Dataset -> what is known to have been trained on it or on what it was taken from; read-only. (A dataset that is not
here is one of which nothing was found, not one that is clean.)"""


def training_overlaps(dataset: str) -> tuple[TrainingOverlap, ...]:
    """What is known of a dataset, by the name of its layout or of a table's column: "ffhq-ref-severe" as "ffhq-ref"."""
    names = [name for name in TRAINING_OVERLAPS if dataset == name or dataset.startswith(f"{name}-")]
    return TRAINING_OVERLAPS[max(names, key=len)] if names else ()
