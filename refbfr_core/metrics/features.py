"""Distances between a drawn face and its restoration in the features of shipped networks.

`toy_lpips` is LPIPS with the network "perceptual". That network is a training loss too, of LD-BFR's VQGANs for example,
and a loss can be gamed by what it trained. `texture_distance` asks a network that took part in no training of a
restorer and in no guidance: the judge.

Of the judge only texture statistics are compared, not its features place by place. Normalised place by place as in
LPIPS, these count a brightening by 0.05, which is hard to see, like a blur of 2 to 3 pixels of 128, and a shift by one
pixel like a blur of 2; features of random networks do the same. The whitened statistics rank the shift below a blur of
0.5 pixels, and the brightening below one of 1.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refbfr_core.errors import ImageContractError
from refbfr_core.images import to_network
from refbfr_core.metrics.masks import binary_mask

SIDE = 128
"""Side of the pictures that the whitening of `texture_distance` was fitted to."""

_CHUNK = 32


def toy_lpips(restored: Tensor, target: Tensor, network: nn.Module | None = None) -> Tensor:
    """LPIPS (Zhang et al., CVPR 2018) with the small network that was trained on drawn faces.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].
        network: a `refbfr_core.models.PerceptualFeatures` in evaluation mode; the shipped one if not given.

    Returns:
        (B,) at least 0; 0 for identical pictures.

    Raises:
        ImageContractError: pictures too small for the network. WeightsError: the shipped network is not there.
    """
    if network is None:
        from refbfr_core.weights import load_network

        network = load_network("perceptual", device=restored.device)
    pairs = zip(to_network(restored).split(_CHUNK), to_network(target).split(_CHUNK), strict=True)
    return torch.cat([network.perceptual_distance(mine, truth) for mine, truth in pairs])


def toy_face_lpips(
    restored: Tensor, target: Tensor, mask: Tensor | None = None, network: nn.Module | None = None
) -> Tensor:
    """`toy_lpips` of two pictures whose background is black: `refbfr_core.metrics.perceptual.face_lpips` for drawings.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W), the face in the true picture, such as the renderer's `face_mask`; at least 0.5 counts.
        network: see :func:`toy_lpips`.

    Raises:
        ConfigError: no mask, one of another shape, or an empty one. Others: see :func:`toy_lpips`.
    """
    face = binary_mask(mask, restored, "flpips-toy")
    return toy_lpips(restored * face, target * face, network=network)


def texture_distance(restored: Tensor, target: Tensor, features: nn.Module | None = None) -> Tensor:
    """Root mean square difference of two pictures' whitened texture statistics.

    The statistics are mean and logarithm of the deviation of every channel behind the judge's stem and first stage,
    whitened by clean drawn faces, so that 1 is a difference as large as faces spread. Where in the picture a texture
    is, does not matter: too soft, too noisy and off-colour pictures differ, a shifted one hardly.

    Args:
        restored, target: (B, 3, 128, 128) in [0, 1].
        features: a `refbfr_core.metrics.textures.TextureFeatures`, to avoid loading it for every batch.

    Returns:
        (B,) float64, at least 0; 0 for identical pictures.

    Raises:
        ImageContractError: pictures of another size. WeightsError: the judge or the whitening is not there.
    """
    if restored.shape[-2:] != (SIDE, SIDE):
        raise ImageContractError(
            f"textures has statistics of {SIDE} x {SIDE} pictures, got {tuple(restored.shape[-2:])}; resize them."
        )
    if features is None:
        from refbfr_core.metrics.textures import load_textures

        features = load_textures(restored.device)
    return (features(restored) - features(target)).square().mean(dim=1).sqrt()
