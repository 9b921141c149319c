"""Distances between two *sets* of pictures: do restorations, taken together, look like clean pictures taken together?

The published measure is FID, a Fréchet distance of Gaussians fitted to features of an Inception network (Heusel et al.,
"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017). It is biased: with
few pictures it is too large by an amount that depends on their number and on the method, so that two methods can change
places (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018; Chong and Forsyth, "Effectively Unbiased FID and Inception
Score and Where to Find Them", CVPR 2020). The kernel distance of the former paper (KID, squared maximum mean
discrepancy with a cubic kernel) is unbiased at every number of pictures: two samples of one distribution give 0 on
average, so single values below 0 occur.

Both are measured through torchmetrics, on Inception features ("fid", "kid") or, for drawn faces and without any
download, on the first layers of the judge ("fid-toy", "kid-toy"; `refbfr_core.metrics.textures`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, missing_extra, unknown_name
from refbfr_core.images import check_images
from refbfr_core.metrics.inception import RESIZINGS, check_extractor, load_inception
from refbfr_core.metrics.moments import Moments, fit_moments, read_moments, split_batches
from refbfr_core.metrics.set_registry import SET_REGISTRY, SetMetric
from refbfr_core.metrics.textures import NAME, TextureFeatures, load_textures

FEATURES = NAME
"""Name of the feature space of drawn faces, see `refbfr_core.metrics.textures`."""

LEAST = 64
"""Sets smaller than this are refused unless `allow_small` is given: their spread drowns what there is to see. The
Fréchet distance refuses sets of up to D pictures as well, where D is the number of features, because D + 1 are needed
for a covariance of full rank; with Inception's 2048 features that is every test set of the papers but CelebA-Test, so
printed numbers can only be measured again with `allow_small`, at their own n."""

LARGEST_SUBSET = 1000
"""Pictures in a subset of the kernel distance at most; the usual number."""

Pictures = Tensor | Iterable[Tensor]
Reference = Pictures | Moments | str | Path


@dataclass(frozen=True)
class SetDistance:
    """A distance between two sets of pictures.

    Attributes:
        value: the distance; of the kernel distance the mean over the subsets, 0 on average for two samples of one
            distribution, so it can be negative.
        spread: standard deviation over the subsets, the spread of a subset's value, larger than that of `value`; None
            for the Fréchet distance, which has no subsets.
        n_restored, n_reference: pictures in the two sets; None for a file of statistics that does not say.
        reference: what the reference set is, in the caller's words.
        features: the space it was measured in; values in different spaces are not comparable.
        subsets, subset_size, seed: how it was averaged; 0 for the Fréchet distance.
        name: of the distance, a key of :data:`SET_REGISTRY`, or "kid" in a space of the caller's own.
    """

    value: float
    spread: float | None
    n_restored: int
    n_reference: int | None
    reference: str
    features: str
    subsets: int
    subset_size: int
    seed: int
    name: str = "kid"

    @property
    def column(self) -> str:
        """Name of a table's column: distance, numbers of pictures, reference set and protocol."""
        known = "" if self.n_reference is None else f"{self.n_reference} of "
        subsets = f"; {self.subsets} subsets of {self.subset_size}" if self.subsets else ""
        return f"{self.name}, n={self.n_restored} against {known}{self.reference} ({self.features}{subsets})"

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.value:.4f}: {self.column}"
        return (
            f"KID {self.value:+.5f} (spread {self.spread:.5f} over {self.subsets} subsets of {self.subset_size}; "
            f"{self.n_restored} pictures against {self.n_reference} of {self.reference}; features: {self.features})"
        )


