"""What undistorted pictures look like in numbers: the statistics NIQE measures a distance to.

NIQE (Mittal, Soundararajan, Bovik: "Making a 'completely blind' image quality analyzer", IEEE SPL 2013) describes a
picture by how its locally normalised luma is distributed, patch by patch, and a set of undistorted ("pristine")
pictures by the multivariate Gaussian of those descriptions. Its authors took 125 photographs. Drawn faces have no
camera noise and no texture of a natural scene, so the Gaussian that ships here was fitted to clean drawn faces.

The features are pyiqa's. How that Gaussian was made, and again can be::

    python -m refbfr_core.metrics.pristine --people 256 --views 2 --out FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, missing_extra
from refbfr_core.images import check_images
from refbfr_core.metrics.shipped import drawn_training_faces, read_statistics, shipped_folder, write_statistics

FEATURES = 36
"""Numbers that describe one patch: 18 at full size and 18 at half size."""

PATCH = 32
"""Side of a patch. The paper's 96 would leave one patch of a 128-pixel picture, in its upper left corner, and no
covariance; 32 gives 16 patches that cover all of it, and the half-size patches still have 256 values for each fit."""

SHARPNESS = 0.75
"""Patches less sharp than this share of their picture's sharpest are left out of the fit (the paper's T)."""

SEED = 77
"""Of the people that shipped statistics are fitted to. Not 0: the networks were trained on those."""

# Small enough that the tables of the fits stay in the cache.
_CHUNK = 4
_NAME = "drawn-faces-128"
_COMMAND = "python -m refbfr_core.metrics.pristine"


@dataclass(frozen=True, eq=False)
class Pristine:
    """The multivariate Gaussian of undistorted pictures' patches.

    Attributes:
        mean: (36,) float64.
        covariance: (36, 36) float64.
        side: height and width in pixels of the pictures it was fitted to; the features depend on it.
        patch: side of a patch in pixels.
        about: how it was made.
    """

    mean: Tensor
    covariance: Tensor
    side: int
    patch: int
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Patches:
    """Descriptions of the patches of B pictures.

    Attributes:
        features: (B, P, 36) float64; not a number where a patch has no structure at all.
        sharpness: (B, P) float64, mean local standard deviation of the luma in grey levels.
    """

    features: Tensor
    sharpness: Tensor

    @property
    def described(self) -> Tensor:
        """(B, P) bool: the patches whose every feature is a number."""
        return self.features.isfinite().all(dim=-1)


def describe_patches(images: Tensor, patch: int = PATCH) -> Patches:
    """The natural scene statistics of every patch (equations 1 to 9 of the paper), computed with pyiqa.

    The luma of YIQ, rounded to 8 bits, is made comparable everywhere by subtracting the local mean and dividing by the
    local deviation (MSCN coefficients, 7 x 7 Gaussian window). In each patch a generalised Gaussian is fitted to them
    and an asymmetric one to the products of neighbours in four directions; the same again at half size.

    Args:
        images: (B, 3, H, W) float32 RGB in [0, 1]; what does not fill a patch on the right and at the bottom is cut.
        patch: even side of a patch in pixels.

    Raises:
        ImageContractError: pictures smaller than a patch. ConfigError: a patch side that is odd or below 8.
        MissingExtraError: pyiqa is not installed.
    """
    check_images(images)
    if patch < 8 or patch % 2:
        raise ConfigError(f"patch is {patch}; expected an even number of at least 8 (it is halved once).")
    if min(images.shape[-2:]) < patch:
        raise ImageContractError(
            f"pictures are {tuple(images.shape[-2:])}, smaller than one patch of {patch} pixels; pass larger pictures."
        )
    height, width = (size // patch * patch for size in images.shape[-2:])
    pyiqa = _pyiqa()
    features, sharpness = [], []
    for chunk in images[..., :height, :width].split(_CHUNK):
        luma = pyiqa.to_y_channel(chunk, 255, "yiq").round().double()
        sharpness.append(_sharpness(luma, patch, pyiqa))
        half = pyiqa.imresize(luma / 255, scale=0.5, antialiasing=True) * 255
        scales = ((luma, patch), (half, patch // 2))
        parts = [
            pyiqa.blockproc(pyiqa.normalize(grey, padding="replicate"), [side, side], fun=pyiqa.compute_feature)
            for grey, side in scales
        ]
        features.append(torch.cat(parts, dim=-1))
    return Patches(torch.cat(features), torch.cat(sharpness))


def fit_pristine(
    images: Tensor, patch: int = PATCH, sharpness: float = SHARPNESS, about: Mapping[str, Any] | None = None
) -> Pristine:
    """The Gaussian of the sharp patches of undistorted pictures.

    Args:
        images: (B, 3, S, S), square.
        patch: side of a patch.
        sharpness: share T of the sharpest patch of the same picture that a patch must exceed, 0 <= T < 1.
        about: said about it in :attr:`Pristine.about`; the number of pictures and patches is added.

    Raises:
        ImageContractError: pictures that are not square. ConfigError: T out of range, or fewer than twice as many
            patches as features, from which no covariance can be estimated. MissingExtraError: pyiqa is not installed.
    """
    if not 0 <= sharpness < 1:
        raise ConfigError(f"sharpness is {sharpness}; expected a share from 0 to below 1 (the paper: 0.75).")
    if check_images(images).shape[-1] != images.shape[-2]:
        raise ImageContractError(f"pictures are {tuple(images.shape[-2:])}; crop them to squares first.")
    patches = describe_patches(images, patch)
    sharp = patches.sharpness > sharpness * patches.sharpness.amax(dim=1, keepdim=True)
    chosen = patches.features[sharp & patches.described]
    if len(chosen) < 2 * FEATURES:
        raise ConfigError(
            f"{len(images)} pictures have {len(chosen)} sharp patches, too few for the covariance of {FEATURES} "
            f"features; at least {2 * FEATURES} are needed: pass more pictures."
        )
    counts = {"pictures": len(images), "patches": len(chosen), "sharpness": sharpness}
    return Pristine(chosen.mean(0), chosen.T.cov(), images.shape[-1], patch, dict(about or {}) | counts)


def fit_drawn_faces(people: int = 256, views: int = 2, seed: int = SEED) -> Pristine:
    """:func:`fit_pristine` of clean drawn faces at 128 pixels, people of the split "train"; minutes on one core."""
    images, made_from = drawn_training_faces(people, views, seed)
    about = {
        "summary": "Gaussian of NIQE features of clean drawn faces; a stand-in for the photographs of the original.",
        "limits": "Knows drawn faces of 128 pixels; its distances are not comparable with NIQE numbers of photographs.",
        "command": f"{_COMMAND} --people {people} --views {views} --seed {seed}",
    }
    return fit_pristine(images, about=about | made_from)


def save_pristine(pristine: Pristine, folder: str | Path, name: str = _NAME) -> Path:
    """Write `<name>.safetensors` and, beside it, `<name>.json` with how it was made; returns the first path.

    Raises:
        OutputError: the place cannot be written to.
    """
    tensors = {"mean": pristine.mean, "covariance": pristine.covariance}
    about = dict(pristine.about) | {"side": pristine.side, "patch": pristine.patch}
    return write_statistics(folder, name, tensors, about)


def load_pristine(folder: str | Path | None = None, name: str = _NAME) -> Pristine:
    """Read what :func:`save_pristine` wrote; without a folder, the statistics that ship with the package.

    Raises:
        WeightsError: a file is missing, damaged or not the one its card describes.
    """
    cure = f"Reinstall the package, or fit it again with {_COMMAND}."
    tensors, about = read_statistics(folder, name, ("mean", "covariance"), cure)
    return Pristine(tensors["mean"], tensors["covariance"], about["side"], about["patch"], about)


def main(arguments: list[str] | None = None) -> Path:
    """The command: draw, fit, write; returns the path that was written."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Fit NIQE's Gaussian to clean drawn faces.")
    parser.add_argument("--people", type=int, default=256, help="people of the split 'train'")
    parser.add_argument("--views", type=int, default=2, help="pictures of each")
    parser.add_argument("--seed", type=int, default=SEED, help="of people and views")
    parser.add_argument("--out", type=Path, default=shipped_folder(), help="folder to write to; default: the package's")
    options = parser.parse_args(arguments)
    return save_pristine(fit_drawn_faces(options.people, options.views, options.seed), options.out)


