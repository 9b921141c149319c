"""Two gradients that disagree: PDGrad's projection and cap (eq. 20 to 26), and PCGrad for comparison.

One of the two gradients is the *pivot*: it passes through unchanged. The *other* is added to it. When they conflict
(their dot product is negative), the other first loses the part that points against the pivot (projection), and then
may be no longer than the pivot (the cap k). At the low level the pivot comes from the coarse picture y_c and the other
from the reference y_r (eq. 20); at the high level it is the other way round (eq. 23).

Three facts that follow from the equations, and that the tests hold the code to:

* ``g . pivot >= ||pivot||^2``: the pivot's own loss is never worked against, in any mode but "sum" and "other".
* A common factor on both gradients passes through (homogeneous of degree 1), so that no epsilon is needed, and none is
  used: a conflict implies that neither gradient is zero.
* The cap belongs to the conflict. An aligned other gradient is added whole, however long it is; so the result jumps
  where the dot product passes zero exactly when the other gradient is longer than the pivot there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from refbfr_core.diffusion.state import NonFiniteError
from refbfr_core.errors import ConfigError, unknown_name

__all__ = [
    "GRADIENT_MODES",
    "TOTAL_MODES",
    "GradientStats",
    "combine_gradients",
    "pcgrad",
    "total_gradient",
]

GRADIENT_MODES = ("sum", "project", "full", "pivot", "other")
"""modes of `combine_gradients`"""

TOTAL_MODES = ("A1", "sum", "A2", "project", "full", "A5", "c-only", "A6", "r-only")
"""modes of `total_gradient`; the names of PDGrad's ablations (tables 4 and 6) beside words that say the same"""

# Mode of the whole -> mode of the low level (pivot c) and of the high level (pivot r).
_LEVELS = {
    "A1": ("sum", "sum"),
    "sum": ("sum", "sum"),
    "A2": ("project", "project"),
    "project": ("project", "project"),
    "full": ("full", "full"),
    "A5": ("pivot", "other"),
    "c-only": ("pivot", "other"),
    "A6": ("other", "pivot"),
    "r-only": ("other", "pivot"),
}


@torch.no_grad()
def combine_gradients(
    pivot: Tensor, other: Tensor, mode: str = "full", *, cap: float = 1.0, return_stats: bool = False
) -> Tensor | tuple[Tensor, GradientStats]:
    """Combine the gradients of two losses, each sample for itself (PDGrad eq. 20 to 22; eq. 23 to 25 with the roles
    of c and r exchanged).

    Each sample is one vector: dot products and norms run over all axes but the first, never over the batch and never
    over single channels. They are computed in float64 (float32 on devices without it) after an exact rescaling by
    powers of two, so gradients of 1e-30 are combined like gradients of 1.

    Args:
        pivot: (B, ...) floating point; the gradient that passes through unchanged.
        other: (B, ...) of the same shape, type and device; the gradient that is adapted to it.
        mode: "full" (PDGrad: project, then cap, in case of conflict), "project" (ablation A2: no cap), "sum" (A1:
            plain sum), "pivot" or "other" (one of the two alone).
        cap: in mode "full", how many times the pivot's length the projected other gradient may have in case of
            conflict. 1 is eq. 22; infinity is mode "project", 0 drops a conflicting gradient.
        return_stats: also return a `GradientStats`.

    Returns:
        (B, ...) in the type of the inputs; with ``return_stats`` a pair of it and the statistics.

    Raises:
        UnknownNameError: another mode.
        ConfigError: inputs that are no tensors (B, ...) of one shape, floating type and device, or a negative cap.
        NonFiniteError: NaN or infinity in a gradient.
    """
    if mode not in GRADIENT_MODES:
        raise unknown_name("gradient mode", mode, GRADIENT_MODES)
    _check_pair({"pivot": pivot, "other": other})
    wide, stats = _combine(pivot, other, mode, _check_cap(cap))
    result = wide.to(pivot.dtype)
    return (result, stats) if return_stats else result