def set_distance(
    name: str,
    restored: Pictures,
    reference: Reference,
    reference_name: str,
    *,
    extractor: nn.Module | None = None,
    features: str | None = None,
    resizing: str = "bilinear",
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
    allow_small: bool = False,
    device: torch.device | str = "cpu",
) -> SetDistance:
    """Distance between a set of restorations and a set of clean pictures, neither of which need fit into memory.

    Args:
        name: a key of :data:`SET_REGISTRY`: "fid", "kid", "fid-toy" or "kid-toy".
        restored: (N, 3, H, W) float32 in [0, 1], or batches of such.
        reference: the same of clean pictures, best of other people or other views than the restored; for the Fréchet
            distance also `Moments`, or the path of a file that holds a mean and a covariance.
        reference_name: what they are; it is part of the result, because a value without it means nothing.
        extractor: the network of features, in evaluation mode, so that many distances load it once: what
            `load_inception` or `load_textures` gives, or a network of your own, which needs `features`.
        features: name of the space of a network of your own.
        resizing: how pictures reach Inception, one of `refbfr_core.metrics.inception.RESIZINGS`.
        subsets, subset_size, seed: random subsets of the kernel distance, drawn without replacement; default size:
            half of the smaller set, at most :data:`LARGEST_SUBSET`.
        allow_small: accept sets below what :data:`LEAST` says.
        device: where to load the network.

    Raises:
        UnknownNameError: no such distance or resizing. ImageContractError: pictures that break the contract.
        ConfigError: sets that are too small, impossible subsets, an empty name, statistics for a kernel distance or of
            another length, an extractor without a name for its space, or in training mode.
        WeightsError: the network or a file of statistics is not there or damaged.
        MissingExtraError: torchmetrics or pyiqa is not installed.
    """
    if name not in SET_REGISTRY:
        raise unknown_name("distance of sets", name, SET_REGISTRY)
    _check_name(reference_name)
    if resizing not in RESIZINGS:
        raise unknown_name("resizing of FID", resizing, RESIZINGS)
    metric = SET_REGISTRY[name]
    if metric.kind == "kernel" and isinstance(reference, (Moments, str, Path)):
        raise ConfigError(f"{name} compares pictures; a mean and a covariance are not enough. Pass the pictures.")
    extractor, space = _space(metric, extractor, features, resizing, device)
    if metric.kind == "kernel":
        sets = [torch.cat([extractor(batch).detach() for batch in split_batches(each, role)])
                for each, role in ((restored, "restored"), (reference, "reference"))]  # fmt: skip
        return _kernel(sets, reference_name, space, subsets, subset_size, seed, allow_small, name)
    mine = fit_moments(restored, extractor, "restored")
    if isinstance(reference, (str, Path)):
        reference = read_moments(reference)
    truth = reference if isinstance(reference, Moments) else fit_moments(reference, extractor, "reference")
    return _frechet(mine, truth, reference_name, space, allow_small, name)


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

    The same as ``set_distance("kid-toy", ...)`` for two tensors.

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
    _check_kernel(min(len(restored), len(reference)), subset_size, subsets, reference_name, allow_small)
    if extractor is not None and features == FEATURES and not isinstance(extractor, TextureFeatures):
        raise ConfigError(f"another extractor came, but features is still {FEATURES!r}; name its space with features=.")
    extractor = load_textures(restored.device) if extractor is None else extractor
    check_extractor(extractor)
    with torch.no_grad():
        sets = [extractor(restored), extractor(reference)]
    name = "kid-toy" if features == FEATURES else "kid"
    return _kernel(sets, reference_name, features, subsets, subset_size, seed, allow_small, name)


def _space(
    metric: SetMetric, extractor: nn.Module | None, features: str | None, resizing: str, device: torch.device | str
) -> tuple[nn.Module, str]:
    """The network of features and the name of its space."""
    toy = metric.pictures == "drawn"
    if extractor is None:
        extractor = load_textures(device) if toy else load_inception(resizing=resizing, device=device)
    check_extractor(extractor)
    expected = isinstance(extractor, TextureFeatures) if toy else hasattr(extractor, "space")
    if not expected and not (features or "").strip():
        raise ConfigError(f"another extractor than that of {metric.name} came; name its space with features=.")
    return extractor, features or (FEATURES if toy else extractor.space)


