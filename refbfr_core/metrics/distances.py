"""Distances between two *sets* of pictures: do restorations, taken together, look like clean pictures taken together?

The published measure is FID, a Fréchet distance of Gaussians fitted to features of an Inception network. It needs a
network that has to be downloaded, and it is biased: with few pictures it is too large by an amount that depends on
their number and on the method, so that two methods can change places (Bińkowski et al., "Demystifying MMD GANs",
ICLR 2018). A few hundred restorations are few. The kernel distance of the same paper (KID, squared maximum mean
discrepancy with a cubic kernel) is unbiased at every number of pictures: two samples of one distribution give 0 on
average, so single values below 0 occur. It is what is measured here, through torchmetrics, on the first layers of the
judge (`refbfr_core.metrics.textures`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, missing_extra
from refbfr_core.images import check_images
from refbfr_core.metrics.textures import NAME, TextureFeatures, load_textures

FEATURES = NAME
"""Name of the default feature space, see `refbfr_core.metrics.textures`."""

LEAST = 64
"""Sets smaller than this are refused unless `allow_small` is given: their spread drowns what there is to see."""


@dataclass(frozen=True)
class SetDistance:
    """A distance between two sets of pictures.

    Attributes:
        value: mean over the subsets; 0 on average for two samples of one distribution, so it can be negative.
        spread: standard deviation over the subsets. It is the spread of a subset's value, larger than that of `value`.
        n_restored, n_reference: pictures in the two sets.
        reference: what the reference set is, in the caller's words.
        features: the space it was measured in; values in different spaces are not comparable.
        subsets, subset_size, seed: how it was averaged.
    """

    value: float
    spread: float
    n_restored: int
    n_reference: int
    reference: str
    features: str
    subsets: int
    subset_size: int
    seed: int

    def __str__(self) -> str:
        return (
            f"KID {self.value:+.5f} (spread {self.spread:.5f} over {self.subsets} subsets of {self.subset_size}; "
            f"{self.n_restored} pictures against {self.n_reference} of {self.reference}; features: {self.features})"
        )


def kernel_distance(
    restored: Tensor,
    reference: Tensor,
    reference_name: str,
    *,
    extractor: nn.Module | None = None,
    features: str = FEATURES,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
    allow_small: bool = False,
) -> SetDistance:
    """KID between restorations and clean pictures: squared MMD with k(x, y) = (x.y / d + 1)^3, mean over subsets.

    Args:
        restored: (N, 3, H, W) float32 in [0, 1].
        reference: (M, 3, H', W') clean pictures, best of other people or other views than the restored.
        reference_name: what they are; it is part of the result, because a value without it means nothing.
        extractor: network from pictures in [0, 1] to (B, d), in evaluation mode; :class:`TextureFeatures` of the
            shipped judge if not given. Pass it to avoid loading the judge again, or to measure in another space.
        features: name of that space; give one with another `extractor`.
        subsets: number of random subsets to average over.
        subset_size: pictures of each set in a subset, drawn without replacement; default: half of the smaller set.
        seed: of the subsets.
        allow_small: accept sets below :data:`LEAST` pictures.

    Raises:
        ImageContractError: pictures that break the contract.
        ConfigError: sets that are too small, impossible subsets, an empty name, another extractor under the judge's
            name, or one in training mode.
        WeightsError: the judge is not there. MissingExtraError: torchmetrics is not installed.
    """
    check_images(restored, "restored")
    check_images(reference, "reference")
    smaller = min(len(restored), len(reference))
    size = max(2, smaller // 2) if subset_size is None else subset_size
    _check_settings(smaller, size, subsets, reference_name, allow_small)
    if extractor is not None and features == FEATURES and not isinstance(extractor, TextureFeatures):
        raise ConfigError(f"another extractor came, but features is still {FEATURES!r}; name its space with features=.")
    extractor = load_textures(restored.device) if extractor is None else extractor
    if extractor.training:
        raise ConfigError("the extractor is in training mode, so features depend on the batch; call extractor.eval().")
    value, spread = _kid(extractor, restored, reference, subsets, size, seed)
    return SetDistance(value, spread, len(restored), len(reference), reference_name, features, subsets, size, seed)


def _check_settings(smaller: int, size: int, subsets: int, name: str, allow_small: bool) -> None:
    if not name.strip():
        raise ConfigError("reference_name is empty; say what the clean pictures are, for example 'val people, seed 1'.")
    if smaller < 2 or (smaller < LEAST and not allow_small):
        raise ConfigError(
            f"the smaller set has {smaller} pictures; below {LEAST} the spread is larger than most differences. Pass "
            "more pictures, or allow_small=True (at least 2) to see a rough number."
        )
    if subsets < 1 or not 2 <= size <= smaller:
        raise ConfigError(f"{subsets} subsets of {size} cannot be drawn from sets of {smaller} and more pictures.")


def _kid(
    extractor: nn.Module, restored: Tensor, reference: Tensor, subsets: int, size: int, seed: int
) -> tuple[float, float]:
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise missing_extra("torchmetrics", "metrics", "the kernel distance") from error
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        distance = KernelInceptionDistance(feature=extractor, subsets=subsets, subset_size=size)
        distance.update(reference, real=True)
        distance.update(restored, real=False)
        # torchmetrics draws the subsets from the global generator; the caller's is put back afterwards.
        torch.manual_seed(seed)
        value, spread = distance.compute()
    return value.item(), spread.item()
