"""Inception features of FID and KID: the network of 2015 in pytorch-fid's conversion, and how a picture reaches it.

FID numbers depend on the network's weights, on the resizing to 299 pixels and on 8-bit rounding more than on many a
method (Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022). Two ways are
in use among the papers here, and both are offered by name, see :data:`RESIZINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, missing_extra, unknown_name
from refbfr_core.files import file_sha256
from refbfr_core.images import to_uint8
from refbfr_core.metrics.assets import fill_network, get_it_again, is_official, need_file, read_checkpoint

ASSET = "inception-fid"
SIDE = 299
"""Side in pixels of the pictures the network takes."""

DIMENSIONS = 2048
"""Length of the features behind the last pooling."""

RESIZINGS: Mapping[str, str] = MappingProxyType(
    {
        "bilinear": "bilinear without antialiasing, as in pytorch-fid and in VQFR's and BasicSR's scripts",
        "clean": "bicubic with antialiasing, channel by channel, as in clean-fid and ReF-LDM's evaluation",
    }
)
"""The ways a picture reaches 299 pixels; read-only. Distances measured with different ones do not compare."""

_CLASSES = 1008
_CHUNK = 16


class InceptionFeatures(nn.Module):
    """Pictures in [0, 1] to 2048 numbers: 8 bits, 299 pixels, [-1, 1], Inception-v3 up to the last pooling.

    Args:
        network: an Inception-v3 whose classifier is gone: (B, 3, 299, 299) in [-1, 1] to (B, 2048).
        resizing: one of :data:`RESIZINGS`.
        digest: SHA-256 of the weights' file.
    """

    num_features = DIMENSIONS

    def __init__(self, network: nn.Module, resizing: str, digest: str) -> None:
        super().__init__()
        self.network, self.resizing, self.digest = network, resizing, digest

    @property
    def space(self) -> str:
        """Name of the feature space for tables: network, the beginning of its digest, resizing."""
        kind = "Inception-v3 of pytorch-fid" if is_official(ASSET, self.digest) else "Inception-v3 of unknown weights"
        return f"{kind} ({self.digest[:8]}), {self.resizing} {SIDE} px"

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 2048) float64."""
        resize = _resize_clean if self.resizing == "clean" else _resize_bilinear
        return torch.cat([self.network(resize(chunk)).double() for chunk in images.split(_CHUNK)])


def load_inception(
    path: str | Path | None = None, *, resizing: str = "bilinear", device: torch.device | str = "cpu"
) -> InceptionFeatures:
    """The feature network of FID and KID, in evaluation mode.

    The architecture is torchvision's with the blocks that pyiqa exchanges, as pytorch-fid does: average pooling that
    does not count padding, and one maximum pooling in place of an average.

    Args:
        path: pt_inception-2015-12-05-6726825d.pth; None looks where `refbfr_core.metrics.assets` says.
        resizing: one of :data:`RESIZINGS`.
        device: where to put it.

    Raises:
        UnknownNameError: no such resizing. WeightsError: the file is missing, damaged or another network's.
        MissingExtraError: pyiqa or torchvision is not installed.
    """
    if resizing not in RESIZINGS:
        raise unknown_name("resizing of FID", resizing, RESIZINGS)
    file = need_file(ASSET) if path is None else Path(path)
    cure = get_it_again(ASSET)
    network = build_inception()
    fill_network(network, read_checkpoint(file, cure), file, cure)
    network.fc = nn.Identity()
    return InceptionFeatures(network, resizing, file_sha256(file)).to(device).eval()


def build_inception() -> nn.Module:
    """The network without its weights: random ones, and the classifier of 1008 classes that its file holds, too.

    Raises:
        MissingExtraError: pyiqa or torchvision is not installed.
    """
    try:
        from pyiqa.archs.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
        from torchvision.models import Inception3
    except ImportError as error:
        raise missing_extra("pyiqa", "metrics", "FID and KID") from error
    with torch.random.fork_rng(devices=[]):
        network = Inception3(num_classes=_CLASSES, aux_logits=False, init_weights=False)
        for name, channels, pooled in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
            setattr(network, name, FIDInceptionA(channels, pool_features=pooled))
        for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            setattr(network, name, FIDInceptionC(768, channels_7x7=inner))
        network.Mixed_7b, network.Mixed_7c = FIDInceptionE_1(1280), FIDInceptionE_2(DIMENSIONS)
    return network.eval()


def _resize_bilinear(images: Tensor) -> Tensor:
    pixels = to_uint8(images).permute(0, 3, 1, 2).float() / 255
    return 2 * F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def _resize_clean(images: Tensor) -> Tensor:
    from PIL import Image

    def shrink(channel: np.ndarray) -> np.ndarray:
        floats = Image.fromarray(channel.astype(np.float32))
        return np.asarray(floats.resize((SIDE, SIDE), resample=Image.Resampling.BICUBIC))

    pictures = to_uint8(images).cpu().numpy()
    resized = [[shrink(channel) for channel in picture.transpose(2, 0, 1)] for picture in pictures]
    return (torch.from_numpy(np.array(resized)).to(images.device).clamp(0, 255) - 128) / 128


def check_extractor(extractor: nn.Module) -> nn.Module:
    """The extractor itself, if it is in evaluation mode.

    Raises:
        ConfigError: it is in training mode.
    """
    if extractor.training:
        raise ConfigError("the extractor is in training mode, so features depend on the batch; call extractor.eval().")
    return extractor