def _check_name(name: str) -> None:
    if not name.strip():
        raise ConfigError("reference_name is empty; say what the clean pictures are, for example 'val people, seed 1'.")


def _check_kernel(smaller: int, size: int | None, subsets: int, name: str, allow_small: bool) -> int:
    """The size of a subset, if sets of `smaller` and more pictures can be compared by it."""
    _check_name(name)
    if smaller < 2 or (smaller < LEAST and not allow_small):
        raise ConfigError(
            f"the smaller set has {smaller} pictures; below {LEAST} the spread is larger than most differences. Pass "
            "more pictures, or allow_small=True (at least 2) to see a rough number."
        )
    chosen = min(max(2, smaller // 2), LARGEST_SUBSET) if size is None else size
    if subsets < 1 or not 2 <= chosen <= smaller:
        raise ConfigError(f"{subsets} subsets of {chosen} cannot be drawn from sets of {smaller} and more pictures.")
    return chosen


def _kernel(
    sets: list[Tensor], reference: str, space: str, subsets: int, size: int | None, seed: int, allow: bool, name: str
) -> SetDistance:
    """Kernel distance of two sets of features, restored first."""
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise missing_extra("torchmetrics", "metrics", "the kernel distance") from error
    chosen = _check_kernel(min(map(len, sets)), size, subsets, reference, allow)
    mine, truth = sets
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        distance = KernelInceptionDistance(feature=nn.Identity(), subsets=subsets, subset_size=chosen)
        distance.update(truth, real=True)
        distance.update(mine, real=False)
        # torchmetrics draws the subsets from the global generator; the caller's is put back afterwards.
        torch.manual_seed(seed)
        value, spread = distance.compute()
    return SetDistance(
        value.item(), spread.item(), len(mine), len(truth), reference, space, subsets, chosen, seed, name
    )


def _frechet(mine: Moments, truth: Moments, reference: str, space: str, allow: bool, name: str) -> SetDistance:
    """Fréchet distance of two Gaussians by torchmetrics, which needs no SciPy."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise missing_extra("torchmetrics", "metrics", "the Fréchet distance") from error
    size = len(mine.mean)
    if len(truth.mean) != size:
        raise ConfigError(
            f"the statistics of {reference} have {len(truth.mean)} features, those of the restorations {size}; they "
            "were made with another network."
        )
    least = max(LEAST, size + 1)
    counts = [each.count for each in (mine, truth) if each.count is not None]
    if min(counts) < least and not allow:
        raise ConfigError(
            f"{name} of {mine.count} restorations against {truth.count or 'unknown'} pictures: below {least} the "
            f"covariance of {size} features has no full rank and the bias is large. Pass more pictures, or "
            "allow_small=True to measure at this n, which then compares only with values of the same n."
        )
    distance = FrechetInceptionDistance(feature=_Width(size)).set_dtype(torch.float64)
    for role, moments in (("real", truth), ("fake", mine)):
        # The sums that torchmetrics would have gathered; where a file names no number, any gives the same moments.
        count = moments.count or 2
        mean, covariance = moments.mean.double(), moments.covariance.double()
        outer = torch.outer(mean, mean)
        setattr(distance, f"{role}_features_sum", mean * count)
        setattr(distance, f"{role}_features_cov_sum", covariance * (count - 1) + count * outer)
        setattr(distance, f"{role}_features_num_samples", torch.tensor(count))
    distance.orig_dtype = torch.float64
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*compute.*was called before.*update")
        # Rounding leaves a set and itself a little below zero when their covariance has no full rank.
        value = max(0.0, distance.compute().item())
    return SetDistance(value, None, int(mine.count or 0), truth.count, reference, space, 0, 0, 0, name)


class _Width(nn.Module):
    """Tells torchmetrics the number of features; it computes none."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