@torch.no_grad()
def total_gradient(
    low_c: Tensor,
    low_r: Tensor,
    high_c: Tensor,
    high_r: Tensor,
    mode: str = "full",
    *,
    cap: float = 1.0,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, tuple[GradientStats, GradientStats]]:
    """PDGrad's whole gradient (eq. 26): the combined low-level gradient plus the combined high-level one.

    At the low level (colours, edges, layout) the coarse picture is the pivot, at the high level (identity) the
    reference is.

    Args:
        low_c: (B, ...) gradient of L_low^c (eq. 12), from the coarse picture.
        low_r: (B, ...) gradient of L_low^r (eq. 15), from the reference.
        high_c: (B, ...) gradient of L_high^c (eq. 17).
        high_r: (B, ...) gradient of L_high^r (eq. 18).
        mode: "full"; "A1" or "sum"; "A2" or "project"; "A5" or "c-only" (low_c + high_c); "A6" or "r-only" (low_r +
            high_r). The ablations A3 and A4 leave out losses, not steps of this function: use "full" for them.
        cap: of both levels, as in `combine_gradients`.
        return_stats: also return the statistics of the low and of the high level. Their ``named`` makes names for a
            sampling trace: ``low.named("low_") | high.named("high_")``.

    Returns:
        (B, ...) in the type of the inputs; with ``return_stats`` a pair of it and (low, high).

    Raises:
        UnknownNameError: another mode.
        ConfigError, NonFiniteError: as `combine_gradients`.
    """
    if mode not in _LEVELS:
        raise unknown_name("gradient mode", mode, TOTAL_MODES)
    _check_pair({"low_c": low_c, "low_r": low_r, "high_c": high_c, "high_r": high_r})
    low_mode, high_mode = _LEVELS[mode]
    low, low_stats = _combine(low_c, low_r, low_mode, _check_cap(cap))
    high, high_stats = _combine(high_r, high_c, high_mode, cap)
    result = (low + high).to(low_c.dtype)
    return (result, (low_stats, high_stats)) if return_stats else result


@torch.no_grad()
def pcgrad(first: Tensor, second: Tensor) -> Tensor:
    """PCGrad for two gradients (Yu et al. 2020, algorithm 1): in case of conflict *each* loses what points against the
    other, and the remainders are added. Symmetric: there is no pivot and no cap.

    Args:
        first, second: (B, ...) floating point, of one shape, type and device.

    Returns:
        (B, ...) in the type of the inputs.

    Raises:
        ConfigError, NonFiniteError: as `combine_gradients`.
    """
    _check_pair({"first": first, "second": second})
    one, two = _Vector.of(first), _Vector.of(second)
    conflict = (one.dot(two) < 0)[:, None]
    each = [torch.where(conflict, a.minus_along(b), a.unit) * a.scale for a, b in ((one, two), (two, one))]
    return (each[0] + each[1]).to(first.dtype).view_as(first)


def _check_cap(cap: float) -> float:
    if not cap >= 0:
        raise ConfigError(f"cap is {cap}; expected 0 or more: 1 as in the paper, math.inf for no cap.")
    return float(cap)


def _combine(pivot: Tensor, other: Tensor, mode: str, cap: float) -> tuple[Tensor, GradientStats]:
    """The combination in the wide type, and its statistics."""
    p, o = _Vector.of(pivot), _Vector.of(other)
    scaled_dot = p.dot(o)
    conflict = scaled_dot < 0
    adapt = conflict if mode in ("project", "full") else torch.zeros_like(conflict)
    projected = torch.where(adapt[:, None], o.minus_along(p), o.unit) * o.scale
    projected_norm = _norm(projected)
    k = torch.ones_like(projected_norm)
    if mode == "full":
        # k = 1 also covers exact opposition, where nothing is left after the projection: no 0 / 0.
        # An infinite cap would make infinity times zero of a zero pivot; there is no conflict with one.
        limit = cap * p.norm if math.isfinite(cap) else torch.full_like(p.norm, math.inf)
        k = torch.where(conflict & (projected_norm > limit), limit / projected_norm, k)
    elif mode == "pivot":
        k = torch.zeros_like(k)
    result = k[:, None] * projected
    if mode != "other":
        result = p.unit * p.scale + result
    defined = (p.norm > 0) & (o.norm > 0)
    cosine = (scaled_dot / (_norm(p.unit) * _norm(o.unit))).clamp(-1, 1).where(defined, torch.nan)
    stats = GradientStats(
        dot=scaled_dot * p.scale.flatten() * o.scale.flatten(),
        cosine=cosine,
        angle=torch.rad2deg(torch.arccos(cosine)),
        conflict=conflict,
        k=k,
        pivot_norm=p.norm,
        other_norm=o.norm,
        projected_norm=projected_norm,
        result_norm=_norm(result),
    )
    return result.view_as(pivot), stats


def _norm(rows: Tensor) -> Tensor:
    """(B, N) -> (B,); scaled by the largest entry, so that squares neither vanish nor overflow."""
    largest = _power_of_two(rows)
    return torch.linalg.vector_norm(rows / largest, dim=1) * largest.flatten()


