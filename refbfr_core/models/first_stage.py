"""Between pictures and latents: the first stage (VQGAN) of a latent diffusion model, a stock diffusers `VQModel`.

Paper: ReF-LDM, section 3.1, with the VQGAN of Esser et al. (CVPR 2021). Latents are what comes out of the encoder
*before* the codebook; the codebook is looked up when decoding. `patch_size` p folds p x p neighbouring latents into
the channels, so that a U-Net sees fewer, wider pixels.

A first stage with 3*q*q input channels (q > 1) takes pictures whose q x q neighbouring pixels are folded into channels:
the toy profile saves its most expensive resolution that way. The published VQGAN has q = 1. One whose decoder has a
tail (`OutputVQModel`) reads pictures at a half or a quarter of the side at which it renders them.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor

from refbfr_core.errors import ConfigError
from refbfr_core.images import check_images, to_network


def fold_pixels(vq: VQModel, images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) as the first stage takes them, (B, 3*q*q, H/q, W/q); q comes from its input channels.

    For one with n tail layers they are first reduced to 1/2^n of the side, by the mean over areas.
    """
    tail = tail_layers(vq)
    images = F.avg_pool2d(images, 2**tail) if tail else images
    return F.pixel_unshuffle(images, _pixels_a_side(vq.config.in_channels))


def unfold_pixels(vq: VQModel, decoded: Tensor) -> Tensor:
    """Inverse of `fold_pixels` for what the first stage's decoder returns."""
    return F.pixel_shuffle(decoded, _pixels_a_side(vq.config.out_channels))


def pixels_per_latent(vq: VQModel) -> int:
    """How many pixels a side one latent stands for: 8 for the published VQGAN."""
    return _pixels_a_side(vq.config.in_channels) * 2 ** (len(vq.config.block_out_channels) - 1 + tail_layers(vq))


def tail_layers(vq: VQModel) -> int:
    """How often the decoder doubles its picture beyond the side that the encoder reads."""
    return vq.config.get("tail_layers", 0)


def encode_latents(vq: VQModel, images: Tensor, patch_size: int = 1) -> Tensor:
    """Encode images to latents, not quantised.

    Parameters
    ----------
    vq : the first stage; its `config.scaling_factor` multiplies the result.
    images : (B, 3, H, W) float32 in [0, 1] (the image contract).
    patch_size : p >= 1.

    Returns
    -------
    (B, C*p*p, h/p, w/p) with C and (h, w) the first stage's own latent channels and size; differentiable.

    Raises
    ------
    ImageContractError : the images break the contract.
    ConfigError : the latents cannot be cut into patches of p x p.
    """
    network_images = to_network(check_images(images)).to(vq.device, vq.dtype)
    latents = vq.encode(fold_pixels(vq, network_images)).latents * vq.config.scaling_factor
    height, width = latents.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"latents of {height}x{width} cannot be cut into patches of {patch_size}; "
            f"use images whose sides give latents divisible by {patch_size}."
        )
    return F.pixel_unshuffle(latents, patch_size)


def decode_latents(vq: VQModel, latents: Tensor, patch_size: int = 1, quantize: bool = True) -> Tensor:
    """Decode latents to images in network range; the counterpart of `encode_latents`.

    Parameters
    ----------
    vq : the first stage.
    latents : (B, C*p*p, h/p, w/p), scaled by `vq.config.scaling_factor`.
    patch_size : p, as in `encode_latents`.
    quantize : first replace each latent by its nearest codebook vector, as ReF-LDM always does; gradients pass
        straight through the look-up.

    Returns
    -------
    (B, 3, H, W), nominally in [-1, 1] but not clamped (`refbfr_core.images.from_network` does that); differentiable.

    Raises
    ------
    ConfigError : the number of channels does not fit the first stage and patch size.
    """
    expected = vq.config.latent_channels * patch_size**2
    if latents.ndim != 4 or latents.shape[1] != expected:
        raise ConfigError(
            f"latents of shape {tuple(latents.shape)} do not fit: this first stage with patch_size={patch_size} "
            f"takes (B, {expected}, h, w); use the patch size they were encoded with."
        )
    latents = F.pixel_shuffle(latents, patch_size) / vq.config.scaling_factor
    return unfold_pixels(vq, vq.decode(latents, force_not_quantize=not quantize).sample)


def _pixels_a_side(channels: int) -> int:
    """q for a first stage of 3*q*q channels."""
    q = math.isqrt(channels // 3)
    if q < 1 or 3 * q * q != channels:
        raise ConfigError(f"a first stage of {channels} channels takes no RGB pictures; use 3, 12 or 27 (3*q*q).")
    return q
