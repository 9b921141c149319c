"""The table of metrics and the one function that computes any of them."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, RefbfrError, unknown_name
from refbfr_core.images import check_images
from refbfr_core.metrics import colour, features, identity, landmarks, perceptual, pixels, quality


@dataclass(frozen=True)
class Metric:
    """What a score means.

    Attributes:
        name: key in :data:`REGISTRY` and column name in tables.
        direction: "higher" or "lower", whichever is better, or "zero": the nearer to 0 the better.
        range: lowest and highest possible value.
        unit: "dB", "degrees", "pixels", "grey levels" or "" for pure numbers.
        protocol: everything two people must agree on to get the same number.
        needs: what has to be installed or at hand.
        function: (restored, target, **keywords) -> (B,).
        missing: returns what is missing on this machine, or None.
        target_required: whether the score compares with a true picture.
    """

    name: str
    direction: str
    range: tuple[float, float]
    unit: str
    protocol: str
    needs: str
    function: Callable[..., Tensor]
    missing: Callable[[], str | None]
    target_required: bool = True

    @property
    def keywords(self) -> tuple[str, ...]:
        """Names of the extra arguments :func:`compute` takes for this metric."""
        return tuple(name for name in inspect.signature(self.function).parameters if name not in ("restored", "target"))


def compute(name: str, restored: Tensor, target: Tensor | None = None, **keywords: Any) -> Tensor:
    """Score each image of a batch; one image's score does not depend on the others.

    Args:
        name: a key of :data:`REGISTRY`.
        restored: (B, 3, H, W) float32 RGB in [0, 1].
        target: the true pictures, same shape and device, for metrics that compare.
        **keywords: see :attr:`Metric.keywords`, for example ``embedder=`` for "ids".

    Returns:
        (B,) float32, without gradient.

    Raises:
        UnknownNameError: no such metric or keyword; the message gives the nearest.
        ImageContractError: images that break the contract, or a target that is missing or of another shape.
        RefbfrError: something the metric needs is not there (says what to fetch), or a score is not a number.
    """
    metric = _metric(name)
    for keyword in keywords:
        if keyword not in metric.keywords:
            raise unknown_name(f"keyword of the metric {name!r}", keyword, metric.keywords)
    check_images(restored, "restored")
    _check_target(metric, restored, target)
    with torch.no_grad():
        scores = metric.function(restored, target, **keywords)
    if scores.shape != (len(restored),):
        raise ConfigError(f"{name} gave scores of shape {tuple(scores.shape)} for {len(restored)} images.")
    wrong = torch.isnan(scores).nonzero().flatten().tolist()
    if wrong:
        raise ConfigError(
            f"{name} is not a number for the images {wrong}: "
            "the embedder, network or landmarks that were passed give NaN."
        )
    return scores.float()


def describe(name: str | None = None) -> str:
    """One metric, or all of them, in plain words."""
    if name is None:
        return "\n".join(describe(each) for each in REGISTRY)
    metric = _metric(name)
    low, high = metric.range
    unit = f" {metric.unit}" if metric.unit else ""
    better = "nearer to 0" if metric.direction == "zero" else metric.direction
    return (
        f"{metric.name}: {better} is better, {low:g} … {high:g}{unit}\n"
        f"  protocol: {metric.protocol}\n"
        f"  needs: {metric.needs}"
    )


def unavailable(name: str) -> str | None:
    """What this machine lacks for a metric and how to get it, or None when it can be computed."""
    return _metric(name).missing()


def _metric(name: str) -> Metric:
    if name not in REGISTRY:
        raise unknown_name("metric", name, REGISTRY)
    return REGISTRY[name]


def _check_target(metric: Metric, restored: Tensor, target: Tensor | None) -> None:
    if target is None:
        if metric.target_required:
            raise ImageContractError(
                f"{metric.name} compares with the true picture, but no target came; "
                f"call compute({metric.name!r}, restored, target)."
            )
        return
    check_images(target, "target")
    if target.shape != restored.shape:
        raise ImageContractError(
            f"{metric.name} compares pictures of one size, got restored {tuple(restored.shape)} and target "
            f"{tuple(target.shape)}; resize one of them first."
        )
    if target.device != restored.device:
        raise ImageContractError(
            f"restored is on {restored.device} but target on {target.device}; call target.to(restored.device)."
        )


def _nothing() -> None:
    return None


def _package(package: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(package):
            return None
        return f"the package {package!r} is not installed: pip install 'refbfr_core[metrics]'"

    return missing


def _trunk(net: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return _package("lpips")() or perceptual.missing_trunk(net)

    return missing


def _shipped(network: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        from refbfr_core.weights import shipped_root, verify_network

        try:
            verify_network(shipped_root("toy") / network)
        except RefbfrError as error:
            return str(error)
        return None

    return missing


def _textures() -> str | None:
    from refbfr_core.metrics.textures import load_textures

    try:
        load_textures("cpu")
    except RefbfrError as error:
        return str(error)
    return None


def _statistics() -> str | None:
    from refbfr_core.metrics.pristine import load_pristine

    try:
        load_pristine()
    except RefbfrError as error:
        return str(error)
    return None


_SSIM = "Gaussian window 11 x 11, sigma 1.5, K1 0.01, K2 0.03, data range 1, windows wholly inside the image, mean"
_IDENTITY = (
    "of face embeddings; 1/16 cropped off every side, area resize to 112 px, RGB in [-1, 1]; default embedder: the "
    "shipped judge (drawn faces); on photographs pass an ArcFace and name it"
)
_BIAS = "mean over all places of restored - true, RGB, 0 ... 255"
_LPIPS = "LPIPS v0.1, learned weights, trunk {}, RGB in [-1, 1], original size"

_ALL = (
    Metric(
        "psnr", "higher", (0.0, float("inf")), "dB", "RGB, data range 1, MSE over all values of an image", "nothing",
        pixels.psnr, _nothing,
    ),
    Metric("ssim", "higher", (-1.0, 1.0), "", f"RGB, {_SSIM}", "torchmetrics", pixels.ssim, _package("torchmetrics")),
    Metric(
        "ssim-y", "higher", (-1.0, 1.0), "", f"luma of YIQ rounded to 8 bits, {_SSIM} (close to pyiqa's 'ssim')",
        "torchmetrics", pixels.ssim_y, _package("torchmetrics"),
    ),
    Metric(
        "lpips", "lower", (0.0, float("inf")), "", _LPIPS.format("VGG-16 unless net= says otherwise"),
        "lpips, and torchvision's ImageNet VGG-16 (528 MB)", perceptual.lpips_distance, _trunk("vgg"),
    ),
    Metric(
        "lpips-alex", "lower", (0.0, float("inf")), "", _LPIPS.format("AlexNet"),
        "lpips, and torchvision's ImageNet AlexNet (233 MB)", perceptual.variant("alex"), _trunk("alex"),
    ),
    Metric(
        "lpips-squeeze", "lower", (0.0, float("inf")), "", _LPIPS.format("SqueezeNet 1.1"),
        "lpips, and torchvision's ImageNet SqueezeNet 1.1 (5 MB)", perceptual.variant("squeeze"), _trunk("squeeze"),
    ),
    Metric(
        "ids", "higher", (-1.0, 1.0), "", f"cosine {_IDENTITY}", "a face embedder", identity.ids,
        _shipped("judge"),
    ),
    Metric(
        "deg", "lower", (0.0, 180.0), "degrees", f"angle {_IDENTITY}; every pair counts in a mean, unlike in VQFR's "
        "script, which leaves out pairs under 1 degree (mean_deg(angles, 'vqfr')) and embeds the whole picture in grey "
        "at 128 px (GreyEmbedder)", "a face embedder; VQFR's own is resnet18_110.pth, which does not ship",
        identity.deg, _shipped("judge"),
    ),
    Metric(
        "lmd", "lower", (0.0, float("inf")), "pixels", "mean Euclidean distance of corresponding landmarks in pixels "
        "of the pictures as they come; normalise= changes the unit; VQFR and PDGrad: 98 AWing points on aligned 512 px "
        "pictures, not normalised (detector=load_awing())", "exact landmarks of drawn faces, or a detector",
        landmarks.lmd, lambda: landmarks.NEEDS, target_required=False,
    ),
    Metric(
        "niqe-toy", "lower", (0.0, float("inf")), "", "NIQE's features and distance; luma of YIQ rounded to 8 bits, "
        "128 px, patches of 32 px; a stand-in for NIQE: the pristine Gaussian is of clean drawn faces, not of natural "
        "photographs, so its numbers compare with no other NIQE", "pyiqa, and the shipped statistics",
        quality.niqe_toy, lambda: _package("pyiqa")() or _statistics(), target_required=False,
    ),
    Metric(
        "detail", "zero", (float("-inf"), float("inf")), "dB", "10 log10 of the ratio of high-frequency luma energies, "
        "restored over true: what a Gaussian blur takes away (sigma 1 px of 128), squared, mean over the face; face: "
        "the box of rows 1/3 to 7/8 and columns 1/3 to 2/3 unless mask= says otherwise; negative is too soft, positive "
        "too busy; says how much detail, not whether it is the right one", "torchvision",
        quality.detail, _package("torchvision"),
    ),
    Metric(
        "lpips-toy", "lower", (0.0, float("inf")), "", "LPIPS with the shipped network 'perceptual', trained on drawn "
        "faces, in place of VGG-16; RGB in [-1, 1], original size; compares with no published LPIPS, and flatters "
        "whatever was trained against that network: it is a loss of both of LD-BFR's VQGANs and guides PDGrad",
        "nothing", features.toy_lpips, _shipped("perceptual"),
    ),
    Metric(
        "textures", "lower", (0.0, float("inf")), "", "root mean square difference of texture statistics (mean and log "
        "deviation of the channels behind the judge's stem and first stage, 1/16 cropped off every side, 112 px), "
        "whitened by clean drawn faces, of 128 px pictures; blind to where in the picture a texture is; the judge "
        "takes part in no training and no guidance", "the shipped judge and statistics",
        features.texture_distance, _textures,
    ),
    Metric(
        "colour-bias", "lower", (0.0, colour.GREY_LEVELS * 3**0.5), "grey levels",
        f"length over R, G, B of the {_BIAS}; brightness counts as well as hue", "nothing",
        colour.colour_bias, _nothing,
    ),
    *(
        Metric(
            f"bias-{channel}", "zero", (-colour.GREY_LEVELS, colour.GREY_LEVELS), "grey levels",
            f"{_BIAS}, {channel} channel only; errors of both signs cancel in a mean over pictures", "nothing",
            colour.bias_of(channel), _nothing,
        )
        for channel in colour.CHANNELS
    ),
)  # fmt: skip

REGISTRY: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every metric by name; read-only."""
