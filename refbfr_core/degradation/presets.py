"""The degradation ranges of the four papers as named presets, and their toy twins for drawn faces of 128 px.

One row of a paper's text is one preset. Where a paper leaves something open, its ``source`` says what was chosen.

How a toy twin is made: the blur width is measured in pixels and shrinks with the picture (sigma x 128/512). The kernel
keeps its size, so a toy blur is not cut off as the papers' widest ones are (sigma 16 in a 41 px kernel). Down-sampling
by a literal quarter would leave low-resolution pictures of the papers' own pixel width, and drawn faces carry their
identity in coarser structure than photographs, so they would hardly suffer: the ReF-LDM, LD-BFR and DiffMAC twins
deliberately go further than that and leave about half the papers' pixels. PDGrad's r of 24-40 is so severe that its
twin keeps the literal quarter. Noise and JPEG quality are in grey levels and do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from refbfr_core.degradation.ranges import DegradationRanges, Range


def toy_twin(paper: DegradationRanges, scale: Range, remark: str) -> DegradationRanges:
    """The twin of a 512 px preset for pictures of 128 px: sigma x 1/4, the given r, all else as in the paper."""
    low, high = paper.blur_sigma
    return replace(
        paper,
        name=f"toy-{paper.name}",
        resolution=128,
        blur_sigma=(low / 4, high / 4),
        scale=scale,
        source=f"Toy twin of {paper.name}: sigma x 1/4, {remark}. The paper's: {paper.source}",
    )


_REFLDM_TRAIN = DegradationRanges(
    name="refldm-train",
    resolution=512,
    blur_sigma=(0, 16),
    scale=(1, 32),
    noise_sigma=(0, 20),
    jpeg_quality=(30, 100),
    source="ReF-LDM, training; paper and released configuration agree.",
)
_REFLDM_MODERATE = replace(
    _REFLDM_TRAIN,
    name="refldm-moderate",
    blur_sigma=(0, 8),
    scale=(1, 8),
    noise_sigma=(0, 15),
    jpeg_quality=(60, 100),
    source="ReF-LDM, FFHQ-Ref-Moderate.",
)
_REFLDM_SEVERE = replace(
    _REFLDM_TRAIN,
    name="refldm-severe",
    blur_sigma=(8, 16),
    scale=(8, 32),
    source="ReF-LDM, FFHQ-Ref-Severe.",
)
_PDGRAD = DegradationRanges(
    name="pdgrad",
    resolution=512,
    blur_sigma=(0.1, 15),
    scale=(24, 40),
    noise_sigma=(0, 20),
    jpeg_quality=(30, 100),
    isotropic_probability=1.0,
    source="PDGrad, section 4.1.2, eq. 27. "
    "Chosen here: 41 px kernel, always round (eq. 27 has a single sigma), real-valued r, bilinear, Gaussian noise.",
)
_LDBFR_TRAIN = DegradationRanges(
    name="ldbfr-train",
    resolution=512,
    blur_sigma=(0.2, 10),
    scale=(1, 8),
    noise_sigma=(0, 15),
    jpeg_quality=(60, 100),
    kernel_size=19,
    poisson_probability=0.5,
    down_interpolation="bicubic",
    source="LD-BFR, section 4.1, eq. 7; its released configuration has sigma 0.1-10, r 0.8-8, delta 0-20 instead. "
    "Chosen here: 19 px kernel (released: 19-20, an even one shifts by half a pixel), Poisson half of the time.",
)
_LDBFR_MILD = replace(
    _LDBFR_TRAIN,
    name="ldbfr-mild",
    blur_sigma=(3, 5),
    scale=(4, 4),
    noise_sigma=(5, 20),
    jpeg_quality=(60, 80),
    kernel_size=41,
    source="LD-BFR, section 4.1, test split mild. Chosen here: 41 px kernel, Poisson half of the time.",
)
_LDBFR_MEDIUM = replace(
    _LDBFR_MILD,
    name="ldbfr-medium",
    blur_sigma=(5, 7),
    scale=(8, 8),
    noise_sigma=(15, 40),
    jpeg_quality=(40, 60),
    source="LD-BFR, section 4.1, test split medium. Chosen here: 41 px kernel, Poisson half of the time.",
)
_LDBFR_SEVERE = replace(
    _LDBFR_MILD,
    name="ldbfr-severe",
    blur_sigma=(7, 9),
    scale=(16, 16),
    noise_sigma=(25, 50),
    jpeg_quality=(30, 40),
    source="LD-BFR, section 4.1, test split severe. Chosen here: 41 px kernel, Poisson half of the time.",
)
_DIFFMAC = DegradationRanges(
    name="diffmac",
    resolution=512,
    blur_sigma=(1, 15),
    scale=(0.8, 8),
    noise_sigma=(0, 20),
    jpeg_quality=(60, 100),
    stage_probability=0.5,
    source="DiffMAC, section 4.1.1, eq. 14, operations included at random. "
    "Chosen here: each with probability 1/2, the blur range read as sigma, 41 px kernel, round half of the time.",
)

_HARDER = "r harder than the literal quarter"
_LITERAL = "r x 1/4, which leaves the paper's own 12-21 px"

_ALL = (
    _REFLDM_TRAIN,
    _REFLDM_MODERATE,
    _REFLDM_SEVERE,
    _PDGRAD,
    _LDBFR_TRAIN,
    _LDBFR_MILD,
    _LDBFR_MEDIUM,
    _LDBFR_SEVERE,
    _DIFFMAC,
    toy_twin(_REFLDM_TRAIN, (1, 16), _HARDER),
    toy_twin(_REFLDM_MODERATE, (1, 4), _HARDER),
    toy_twin(_REFLDM_SEVERE, (6, 16), _HARDER),
    toy_twin(_PDGRAD, (6, 10), _LITERAL),
    toy_twin(_LDBFR_TRAIN, (1, 4), _HARDER),
    toy_twin(_LDBFR_MILD, (2, 2), _HARDER),
    toy_twin(_LDBFR_MEDIUM, (4, 4), _HARDER),
    toy_twin(_LDBFR_SEVERE, (8, 8), _HARDER),
    toy_twin(_DIFFMAC, (0.8, 4), _HARDER),
)

PRESETS: Mapping[str, DegradationRanges] = MappingProxyType({ranges.name: ranges for ranges in _ALL})
"""Every named preset; read-only."""
