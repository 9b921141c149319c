"""Which of the T training timesteps a sampler visits.

A network trained on 1000 noise levels is sampled at 5 to 250 of them. The papers (and the code bases they stand on)
pick them by different rules, and results are only comparable when the rule is named:

================  ======================================  ======================================================
name              rule, for T = 1000                      used by
================  ======================================  ======================================================
``trailing``      999, 999-c, ... with c = floor(T/S)     ReF-LDM, single images
``uniform``       1, 1+c, 1+2c, ... (run downwards)       ReF-LDM's data set script, LD-BFR (latent diffusion's DDIM)
``leading``       0, c, 2c, ...                           diffusers' own default
``adm``           S points from 0 to 999, both kept       PDGrad, PGDiff ("250"); DiffMAC's spaced sampler
``adm-ddim``      0, k, 2k, ... giving exactly S points   PGDiff, DifFace ("ddim250", "ddpm250")
================  ======================================  ======================================================

Every function returns a list of zero-based timesteps in the order of execution: descending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from types import MappingProxyType

from refbfr_core.errors import ConfigError, unknown_name

__all__ = [
    "PAPER_SPACINGS",
    "SPACINGS",
    "adm_ddim_timesteps",
    "adm_timesteps",
    "leading_timesteps",
    "make_timesteps",
    "previous_timesteps",
    "start_from",
    "trailing_timesteps",
    "uniform_timesteps",
]


def trailing_timesteps(num_train: int, num_inference: int) -> list[int]:
    """ReF-LDM's spacing: walk down from the noisiest step in strides of c = floor(num_train / num_inference).

    When ``num_inference`` does not divide ``num_train`` the authors' rule yields *more* steps than asked for (30 gives
    31, 7 gives 8); this is kept, because dropping one would change the stride or the end point.

    Args:
        num_train: T, training timesteps (papers: 1000).
        num_inference: S, between 1 and T.

    Returns:
        descending timesteps, the first is T - 1, all inside 0 ... T - 1.

    Raises:
        ConfigError: S outside 1 ... T.
    """
    stride = _stride(num_train, num_inference)
    return [t - 1 for t in range(num_train, 0, -stride)]


def uniform_timesteps(num_train: int, num_inference: int) -> list[int]:
    """Latent diffusion's DDIM spacing: 1, 1 + c, 1 + 2c, ... with c = floor(num_train / num_inference), descending.

    Used by LD-BFR and by ReF-LDM's data set script. Like ``trailing_timesteps`` it can return more than S steps.

    Raises:
        ConfigError: S outside 1 ... T, or a rule that leaves the range: where c divides T - 1 (for T = 1000: S = 3, 9,
            27, 37, 101 to 111, 251 to 333, and all above 500) it asks for timestep T, which no network has seen.
    """
    stride = _stride(num_train, num_inference)
    timesteps = [t + 1 for t in range(0, num_train, stride)]
    if timesteps[-1] >= num_train:
        raise ConfigError(
            f"the 'uniform' rule with {num_inference} steps asks for timestep {timesteps[-1]}, but the last of "
            f"{num_train} is {num_train - 1} (the authors' sampler fails here too). Use another number of steps "
            "(4, 5, 10, 50, 100 and 200 work for 1000) or spacing='trailing'."
        )
    return timesteps[::-1]


def leading_timesteps(num_train: int, num_inference: int, offset: int = 0) -> list[int]:
    """diffusers' "leading" spacing: offset, offset + c, ... exactly S values, descending.

    Args:
        offset: diffusers' ``steps_offset``.

    Raises:
        ConfigError: S outside 1 ... T, or an offset that pushes a timestep outside 0 ... T - 1.
    """
    stride = _stride(num_train, num_inference)
    timesteps = [offset + stride * i for i in range(num_inference)]
    if timesteps[0] < 0 or timesteps[-1] >= num_train:
        raise ConfigError(
            f"'leading' with {num_inference} steps and offset {offset} runs from {timesteps[0]} to {timesteps[-1]}; "
            f"timesteps are 0..{num_train - 1}. Use a smaller offset or fewer steps."
        )
    return timesteps[::-1]


def adm_timesteps(num_train: int, num_inference: int | Sequence[int]) -> list[int]:
    """The improved-DDPM / guided-diffusion spacing: S points from first to last timestep, both kept, descending.

    The stride is a fraction and is *accumulated* in floating point before rounding half to even. That is not
    ``round(linspace(...))``: 278 of the counts 1 ... 1000 differ by one somewhere (21, 23, 31, ...).

    Args:
        num_train: T.
        num_inference: S; or several counts, then T is cut into that many nearly equal sections (the first ones take
            the remainder) and each is spaced on its own.

    Raises:
        ConfigError: no section, or a section asked for more timesteps than it has or for fewer than one.
    """
    sections = list(num_inference) if isinstance(num_inference, Sequence) else [num_inference]
    if not sections:
        raise ConfigError("no section counts given; expected a number of steps (250) or a list ([10, 15]).")
    size, remainder = divmod(num_train, len(sections))
    timesteps: list[int] = []
    first = 0
    for i, count in enumerate(sections):
        length = size + (1 if i < remainder else 0)
        _check_counts(length, count)
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            timesteps.append(first + round(position))
            position += stride
        first += length
    return timesteps[::-1]


def adm_ddim_timesteps(num_train: int, num_inference: int) -> list[int]:
    """Guided diffusion's "ddimN" spacing (PGDiff spells it "ddpmN"): 0, k, 2k, ... below T giving exactly S values.

    Raises:
        ConfigError: no whole stride k gives exactly S values (for T = 1000 only 62 counts are legal); the message
            names the nearest legal counts.
    """
    _check_counts(num_train, num_inference)
    # range(0, T, k) has ceil(T / k) entries; the smallest k wins. k = T (a single step at t = 0) is no sampler.
    strides = {-(-num_train // k): k for k in range(num_train - 1, 0, -1)}
    if num_inference not in strides:
        below = max((n for n in strides if n < num_inference), default=None)
        above = min((n for n in strides if n > num_inference), default=None)
        raise ConfigError(
            f"no whole stride through {num_train} timesteps gives exactly {num_inference} steps; the nearest counts "
            f"that work are {' and '.join(str(n) for n in (below, above) if n is not None)}. Use one of them, or "
            "spacing='adm'."
        )
    return list(range(0, num_train, strides[num_inference]))[::-1]


def start_from(timesteps: Sequence[int], start: int) -> list[int]:
    """Keep the timesteps not above ``start``: sampling that begins part-way from a noised estimate.

    PDGrad's tau = 700 counts from 1, so it starts at index 699: ``start_from(timesteps, 699)``.

    Raises:
        ConfigError: nothing is left.
    """
    kept = [t for t in timesteps if t <= start]
    if not kept:
        raise ConfigError(
            f"no timestep is at or below {start}; the lowest is {min(timesteps, default=None)}. Use a later start."
        )
    return kept


def previous_timesteps(timesteps: Sequence[int]) -> list[int | None]:
    """For each timestep in order of execution the one it steps *to*: the next list element, None after the last.

    Taking it from the list (as latent diffusion does), not as t - floor(T/S) (as diffusers does), keeps the chain
    connected when S does not divide T.
    """
    return [*timesteps[1:], None]


SPACINGS: Mapping[str, Callable[[int, int], list[int]]] = MappingProxyType(
    {
        "trailing": trailing_timesteps,
        "uniform": uniform_timesteps,
        "leading": leading_timesteps,
        "adm": adm_timesteps,
        "adm-ddim": adm_ddim_timesteps,
    }
)

PAPER_SPACINGS: Mapping[str, str] = MappingProxyType(
    {"refldm": "trailing", "pdgrad": "adm", "ldbfr": "uniform", "diffmac": "adm"}
)
"""The spacing of each paper's headline sampler, as a key of ``SPACINGS``."""


def make_timesteps(spacing: str, num_train: int, num_inference: int) -> list[int]:
    """Timesteps by the name of the rule, descending (see the module's table).

    Raises:
        UnknownNameError: no such spacing; the message says the nearest name.
        ConfigError: a number of steps that the rule cannot give.
    """
    if spacing not in SPACINGS:
        raise unknown_name("timestep spacing", spacing, SPACINGS)
    return SPACINGS[spacing](num_train, num_inference)


def _check_counts(num_train: int, num_inference: int) -> None:
    for name, value in (("training timesteps", num_train), ("inference steps", num_inference)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ConfigError(f"the number of {name} is {value!r}; expected a whole number, such as 50.")
    if not 1 <= num_inference <= num_train:
        raise ConfigError(
            f"{num_inference} inference steps asked of {num_train} training timesteps; expected between 1 and "
            f"{num_train}."
        )


def _stride(num_train: int, num_inference: int) -> int:
    _check_counts(num_train, num_inference)
    return num_train // num_inference
