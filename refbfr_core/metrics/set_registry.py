"""The table of distances between sets of pictures; `refbfr_core.metrics.distances` measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.errors import RefbfrError
from refbfr_core.metrics.assets import missing_file, package_missing
from refbfr_core.metrics.inception import ASSET
from refbfr_core.metrics.textures import load_textures


@dataclass(frozen=True)
class SetMetric:
    """What a distance of sets means.

    Attributes:
        name: key in :data:`SET_REGISTRY`.
        kind: "frechet" or "kernel".
        range: lowest and highest possible value; the lower, the better.
        protocol: everything two people must agree on, besides the reference set and the numbers of pictures.
        needs: what has to be installed or at hand.
        missing: returns what is missing on this machine, or None.
        pictures: "any" or "drawn", as in `refbfr_core.metrics.Metric`.
    """

    name: str
    kind: str
    range: tuple[float, float]
    protocol: str
    needs: str
    missing: Callable[[], str | None]
    pictures: str
    direction: str = "lower"


def _inception_missing() -> str | None:
    return package_missing("torchmetrics")() or package_missing("pyiqa")() or missing_file(ASSET)


def _textures_missing() -> str | None:
    try:
        load_textures("cpu")
    except RefbfrError as error:
        return str(error)
    return package_missing("torchmetrics")()


_FRECHET = "Fréchet distance of Gaussians, float64"
_KERNEL = "squared MMD, kernel (x.y / D + 1)^3, mean over random subsets"
_INCEPTION = "Inception-v3 of 2015 (pytorch-fid), 2048 features, 8 bits, 299 px by resizing="
_TOY = "whitened texture statistics of the judge, 128 px; a stand-in on drawn faces that compares with no published "
_FILE = "torchmetrics, pyiqa, and pytorch-fid's Inception-v3 (96 MB)"
_SHIPPED = "torchmetrics, and the shipped judge and statistics"

_ALL = (
    SetMetric("fid", "frechet", (0.0, math.inf), f"{_FRECHET}; {_INCEPTION}", _FILE, _inception_missing, "any"),
    SetMetric("kid", "kernel", (-math.inf, math.inf), f"{_KERNEL}; {_INCEPTION}", _FILE, _inception_missing, "any"),
    SetMetric(
        "fid-toy", "frechet", (0.0, math.inf), f"{_FRECHET}; {_TOY}FID", _SHIPPED, _textures_missing, "drawn"
    ),
    SetMetric(
        "kid-toy", "kernel", (-math.inf, math.inf), f"{_KERNEL}; {_TOY}KID", _SHIPPED, _textures_missing, "drawn"
    ),
)  # fmt: skip

SET_REGISTRY: Mapping[str, SetMetric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every distance of sets by name; read-only."""