def _sharpness(luma: Tensor, patch: int, pyiqa: SimpleNamespace) -> Tensor:
    """(B, P) mean over each patch of the local deviation that MSCN divides by, patches column by column as pyiqa's."""
    window = pyiqa.fspecial(7, 7 / 6, 1).to(luma)
    mean, square = (pyiqa.imfilter(each, window, padding="replicate") for each in (luma, luma.square()))
    deviation = (square - mean.square()).abs().sqrt()
    return F.avg_pool2d(deviation, patch).transpose(-1, -2).flatten(1)


def _pyiqa() -> SimpleNamespace:
    """The functions of pyiqa that are used. Importing them reads no weights and opens no connection."""
    try:
        from pyiqa.archs.func_util import normalize_img_with_gauss
        from pyiqa.archs.niqe_arch import compute_feature
        from pyiqa.matlab_utils import blockproc, fspecial, imfilter, imresize
        from pyiqa.utils.color_util import to_y_channel
    except ImportError as error:
        raise missing_extra("pyiqa", "metrics", "the metric niqe-toy") from error
    return SimpleNamespace(
        blockproc=blockproc,
        compute_feature=compute_feature,
        fspecial=fspecial,
        imfilter=imfilter,
        imresize=imresize,
        normalize=normalize_img_with_gauss,
        to_y_channel=to_y_channel,
    )


if __name__ == "__main__":
    print(main())  # noqa: T201 - a command tells what it wrote
