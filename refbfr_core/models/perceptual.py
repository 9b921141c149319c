"""Perceptual distance from the features of a network (LPIPS, Zhang et al., CVPR 2018; PDGrad, equation 14).

Two networks offer it behind one door, `PerceptualDistance`: `LPIPSFeatures` stands on the lpips library's trunk with
its learned channel weights, `PerceptualFeatures` is a small network of the same make, trained on drawn faces. Their
features come out so that the distance of two pictures is the mean over places of the squared difference of features;
whatever is guided by them then needs to know nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError

STAGES = 5
LPIPS_EPS = 1e-10
"""What the lpips library adds to the length of a feature vector before it divides by it."""

# Not a check of the range, which guidance may overshoot; it finds bytes, which no network picture comes near.
_BYTES = 16.0


class PerceptualDistance:
    """What a perceptual network can be asked, whatever it is made of; it only has to give `guidance_features`."""

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """[v1, v2, ...] of images (B, 3, H, W) in [-1, 1]; each (B, C, h, w), normalised and weighted."""
        raise NotImplementedError

    def perceptual_terms(self, a: Tensor, b: Tensor) -> Tensor:
        """d_vgg of equation 14 layer by layer: two of (B, 3, H, W) in [-1, 1] to (B, layers), at least 0.

        Differentiable. Raises ImageContractError for pictures that do not fit each other or the network.
        """
        if a.shape != b.shape:
            raise ImageContractError(
                f"a perceptual distance compares pictures of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; "
                "resize one of them, or expand a single picture to the batch."
            )
        return feature_distances(self.guidance_features(a), self.guidance_features(b))

    def perceptual_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum of `perceptual_terms`: (B,), 0 for equal pictures, the same both ways round."""
        return self.perceptual_terms(a, b).sum(1)


class PerceptualFeatures(PerceptualDistance, ModelMixin, ConfigMixin):
    """A small network in the manner of VGG with learned channel weights: the perceptual network of the toy profile.

    Five stages of two 3 x 3 convolutions with ReLU; between them areas of 2 x 2 are averaged, which keeps gradients
    smooth and features calm under shifts (Zhang, ICML 2019). The tap of a stage is its second ReLU. It works at the
    size the pictures come in, as LPIPS does, and was trained on 128 px.

    `channel_weights[l]` is w_l of equation 14. The equation squares it, so no square root has to be taken and no sign
    watched; the weights that the lpips library stores are those squares.

    Parameters
    ----------
    widths : channels of the five stages.
    first_stride : stride of the very first convolution, 1 or 2; with 2 a face costs about a quarter.
    normalise : divide the features at every place by their length over the channels, as LPIPS does; False is
        equation 14 to the letter, in which the size of a feature counts as well.
    eps : added to that length. Larger than LPIPS's 1e-10, because the gradient at a place where all features nearly
        vanish grows with its inverse.

    Raises
    ------
    ConfigError : another number of stages, or sizes below one.
    """

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int] = (16, 24, 32, 48, 64),
        first_stride: int = 2,
        normalise: bool = True,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if len(widths) != STAGES or min(widths) < 1 or first_stride not in (1, 2) or not eps > 0:
            raise ConfigError(
                f"widths {tuple(widths)} must name {STAGES} stages with at least one channel, first_stride="
                f"{first_stride} must be 1 or 2, and eps={eps} above 0."
            )
        self.stages = nn.ModuleList()
        channels = 3
        for index, width in enumerate(widths):
            stride = first_stride if index == 0 else 1
            first, second = nn.Conv2d(channels, width, 3, stride, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.stages.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()))
            channels = width
        # Weights w whose squares add up to 1 in every stage: all stages start equally important.
        self.channel_weights = nn.ParameterList([nn.Parameter(torch.full((width,), width**-0.5)) for width in widths])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @property
    def least_side(self) -> int:
        """Smallest side of a picture in pixels that leaves the last stage a place."""
        return self.config.first_stride * 2 ** (STAGES - 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raw taps: (B, 3, H, W) in [-1, 1] to five of (B, width, h, w), each half as wide as the one before.

        Raises
        ------
        ImageContractError : another shape, pictures too small, or values that no picture in [-1, 1] has.
        """
        x, taps = check_network_images(images, self.least_side), []
        for index, stage in enumerate(self.stages):
            x = stage(F.avg_pool2d(x, 2) if index else x)
            taps.append(x)
        return taps

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """[v1, ..., v5] of images (B, 3, H, W) in [-1, 1], normalised and weighted; see `PerceptualDistance`."""
        return self.weigh(self(images))

    def weigh(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """`guidance_features` from the raw taps that `forward` returned."""
        return weighted_features(taps, self.channel_weights, self.config.eps if self.config.normalise else None)


def weighted_features(taps: Sequence[Tensor], weights: Sequence[Tensor], eps: float | None) -> list[Tensor]:
    """w_l * z_l of equation 14 for every layer, z_l divided by its length over the channels plus `eps`.

    Parameters
    ----------
    taps : (B, C, h, w) each. weights : (C,) each. eps : None leaves the features as long as they are.

    Returns
    -------
    (B, C, h, w) each, float32: the squares of half precision would vanish.
    """
    out = []
    for tap, weight in zip(taps, weights, strict=True):
        z = tap.float()
        if eps is not None:
            # Unlike the root of a sum of squares, vector_norm has a gradient (0) where every channel is 0.
            z = z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + eps)
        out.append(z * weight.float().view(1, -1, 1, 1))
    return out


def feature_distances(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Equation 14 on two lists of `guidance_features`: squared differences, summed over channels, averaged over places.

    Two lists of (B, C, h, w), or with batch 1 on either side, to (B, layers). Each layer counts once, although
    equations 12 and 14 both sum over layers.
    """
    return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)], dim=1)


def check_network_images(images: Tensor, least_side: int) -> Tensor:
    """Return `images` if they are a batch (B, 3, H, W) a perceptual network can see; raises `ImageContractError`.

    Finite, floating point, sides of at least `least_side` pixels, and in [-1, 1] up to the overshoot of a sampler.
    """
    expected = f"RGB (B, 3, H, W) in [-1, 1] of at least {least_side} x {least_side} pixels"
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        seen = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ImageContractError(
            f"the perceptual network takes {expected}, got {seen}; a single picture needs images[None], bytes "
            "refbfr_core.images.from_uint8 and to_network."
        )
    if not len(images) or min(images.shape[-2:]) < least_side:
        raise ImageContractError(
            f"the perceptual network takes {expected}, got {tuple(images.shape)}; resize with "
            "torch.nn.functional.interpolate(images, size=..., mode='bilinear', antialias=True)."
        )
    low, high = (value.item() for value in torch.aminmax(images.detach()))
    if not (low >= -_BYTES and high <= _BYTES):
        raise ImageContractError(
            f"the perceptual network takes {expected}, got values in [{low:.4g}, {high:.4g}]; divide bytes by 255 and "
            "use refbfr_core.images.to_network, or look for a division by zero if they are not numbers."
        )
    return images
