"""What the engine of a table calls: a method with fixed settings and a digest of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.benchmark.rows import fingerprint
from refbfr_core.benchmark.tables.systems import NEEDS, NO_REFERENCES
from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.images import check_images, check_references

Run = Callable[[Tensor, Tensor | None, list[int], list[str]], Tensor]
"""(lq (B, 3, H, W), references (B, R, 3, H, W) or None, B seeds, B names) to pictures (B, 3, H, W), all in [0, 1]."""


def digest_of(parts: Mapping[str, object]) -> str:
    """Sixteen hexadecimal digits of named parts: networks count with all their weights, anything else as its text."""
    whole = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        text = fingerprint(part) if isinstance(part, nn.Module) else str(part)
        whole.update(f"{name} {text}\n".encode())
    return whole.hexdigest()[:16]


class Restorer:
    """A method with its settings, ready to restore.

    Args:
        name: the system or variant.
        run: see `Run`.
        settings: plain JSON values of everything that decides a result besides pictures, seeds and weights.
        digest: 12 or more hexadecimal digits of all weights (for a folder, of its files), or a function that returns
            them when they are first asked for.
        references: "none" (it is never given any), "takes" or "needs".

    Raises:
        ConfigError: settings that are no plain JSON values.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        settings: Mapping[str, Any],
        digest: str | Callable[[], str],
        *,
        references: str = NO_REFERENCES,
    ) -> None:
        try:
            self._settings = json.dumps(dict(settings), allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"settings of {name} are no JSON values ({error}); pass numbers and text.") from error
        self.name, self.references = name, references
        self._run, self._digest = run, digest

    @property
    def settings(self) -> dict[str, Any]:
        """A copy of the settings."""
        return json.loads(self._settings)

    @cached_property
    def digest(self) -> str:
        """Digits that change with any weight, or with any file of a folder."""
        return self._digest if isinstance(self._digest, str) else self._digest()

    def __call__(
        self, lq: Tensor, references: Tensor | None, seeds: Sequence[int], names: Sequence[str]
    ) -> Tensor:
        """Restores a batch.

        Args:
            lq: (B, 3, H, W) float32 RGB in [0, 1].
            references: (B, R, 3, H, W) likewise, or None.
            seeds: of each picture's noise. names: of the items.

        Returns:
            (B, 3, H, W) float32 in [0, 1] on the device of `lq`.

        Raises:
            ImageContractError: pictures that break the contract, going in or coming out. ConfigError: other numbers of
                seeds or names, or references that the method cannot take or lacks. Others: as the method.
        """
        check_images(lq, "lq")
        if len(seeds) != len(lq) or len(names) != len(lq):
            raise ConfigError(f"{len(seeds)} seeds and {len(names)} names came for {len(lq)} pictures; pass one each.")
        if references is None and self.references == NEEDS:
            raise ConfigError(f"{self.name} cannot do without references; take another arm.")
        if references is not None:
            if self.references == NO_REFERENCES:
                raise ConfigError(f"{self.name} takes no references; pass None.")
            references = check_references(references, None, lq)[0]
        with torch.no_grad():
            made = self._run(lq, references, [int(seed) for seed in seeds], list(names))
        check_images(made, f"the result of {self.name}")
        if made.shape != lq.shape:
            raise ImageContractError(
                f"{self.name} returned {tuple(made.shape)} for pictures of {tuple(lq.shape)}, expected the same shape: "
                "resize inside the method."
            )
        return made.to(lq.device)

    def __repr__(self) -> str:
        return f"Restorer({self.name!r}, {self._settings})"
