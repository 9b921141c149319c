"""ArcFace's IResNet (Deng et al., CVPR 2019) in the structure and with the names of the published PyTorch checkpoints.

A stem that keeps the resolution, four stages that halve it, and a BN-linear-BN head. Blocks begin with a batch norm,
have one PReLU inside and none after the addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.recognition import SIDE, RecogniserMixin, check_alignment, check_crops

WIDTHS = (64, 128, 256, 512)

DEPTHS: Mapping[int, tuple[int, int, int, int]] = MappingProxyType(
    {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}
)
"""Blocks of the four stages of each published depth; read-only."""

STEM = "prelu"
TAPS = (STEM, "layer1.1", "layer2.1")
"""PDGrad's u_1, u_2, u_3, called conv1_1, conv2_2 and conv3_2 there: the stem after its batch norm and PReLU, the
second block of the first stage, the second block of the second. The paper names neither the depth nor the modules; this
is the reading by which ResNet papers count."""


class _Block(nn.Module):
    """BN, conv, BN, PReLU, conv with the stride, BN, plus the shortcut; nothing after the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-5)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=1e-5)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) to (B, C, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(RecogniserMixin, ModelMixin, ConfigMixin):
    """ArcFace's recogniser: faces to vectors whose angle says whether two faces are the same person.

    Parameters
    ----------
    layers : blocks of the four stages; `DEPTHS[50]` and so on are the published ones.
    num_features : D, length of the embedding.
    alignment : how pictures reach the 112-pixel door, one of `refbfr_core.models.recognition.ALIGNMENTS`.
    taps : three feature maps for guidance, "prelu" (the stem) or "layerN.M" (block M, from 0, of stage N, from 1).

    Raises
    ------
    ConfigError : not four stages with a block each. UnknownNameError : no such alignment or tap.
    """

    @register_to_config
    def __init__(
        self,
        layers: Sequence[int] = DEPTHS[50],
        num_features: int = 512,
        alignment: str = "resize",
        taps: Sequence[str] = TAPS,
    ) -> None:
        super().__init__()
        if len(layers) != len(WIDTHS) or min(layers) < 1:
            raise ConfigError(f"layers={tuple(layers)} must give four stages at least one block each, as DEPTHS[50].")
        check_alignment(alignment)
        self.alignment, self.taps = alignment, tuple(taps)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], eps=1e-5)
        self.prelu = nn.PReLU(WIDTHS[0])
        channels = WIDTHS[0]
        for stage, (width, count) in enumerate(zip(WIDTHS, layers, strict=True), 1):
            rest = [_Block(width, width, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(_Block(channels, width, stride=2), *rest))
            channels = width
        side = SIDE >> len(WIDTHS)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-5)
        self.fc = nn.Linear(channels * side * side, num_features)
        # Published checkpoints freeze this norm's scale at 1, so that no feature can grow on its own.
        self.features = nn.BatchNorm1d(num_features, eps=1e-5)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad_(False)
        known = [STEM, *(name for name, _ in self.blocks())]
        for tap in self.taps:
            if tap not in known:
                raise unknown_name("feature map of this IResNet", tap, known)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The residual blocks in order, by name: "layer1.0" and so on."""
        for stage in range(1, len(WIDTHS) + 1):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                yield f"layer{stage}.{index}", block

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, 112, 112) RGB crops in [-1, 1] to raw embeddings (B, D), not of unit length.

        Raises ImageContractError for another shape; `embed` and `guidance_features` take pictures of any size.
        """
        return self.tapped(crops)[1]

    def tapped(self, crops: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `forward`, with the feature maps named by `taps`, (B, C, h, w) each, in that order."""
        check_crops(crops)
        x = self.prelu(self.bn1(self.conv1(crops)))
        kept = {STEM: x} if STEM in self.taps else {}
        for name, block in self.blocks():
            x = block(x)
            if name in self.taps:
                kept[name] = x
        embedding = self.features(self.fc(torch.flatten(self.bn2(x), 1)))
        return [kept[name] for name in self.taps], embedding
