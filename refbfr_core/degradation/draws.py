"""Drawing the parameters of one degradation, and the record that keeps them.

The draw is separate from the application, so what happened to a picture is a small JSON object that can be printed,
put in a table, stored beside the result and replayed exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from refbfr_core.degradation.ranges import DegradationRanges
from refbfr_core.errors import ConfigError

_MAY_BE_NONE = ("sigma_x", "sigma_y", "scale", "jpeg_quality_drawn", "jpeg_quality")
_NUMBERS = (*_MAY_BE_NONE, "seed", "kernel_size", "rotation", "noise_sigma", "noise_seed")


@dataclass(frozen=True)
class DegradationRecord:
    """Everything that was drawn for one picture.  ``None`` means that the stage did not take place.

    Attributes:
        preset: name of the ranges it was drawn from.
        seed: the picture's own seed; the same ranges and seed give the same record.
        kernel_size, sigma_x, sigma_y, rotation: the blur kernel in pixels and radians; ``sigma_x`` is None without
            blur.
        isotropic: whether a round kernel was drawn.
        scale: down-sampling factor r (None: the size stays).
        down_interpolation, up_interpolation: how the size changes.
        noise: "gaussian" or "poisson" (None: no noise).
        noise_sigma: delta in grey levels.
        noise_seed: seed of the noise array, so that the noise does not depend on anything else that was drawn.
        jpeg_quality_drawn: q as drawn, a float (None: no JPEG).
        jpeg_quality: its integer part, which the coder gets.
    """

    preset: str
    seed: int
    kernel_size: int
    sigma_x: float | None
    sigma_y: float | None
    rotation: float
    isotropic: bool
    scale: float | None
    down_interpolation: str
    up_interpolation: str
    noise: str | None
    noise_sigma: float
    noise_seed: int
    jpeg_quality_drawn: float | None
    jpeg_quality: int | None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"degradation record: {name} must be a finite number, got {value!r}")
        if (self.sigma_x is None) != (self.sigma_y is None):
            raise ConfigError(
                f"sigma_x and sigma_y must be both numbers or both None, got {self.sigma_x} and {self.sigma_y}"
            )
        if self.scale is not None and self.scale < 0.1:
            raise ConfigError(f"scale must be at least 0.1 (ten times as large) or None, got {self.scale}")
        if self.noise_sigma < 0:
            raise ConfigError(f"noise_sigma must be at least 0 grey levels, got {self.noise_sigma}")
        if self.noise not in (None, "gaussian", "poisson"):
            raise ConfigError(f"noise must be 'gaussian', 'poisson' or None, got {self.noise!r}")
        if self.jpeg_quality is not None and not 0 <= self.jpeg_quality <= 100:
            raise ConfigError(f"jpeg_quality must be an integer in 0 … 100 or None, got {self.jpeg_quality}")

    def to_dict(self) -> dict[str, object]:
        """Plain values; a list of these makes a table."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON; floats keep every digit, so the replay is exact."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> DegradationRecord:
        """The record behind :meth:`to_dict`.

        Raises:
            ConfigError: keys are missing or unknown; a record is never completed by guesses.
        """
        known = {field.name for field in fields(cls)}
        missing, unknown = known - set(values), set(values) - known
        if missing or unknown:
            raise ConfigError(
                f"not a degradation record: missing {sorted(missing)}, unknown {sorted(unknown)}; "
                "pass what DegradationRecord.to_dict() gave"
            )
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, text: str) -> DegradationRecord:
        """The record behind :meth:`to_json`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"not a degradation record: {error}; expected one line written by DegradationRecord.to_json()"
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(f"not a degradation record: expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def describe(self) -> str:
        """One sentence for a caption: what happened to this picture, in order."""
        steps = []
        if self.sigma_x is not None:
            width = (
                f"{self.sigma_x:.2f}"
                if self.isotropic
                else f"{self.sigma_x:.2f} x {self.sigma_y:.2f} at {np.degrees(self.rotation):.0f} deg"
            )
            steps.append(f"blur sigma {width} px")
        if self.scale is not None:
            steps.append(f"{self.down_interpolation} down {self.scale:.2f}x")
        if self.noise is not None:
            steps.append(f"{self.noise.capitalize()} noise {self.noise_sigma:.1f}/255")
        if self.jpeg_quality is not None:
            steps.append(f"JPEG {self.jpeg_quality}")
        if self.scale is not None:
            steps.append(f"{self.up_interpolation} up")
        return f"{self.preset}, seed {self.seed}: {', '.join(steps) if steps else 'left as it is'}"


def image_seeds(seed: int, count: int) -> list[int]:
    """One seed for each picture of a batch: picture i gets a hash of (seed, i).

    Because the pair is hashed, seeds 0, 1, 2 … give unrelated batches (with seed + i they would be the same pictures'
    draws shifted by one), and picture i of a batch is repeated alone by passing its entry as ``seeds=[…]``.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an integer >= 0, got {seed!r}")
    return [
        int(np.random.SeedSequence([int(seed), index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        for index in range(count)
    ]


def draw(ranges: DegradationRanges, seed: int) -> DegradationRecord:
    """Draw one degradation; depends on ``ranges`` and ``seed`` only.

    Every number is consumed whether it is used or not, so two presets that differ in one range agree in all others.

    Args:
        ranges: what to draw from.
        seed: integer >= 0, any size.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an integer >= 0, got {seed!r}")
    # MT19937 behind RandomState: the one NumPy stream that is guaranteed never to change.
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(int(seed))))
    happens = stream.uniform(size=4) < ranges.stage_probability
    isotropic = bool(stream.uniform() < ranges.isotropic_probability)
    sigma_x, second_sigma = (float(value) for value in stream.uniform(*ranges.blur_sigma, size=2))
    angle = float(stream.uniform(-np.pi, np.pi))
    scale = float(stream.uniform(*ranges.scale))
    noise_sigma = float(stream.uniform(*ranges.noise_sigma))
    noise = "poisson" if stream.uniform() < ranges.poisson_probability else "gaussian"
    quality = float(stream.uniform(*ranges.jpeg_quality))
    noise_seed = int(stream.randint(0, 2**32, dtype=np.uint64))
    blurred, resized, noisy, coded = (bool(value) for value in happens)
    return DegradationRecord(
        preset=ranges.name,
        seed=int(seed),
        kernel_size=ranges.kernel_size,
        sigma_x=sigma_x if blurred else None,
        sigma_y=(sigma_x if isotropic else second_sigma) if blurred else None,
        rotation=angle if blurred and not isotropic else 0.0,
        isotropic=isotropic,
        scale=scale if resized else None,
        down_interpolation=ranges.down_interpolation,
        up_interpolation=ranges.up_interpolation,
        noise=noise if noisy else None,
        noise_sigma=noise_sigma if noisy else 0.0,
        noise_seed=noise_seed,
        jpeg_quality_drawn=quality if coded else None,
        jpeg_quality=int(quality) if coded else None,
    )
