"""Mean and covariance of the features of a set of pictures, and the files others publish theirs in."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.files import atomic_path
from refbfr_core.images import check_images
from refbfr_core.metrics.assets import read_checkpoint

_NAMES = (("mu", "sigma"), ("mean", "cov"), ("mean", "covariance"))
_CURE = "Name a file with a mean (D,) and a covariance (D, D), .npz or .pth, made with the same network."
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Fréchet distance knows about a set of pictures.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, with N - 1 in the denominator.
        count: pictures they were estimated from; None where the file does not say.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None

    def save(self, path: str | Path) -> Path:
        """Write an .npz file with `mu`, `sigma` and `count` and return its path.

        Raises:
            OutputError: the place cannot be written to. ConfigError: the name does not end in .npz.
        """
        final = Path(path)
        if final.suffix != ".npz":
            raise ConfigError(f"moments are written as .npz, got {final.name}.")
        with atomic_path(final) as temporary:
            np.savez(
                temporary, mu=self.mean.numpy(), sigma=self.covariance.numpy(), count=np.int64(self.count or 0)
            )
        return final


def read_moments(path: str | Path) -> Moments:
    """Mean and covariance from a file: .npz of pytorch-fid and clean-fid, or .pth of BasicSR and VQFR.

    Pickled objects are refused; of NumPy's, plain arrays are the only ones let through.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise WeightsError(f"no statistics at {file}. {_CURE}")
    content = _read_npz(file) if file.suffix == ".npz" else _read_checkpoint(file)
    names = next((pair for pair in _NAMES if set(pair) <= set(content)), None)
    if names is None:
        raise WeightsError(f"{file} holds {sorted(map(str, content))}, no mean and covariance. {_CURE}")
    try:
        mean, covariance = (torch.as_tensor(content[name], dtype=torch.float64) for name in names)
    except (TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{file} holds no numbers under {names}: {error} {_CURE}") from error
    size = mean.numel()
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise WeightsError(f"{file}: mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)}. {_CURE}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise WeightsError(f"{file} holds values that are not finite numbers. {_CURE}")
    count = int(content["count"]) if "count" in content else 0
    return Moments(mean, covariance, count or None)


@torch.no_grad()
def fit_moments(pictures: Tensor | Iterable[Tensor], extractor: nn.Module, name: str = "pictures") -> Moments:
    """Moments of a set, which is read once and never held in memory.

    Args:
        pictures: (N, 3, H, W) float32 in [0, 1], or batches of such.
        extractor: from pictures in [0, 1] to (B, D), in evaluation mode.
        name: what the pictures are, for messages.

    Raises:
        ImageContractError: pictures that break the contract. ConfigError: fewer than two.
    """
    total = outer = None
    count = 0
    for batch in split_batches(pictures, name):
        features = extractor(batch).double().cpu()
        part, square = features.sum(0), features.T @ features
        total, outer = (part, square) if total is None else (total + part, outer + square)
        count += len(batch)
    if total is None or outer is None or count < 2:
        raise ConfigError(f"{name}: {count} pictures have no covariance; pass at least 2.")
    mean = total / count
    return Moments(mean, (outer - count * torch.outer(mean, mean)) / (count - 1), count)


def split_batches(pictures: Tensor | Iterable[Tensor], name: str) -> Iterable[Tensor]:
    """One checked batch after the other, whatever way the set came in.

    Raises:
        ImageContractError: a batch that breaks the contract. ConfigError: something that holds no tensors.
    """
    if isinstance(pictures, (str, Path)) or not isinstance(pictures, Iterable):
        raise ConfigError(f"{name} must be a tensor (N, 3, H, W) or batches of such, got {type(pictures).__name__}.")
    for batch in (pictures,) if isinstance(pictures, Tensor) else pictures:
        yield from check_images(batch, name).split(_CHUNK)


def _read_npz(file: Path) -> Mapping[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{file} cannot be read ({type(error).__name__}: {error}). {_CURE}") from error


def _read_checkpoint(file: Path) -> Mapping[str, Any]:
    # BasicSR saved NumPy arrays; of what such a file may call, this is all. Its names are those of NumPy 1.
    allowed = [
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        *((np._core.multiarray._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]
    with torch.serialization.safe_globals(allowed):
        content = read_checkpoint(file, _CURE)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}, no mean and covariance. {_CURE}")
    return content
