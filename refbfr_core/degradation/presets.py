"""The degradation ranges of the four papers as named presets, and their toy twins for drawn faces of 128 px.

One row of a paper's text is one :class:`DegradationRanges`.  Where a paper leaves something open the ``source`` says what was chosen.

How a toy twin is made: widths that are measured in pixels shrink with the picture (blur sigma x 128/512).  Down-sampling by a literal
quarter would leave low-resolution pictures of the papers' own pixel width, and drawn faces carry their identity in coarser structure
than photographs, so they would hardly suffer.  The ReF-LDM, LD-BFR and DiffMAC twins therefore divide r by about 2 only, which leaves
half the papers' pixels; PDGrad's r of 24-40 is so severe that its twin keeps the literal quarter.  Noise and JPEG quality are in grey
levels and do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from refbfr_core.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True)
class DegradationRanges:
    """What a degradation is drawn from.  Ranges are (low, high), drawn uniformly.

    Attributes:
        name: preset name.
        resolution: side in pixels the ranges are meant for; other sizes work, the blur is then relatively stronger or weaker.
        blur_sigma: width of the Gaussian in pixels at full resolution.
        scale: down-sampling factor r; below 1 the "low" resolution is larger.
        noise_sigma: delta in grey levels (0 … 255).
        jpeg_quality: q; the drawn float loses its fraction.
        source: where the numbers come from and what had to be chosen.
        isotropic_probability: chance of a round kernel; otherwise sigma_x, sigma_y and the angle are drawn independently.
        kernel_size: side of the kernel in pixels, odd.
        poisson_probability: chance of shot noise instead of Gaussian noise.
        stage_probability: chance that each of the four stages takes place at all, independently (1 = always).
        down_interpolation, up_interpolation: "bilinear", "bicubic", "area" or "nearest".
    """

    name: str
    resolution: int
    blur_sigma: Range
    scale: Range
    noise_sigma: Range
    jpeg_quality: Range
    source: str
    isotropic_probability: float = 0.5
    kernel_size: int = 41
    poisson_probability: float = 0.0
    stage_probability: float = 1.0
    down_interpolation: str = "bilinear"
    up_interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        limits = {
            "blur_sigma": (0.0, float("inf")),
            "scale": (1e-3, float("inf")),
            "noise_sigma": (0.0, float("inf")),
            "jpeg_quality": (0.0, 100.0),
        }
        for field, (least, most) in limits.items():
            low, high = getattr(self, field)
            if not least <= low <= high <= most:
                raise ConfigError(
                    f"degradation {self.name!r}: {field} must be (low, high) with {least:g} <= low <= high <= {most:g}, got {(low, high)}"
                )
        for field in ("isotropic_probability", "poisson_probability", "stage_probability"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ConfigError(f"degradation {self.name!r}: {field} must lie in [0, 1], got {getattr(self, field)}")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"degradation {self.name!r}: kernel_size must be odd, got {self.kernel_size}")

    def describe(self) -> str:
        """The ranges as a few lines of plain text, with the size the low-resolution picture will have."""
        widths = [max(1, int(self.resolution / scale)) for scale in (self.scale[1], self.scale[0])]
        often = "" if self.stage_probability == 1 else f"  (each stage with probability {self.stage_probability:g})"
        noise = {0.0: "Gaussian", 1.0: "Poisson"}.get(
            self.poisson_probability, f"Poisson with probability {self.poisson_probability:g}, else Gaussian"
        )
        lines = [
            f"{self.name}: for pictures of {self.resolution} px{often}",
            f"  1 blur        sigma {_span(self.blur_sigma)} px, {self.kernel_size} px kernel, "
            f"round with probability {self.isotropic_probability:g}",
            f"  2 downsample  r {_span(self.scale)}, {self.down_interpolation}: {_span(widths)} px wide",
            f"  3 noise       delta {_span(self.noise_sigma)} grey levels, {noise}",
            f"  4 JPEG        quality {_span(self.jpeg_quality)}",
            f"  5 upsample    {self.up_interpolation}, back to the size it came with",
            f"  source: {self.source}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for a table or for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _span(pair) -> str:
    low, high = pair
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


_REFLDM = "ReF-LDM"
_TOY = "Toy twin: sigma x 1/4, r deliberately about twice the literal quarter (see the module text)."

_ALL = (
    DegradationRanges(
        "refldm-train", 512, (0, 16), (1, 32), (0, 20), (30, 100), f"{_REFLDM}, released training configuration."
    ),
    DegradationRanges(
        "refldm-moderate",
        512,
        (0, 8),
        (1, 8),
        (0, 15),
        (60, 100),
        f"{_REFLDM}, FFHQ-Ref-Moderate (section 4 and released folder names).",
    ),
    DegradationRanges(
        "refldm-severe",
        512,
        (8, 16),
        (8, 32),
        (0, 20),
        (30, 100),
        f"{_REFLDM}, FFHQ-Ref-Severe (section 4 and released folder names).",
    ),
    DegradationRanges(
        "pdgrad",
        512,
        (0.1, 15),
        (24, 40),
        (0, 20),
        (30, 100),
        "PDGrad, section 4.1, eq. 27. Chosen: 41 px kernel, always round (eq. 27 has one sigma), real-valued r, bilinear.",
        isotropic_probability=1.0,
    ),
    DegradationRanges(
        "ldbfr-train",
        512,
        (0.2, 10),
        (1, 8),
        (0, 15),
        (60, 100),
        "LD-BFR, section 4.1, eq. 7 (the released configuration differs: sigma 0.1-10, r 0.8-8, delta 0-20). "
        "Chosen: 19 px kernel (the release has 19-20; an even one shifts by half a pixel), Poisson half of the time.",
        kernel_size=19,
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "ldbfr-mild",
        512,
        (3, 5),
        (4, 4),
        (5, 20),
        (60, 80),
        "LD-BFR, test split mild. Chosen: 41 px kernel, Poisson half of the time.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "ldbfr-medium",
        512,
        (5, 7),
        (8, 8),
        (15, 40),
        (40, 60),
        "LD-BFR, test split medium. Chosen as for mild.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "ldbfr-severe",
        512,
        (7, 9),
        (16, 16),
        (25, 50),
        (30, 40),
        "LD-BFR, test split severe. Chosen as for mild.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "diffmac",
        512,
        (1, 15),
        (0.8, 8),
        (0, 20),
        (60, 100),
        "DiffMAC, eq. 14, 'operations randomly included'. Chosen: each stage with probability 1/2, 41 px kernel, round half of the time, bilinear.",
        stage_probability=0.5,
    ),
    DegradationRanges("toy-refldm-train", 128, (0, 4), (1, 16), (0, 20), (30, 100), f"{_TOY} Twin of refldm-train."),
    DegradationRanges(
        "toy-refldm-moderate", 128, (0, 2), (1, 4), (0, 15), (60, 100), f"{_TOY} Twin of refldm-moderate."
    ),
    DegradationRanges("toy-refldm-severe", 128, (2, 4), (6, 16), (0, 20), (30, 100), f"{_TOY} Twin of refldm-severe."),
    DegradationRanges(
        "toy-pdgrad",
        128,
        (0.025, 3.75),
        (6, 10),
        (0, 20),
        (30, 100),
        "Toy twin of pdgrad: sigma and r x 1/4, so that the low-resolution picture has the paper's own 12-21 px.",
        isotropic_probability=1.0,
    ),
    DegradationRanges(
        "toy-ldbfr-train",
        128,
        (0.05, 2.5),
        (1, 4),
        (0, 15),
        (60, 100),
        f"{_TOY} Twin of ldbfr-train.",
        kernel_size=19,
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "toy-ldbfr-mild",
        128,
        (0.75, 1.25),
        (2, 2),
        (5, 20),
        (60, 80),
        f"{_TOY} Twin of ldbfr-mild.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "toy-ldbfr-medium",
        128,
        (1.25, 1.75),
        (4, 4),
        (15, 40),
        (40, 60),
        f"{_TOY} Twin of ldbfr-medium.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "toy-ldbfr-severe",
        128,
        (1.75, 2.25),
        (8, 8),
        (25, 50),
        (30, 40),
        f"{_TOY} Twin of ldbfr-severe.",
        poisson_probability=0.5,
        down_interpolation="bicubic",
    ),
    DegradationRanges(
        "toy-diffmac",
        128,
        (0.25, 3.75),
        (0.8, 4),
        (0, 20),
        (60, 100),
        f"{_TOY} Twin of diffmac.",
        stage_probability=0.5,
    ),
)

PRESETS: Mapping[str, DegradationRanges] = MappingProxyType({ranges.name: ranges for ranges in _ALL})
"""Every named preset; read-only."""
