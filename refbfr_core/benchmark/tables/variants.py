"""What else the papers' tables print besides systems: variants of one that run here, and lines that are no method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from refbfr_core.benchmark.tables.systems import ALIASES, SYSTEMS
from refbfr_core.errors import unknown_name


@dataclass(frozen=True)
class Variant:
    """A line of an ablation that runs here as a system with other settings.

    Attributes:
        name: as in `refbfr_core.benchmark.published`.
        system: a key of `SYSTEMS`.
        options: keywords of `build_restorer`.
        what: one line.
    """

    name: str
    system: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _pdgrad(name: str, what: str, **options: Any) -> Variant:
    return Variant(name, "PDGrad", what, MappingProxyType(options))


def _diffmac(name: str, what: str, **options: Any) -> Variant:
    return Variant(name, "DiffMAC", what, MappingProxyType(options))


_LAMBDAS = ("0.1", "0.01", "0.001")
_VARIANTS = (
    _pdgrad("A1", "plain sum of the four gradients", mode="A1"),
    _pdgrad("A2", "projection without the cap", mode="A2"),
    _pdgrad("A3 (d_arc only)", "low-level distance in the embedder's features only", terms=("arc",)),
    _pdgrad("A4 (d_vgg only)", "low-level distance in VGG features only", terms=("vgg",)),
    _pdgrad("A5 (y_c only)", "the coarse picture alone guides", mode="A5"),
    _pdgrad("A6 (y_r only)", "the reference alone guides", mode="A6"),
    _diffmac("stage I", "the first diffusion alone", stage=1),
    _diffmac("2AdaIN", "two modulations without a bottleneck", second="2adain"),
    _diffmac("MIB w/o n|id", "a bottleneck without compensation, lambda_info 0.001", second="none-0.001"),
    *(_diffmac(f"{x}_id", f"identity compensation, lambda_info {x}", second=f"id-{x}") for x in _LAMBDAS),
    *(_diffmac(f"{x}_n", f"noise compensation, lambda_info {x}", second=f"noise-{x}") for x in _LAMBDAS),
    *(
        _diffmac(f"no1_{x}_n", f"noise compensation, lambda_info {x}, without stage I", second=f"no1-noise-{x}")
        for x in _LAMBDAS
    ),
)

VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _VARIANTS})
"""Every such line by its name in the tables; read-only. A5 and A6 have no printed number at all."""

_TRAINED = "a variant of ReF-LDM that its authors trained for an ablation and did not release"
_COMPARISON = "a comparison of two lines, in percent"
_SETTING = "a setting or a size"

NOT_SYSTEMS: Mapping[str, str] = MappingProxyType(
    {
        "GT": "the true picture scored against itself",
        "dataset": "a size of a data set",
        "LQ synthesis": "a range of the degradation",
        "protocol": "a size of the user study",
        "VQGAN and LDM training": _SETTING,
        "CacheKV ablation": _SETTING,
        "second best (method not named)": "a quoted number whose line the text does not name",
        "A2 vs A1 as printed": _COMPARISON,
        **dict.fromkeys(
            ("PDGrad vs A2", "PDGrad vs A3", "PDGrad vs A4", "PDGrad vs DMDNet", "PDGrad vs PGDiff"), _COMPARISON
        ),
        "PDGrad vs second best": _COMPARISON,
        **dict.fromkeys(("CacheKV", "Channel-concatenation", "Cross-attention", "Spatial-concatenation"), _TRAINED),
        **dict.fromkeys(("L_LDM", "L_LDM + L_ID", "L_LDM + L_timeID"), _TRAINED),
        **dict.fromkeys(("scale sqrt(alpha_bar_t)", "scale 1[t<100]", "scale 1[t<500]"), _TRAINED),
        **{f"max {count} refs": _TRAINED for count in (1, 3, 5, 8)},
        **{f"{count} refs": "ReF-LDM timed with so many references" for count in (1, 3, 5, 8)},
    }
)
"""Every other entry of the column "method", with what it is; read-only."""


def kind_of(method: str) -> str:
    """"system", "variant" or "other" for an entry of the column "method".

    Raises:
        UnknownNameError: an entry that no table has.
    """
    method = ALIASES.get(method, method)
    for kind, names in (("system", SYSTEMS), ("variant", VARIANTS), ("other", NOT_SYSTEMS)):
        if method in names:
            return kind
    raise unknown_name("method of the tables", method, [*SYSTEMS, *VARIANTS, *NOT_SYSTEMS])
