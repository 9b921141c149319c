"""A small face embedder in the style of ArcFace (Deng et al., CVPR 2019), and ReF-LDM's identity preprocessing.

The network is an "improved residual" network (batch norm first, PReLU inside) with a BN-linear-BN head. The stem has
stride 2, so a 112-px face costs what a 56-px face would. The margin loss belongs to training and lives there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError

_CROP = 0.0625  # the share cut off at each side: 32 of 512 pixels


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


class _ResidualBlock(nn.Module):
    """BN, conv, BN, PReLU, conv with the stride, BN, plus a shortcut: (B, C_in, h, w) to (B, C, h/stride, w/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            _conv3x3(in_channels, channels),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            _conv3x3(channels, channels, stride),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class FaceEmbedder(ModelMixin, ConfigMixin):
    """Maps faces to unit vectors whose cosine says whether two faces are the same person.

    Parameters
    ----------
    widths : channels of the stages; the first is also the stem's.
    blocks : residual blocks of each stage; the first block of a stage halves the resolution.
    embedding_dim : D.
    input_size : side of the square input in pixels.
    dropout : probability in the head, during training only.

    Raises
    ------
    ConfigError : `widths` and `blocks` differ in length, or the input is too small for that many stages.
    """

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 192),
        blocks: Sequence[int] = (1, 2, 2, 1),
        embedding_dim: int = 256,
        input_size: int = 112,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths or min(blocks) < 1:
            raise ConfigError(
                f"widths {tuple(widths)} and blocks {tuple(blocks)} must name the same stages, each with a block."
            )
        self.stem = nn.Sequential(_conv3x3(3, widths[0], stride=2), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]))
        side, channels = (input_size + 1) // 2, widths[0]
        self.stages = nn.ModuleList()
        for width, count in zip(widths, blocks, strict=True):
            rest = [_ResidualBlock(width, width, stride=1) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(_ResidualBlock(channels, width, stride=2), *rest))
            side, channels = (side + 1) // 2, width
        if side < 2:
            raise ConfigError(
                f"input_size={input_size} leaves {side} pixel after {len(widths)} stages; "
                "use a larger input or fewer stages."
            )
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(channels * side * side, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, return_taps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Embed preprocessed faces.

        Parameters
        ----------
        x : (B, 3, input_size, input_size) RGB in [-1, 1], from `preprocess`.
        return_taps : also return the output of every stage, the coarsest last.

        Returns
        -------
        (B, embedding_dim) of unit length; with taps: that and the list of (B, width, side, side).

        Raises
        ------
        ImageContractError : another shape.
        """
        size = self.config.input_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ImageContractError(
                f"the embedder takes (B, 3, {size}, {size}), got {tuple(x.shape)}; "
                "call embedder.preprocess(images) first, or embedder.embed(images) for both."
            )
        x, taps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        embedding = F.normalize(self.head(x), dim=1)
        return (embedding, taps) if return_taps else embedding

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """PDGrad's [u_1, u_2, u_3, u_4] (eq. 12, 17) of aligned faces (B, 3, H, W) in [-1, 1]; differentiable.

        The outputs of the first three stages, (B, width, side, side), and the embedding (B, embedding_dim). A network
        of fewer stages raises ConfigError.
        """
        if len(self.stages) < 3:
            raise ConfigError(f"guidance needs three stages to tap, this embedder has {len(self.stages)}.")
        embedding, taps = self(self.preprocess(images), return_taps=True)
        return [*taps[:3], embedding]

    def preprocess(self, images: Tensor) -> Tensor:
        """Crop and resize aligned faces, (B, 3, H, W) in [-1, 1], to this network's input; see `crop_and_resize`."""
        return crop_and_resize(images, self.config.input_size)

    def embed(self, images: Tensor) -> Tensor:
        """`preprocess`, then `forward`: (B, 3, H, W) in [-1, 1] to (B, embedding_dim) of unit length."""
        return self(self.preprocess(images))


def crop_and_resize(images: Tensor, size: int = 112) -> Tensor:
    """ReF-LDM's identity preprocessing: cut 1/16 off every side, then average areas to `size` x `size`.

    Rows int(0.0625 h) to int(0.9375 h), columns likewise: 32:480 of 512, 8:120 of 128. The identity loss and the IDS
    metric both use it.

    Parameters
    ----------
    images : (B, 3, H, W) RGB in network range [-1, 1], aligned as in FFHQ.
    size : side of the result.

    Returns
    -------
    (B, 3, size, size) in the same range; differentiable.

    Raises
    ------
    ImageContractError : not a batch of RGB images.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ImageContractError(
            f"faces must be (B, 3, H, W), got {tuple(images.shape)}; a single image needs images[None]."
        )
    rows, columns = (slice(int(_CROP * side), int((1 - _CROP) * side)) for side in images.shape[-2:])
    return F.adaptive_avg_pool2d(images[..., rows, columns], (size, size))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of embeddings row by row: two of (..., D) to (...) in [-1, 1]; 1 is the same direction."""
    return F.cosine_similarity(a, b, dim=-1)
