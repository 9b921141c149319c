"""Every error this package raises on purpose.

Each class also derives from the built-in error a caller would expect, so `except ValueError` keeps working for people
who never heard of this package. A message says what came, what is expected and the one-line cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefbfrError(Exception):
    """Base of all deliberate errors; catching it catches nothing that is a plain bug."""


class ImageContractError(RefbfrError, ValueError):
    """A tensor does not keep the image contract: float32 RGB (B, 3, H, W) in [0, 1]."""


class ImageFileError(RefbfrError, OSError):
    """An image file is missing, empty, truncated, damaged or not an image."""


class OutputError(RefbfrError, OSError):
    """A file cannot be written: read-only place, missing rights, a folder in the way.

    Nothing half-written stays behind.
    """


class DiskFullError(OutputError):
    """The disk, or the quota on it, is full. Nothing half-written stays behind."""


class UnknownNameError(RefbfrError, KeyError):
    """A name that is not in a registry; build it with `unknown_name`."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would wrap the sentence in quotes and escape its newlines.
        return str(self.args[0]) if self.args else ""


class WeightsError(RefbfrError, RuntimeError):
    """Weights are missing, truncated, altered, or do not fit the network they are meant for."""


class CacheError(RefbfrError, RuntimeError):
    """A cache (reference features, files on disk) is unfilled, damaged or belongs to something else."""


class ConfigError(RefbfrError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class MissingExtraError(RefbfrError, ImportError):
    """An optional library is not installed; build it with `missing_extra`."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a `name` that is not among the `known` ones; the caller raises it.

    Parameters
    ----------
    kind : what was being looked up, in words ("metric", "degradation preset").
    name : what the caller asked for.
    known : every name that would have worked.

    The message names the nearest known name, if one is near, and then lists them all.
    """
    names = sorted(known)
    by_folded = {candidate.casefold(): candidate for candidate in names}
    nearest = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.5)
    hint = f" Did you mean {by_folded[nearest[0]]!r}?" if nearest else ""
    listing = ", ".join(names) if names else "none is registered"
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Known: {listing}.")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Return the error for an optional `package` that is not installed; the caller raises it `from` the ImportError.

    `extra` is the name of the group in pyproject.toml that brings the package, `purpose` what it was needed for ("face
    detection").
    """
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed. Install it with: pip install "
        f"'refbfr_core[{extra}]'",
        name=package,
    )
