"""What one degradation is drawn from: a row of a paper's text as a checked, frozen object."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from refbfr_core.degradation.stages import INTERPOLATIONS
from refbfr_core.errors import ConfigError, unknown_name

Range = tuple[float, float]


@dataclass(frozen=True)
class DegradationRanges:
    """What a degradation is drawn from. Ranges are (low, high), drawn uniformly.

    Attributes:
        name: preset name.
        resolution: side in pixels the ranges are meant for; other sizes work, the blur is then relatively stronger or
            weaker.
        blur_sigma: width of the Gaussian in pixels at full resolution.
        scale: down-sampling factor r; below 1 the "low" resolution is larger.
        noise_sigma: delta in grey levels (0 … 255).
        jpeg_quality: q; the drawn float loses its fraction.
        source: where the numbers come from and what had to be chosen.
        isotropic_probability: chance of a round kernel; otherwise sigma_x, sigma_y and the angle are drawn
            independently.
        kernel_size: side of the kernel in pixels, odd.
        poisson_probability: chance of shot noise instead of Gaussian noise.
        stage_probability: chance that each of the four stages takes place at all, independently (1 = always).
        down_interpolation, up_interpolation: "bilinear", "bicubic", "area" or "nearest".

    Raises:
        ConfigError: a range that is not (low, high) or leaves what makes sense.
        UnknownNameError: no such interpolation.
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
            "blur_sigma": (0.0, 1000.0),
            "scale": (0.1, 1000.0),
            "noise_sigma": (0.0, 255.0),
            "jpeg_quality": (0.0, 100.0),
        }
        for field, (least, most) in limits.items():
            low, high = getattr(self, field)
            if not least <= low <= high <= most:
                raise ConfigError(
                    f"degradation {self.name!r}: {field} must be (low, high) with "
                    f"{least:g} <= low <= high <= {most:g}, got {(low, high)}"
                )
        for field in ("isotropic_probability", "poisson_probability", "stage_probability"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise ConfigError(f"degradation {self.name!r}: {field} must lie in [0, 1], got {getattr(self, field)}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(
                f"degradation {self.name!r}: kernel_size must be odd and positive, got {self.kernel_size}"
            )
        for field in ("down_interpolation", "up_interpolation"):
            if getattr(self, field) not in INTERPOLATIONS:
                raise unknown_name(f"{field} of degradation {self.name!r}", getattr(self, field), INTERPOLATIONS)

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
        return asdict(self)


def _span(pair: tuple[float, float] | list[int]) -> str:
    low, high = pair
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