def _power_of_two(rows: Tensor) -> Tensor:
    """(B, N) -> (B, 1): the power of two just below each row's largest entry, 1 for a row of zeros.

    Dividing by it is exact, which keeps dot products that are exactly zero exactly zero.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    mantissa, _ = torch.frexp(largest)
    return torch.where(largest > 0, largest / (2 * mantissa), 1.0)


def _check_pair(gradients: dict[str, Tensor]) -> None:
    """Raise unless all are finite floating (B, ...) tensors of one shape, type and device."""
    for name, gradient in gradients.items():
        if not isinstance(gradient, Tensor) or not gradient.is_floating_point():
            came = str(gradient.dtype) if isinstance(gradient, Tensor) else type(gradient).__name__
            raise ConfigError(f"the gradient {name} is a {came}; expected a floating-point tensor (B, ...).")
        if gradient.ndim < 2 or gradient[:1].numel() == 0:
            raise ConfigError(
                f"the gradient {name} has shape {tuple(gradient.shape)}; expected (B, ...) with at least one sample of "
                "at least one number. Make a batch of a single vector with vector[None]."
            )
    (first_name, first), *others = gradients.items()
    for name, gradient in others:
        for what in ("shape", "dtype", "device"):
            a, b = getattr(first, what), getattr(gradient, what)
            if a != b:
                a, b = (tuple(a), tuple(b)) if what == "shape" else (a, b)
                raise ConfigError(
                    f"the gradient {first_name} has {what} {a}, {name} has {b}; expected the same. Take all gradients "
                    "with respect to the same tensor."
                )
    for name, gradient in gradients.items():
        finite = torch.isfinite(gradient).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"the gradient {name} holds NaN or infinity for image(s) {(~finite).nonzero().flatten().tolist()} of a "
                f"batch of {len(finite)}. Run the losses in float32, and check their inputs: the cosine of a zero "
                "vector has no gradient."
            )


@dataclass(frozen=True, eq=False)
class GradientStats:
    """What a combination did, each (B,) on the inputs' device: float64 (float32 on devices without it) or bool."""

    dot: Tensor
    """pivot . other"""
    cosine: Tensor
    """of the angle between them, in [-1, 1]; NaN when one of them is zero"""
    angle: Tensor
    """between them, in degrees, in [0, 180]; NaN when one of them is zero"""
    conflict: Tensor
    """whether dot < 0; decided before rescaling, so also right where ``dot`` itself is too small for its type"""
    k: Tensor
    """factor of the (projected) other gradient in the result, in [0, 1] (eq. 22, 25); 0 in mode "pivot" """
    pivot_norm: Tensor
    """length of the pivot"""
    other_norm: Tensor
    """length of the other gradient as it came"""
    projected_norm: Tensor
    """length of the other gradient after the projection, before the factor k; without projection as it came"""
    result_norm: Tensor
    """length of the result"""

    def named(self, prefix: str = "") -> dict[str, Tensor]:
        """Name -> (B,) number, for ``Correction(stats=...)`` and so for a sampling trace; ``conflict`` as 0 or 1."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["conflict"] = self.conflict.to(self.dot.dtype)
        return {f"{prefix}{name}": value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class _Vector:
    """Samples as rows with a largest entry in [1, 2), each times a power of two; products of such rows are safe."""

    unit: Tensor
    """(B, N)"""
    scale: Tensor
    """(B, 1)"""

    @classmethod
    def of(cls, gradient: Tensor) -> _Vector:
        """Split (B, ...) into rows and their powers of two."""
        wide = torch.float32 if gradient.device.type == "mps" else torch.float64
        rows = gradient.detach().to(wide).flatten(1)
        scale = _power_of_two(rows)
        return cls(rows / scale, scale)

    @property
    def norm(self) -> Tensor:
        """(B,) lengths."""
        return torch.linalg.vector_norm(self.unit, dim=1) * self.scale.flatten()

    def dot(self, other: _Vector) -> Tensor:
        """(B,) dot products of the scaled rows; their signs are those of the dot products."""
        return (self.unit * other.unit).sum(dim=1)

    def minus_along(self, other: _Vector) -> Tensor:
        """What is left of the scaled rows without their part along ``other`` (eq. 21, 24); unchanged where that is
        zero."""
        square = other.dot(other)
        share = torch.where(square > 0, self.dot(other) / torch.where(square > 0, square, 1.0), 0.0)
        return self.unit - share[:, None] * other.unit
