"""DiffMAC's manifold: the moments of a KL autoencoder, and the way from them to the latents of a diffusion and back.

Paper: DiffMAC (Gao et al., 2024), section 3.1. The encoder and its `quant_conv` return, for every place, the mean and
the log-variance of each latent channel: (B, 2C, h, w), 8 x 64 x 64 for a 512-px picture in Stable Diffusion. The
bottleneck works on these *moments*; the diffusions work on the C-channel latent, a draw from (or the mean of) the
diagonal Gaussian that the moments describe, times the autoencoder's `scaling_factor`.

Works with any diffusers `AutoencoderKL`; one with 3*q*q input channels takes pictures folded by q, see `first_stage`.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.images import check_images, to_network
from refbfr_core.models.first_stage import fold_pixels, unfold_pixels

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Range of log-variances, in nats, as in diffusers' `DiagonalGaussianDistribution`."""


def encode_moments(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """E_X: the moments of pictures.

    Parameters
    ----------
    vae : the frozen autoencoder. images : (B, 3, H, W) float32 in [0, 1] (the image contract).

    Returns
    -------
    (B, 2C, H/f, W/f), means before log-variances, not scaled; differentiable.

    Raises
    ------
    ImageContractError : the images break the contract.
    """
    x = to_network(check_images(images)).to(vae.device, vae.dtype)
    return vae.encode(fold_pixels(vae, x)).latent_dist.parameters


def latents_of(moments: Tensor, scaling_factor: float, noise: Tensor | None = None) -> Tensor:
    """The diffusion's latents of moments: the mean ("mode"), or with `noise` a draw, times the scaling factor.

    Parameters
    ----------
    moments : (B, 2C, h, w). scaling_factor : of the autoencoder's config, 0.18215 of Stable Diffusion's.
    noise : (B, C, h, w) standard normal, or None for the mean.

    Returns
    -------
    (B, C, h, w); differentiable, also through the draw.

    Raises
    ------
    ImageContractError : moments that do not come in pairs of mean and log-variance, or noise of another shape.
    """
    if moments.ndim != 4 or moments.shape[1] % 2:
        raise ImageContractError(
            f"moments are {tuple(moments.shape)}, expected (B, 2C, h, w): means before log-variances, as "
            "encode_moments returns them."
        )
    mean, log_variance = moments.chunk(2, dim=1)
    if noise is not None:
        if noise.shape != mean.shape:
            raise ImageContractError(f"noise is {tuple(noise.shape)}, the latents are {tuple(mean.shape)}.")
        mean = mean + (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise
    return mean * scaling_factor


def decode_latent(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) to pictures (B, 3, H, W) in network range, not clamped; differentiable.

    Raises ConfigError for latents of another width.
    """
    if latents.ndim != 4 or latents.shape[1] != vae.config.latent_channels:
        raise ConfigError(
            f"latents of shape {tuple(latents.shape)} do not fit: this autoencoder takes "
            f"(B, {vae.config.latent_channels}, h, w)."
        )
    return unfold_pixels(vae, vae.decode(latents / vae.config.scaling_factor).sample)


class RunningMoments:
    """Mean and standard deviation of a stream of moments by Welford's method (Welford 1962; merged as in Chan et al.
    1979), in float64: mu_QC and sigma_QC of equation 7.

    Parameters
    ----------
    per_channel : one number a channel (small data), or else one a channel and place, as the paper has it at full size.
    """

    def __init__(self, per_channel: bool = True) -> None:
        self.per_channel, self.count = per_channel, 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, moments: Tensor) -> None:
        """Add a batch (B, 2C, h, w); raises ImageContractError for a batch of another shape than those before."""
        x = moments.detach().to("cpu", torch.float64)
        if x.ndim != 4 or not len(x):
            raise ImageContractError(f"moments are {tuple(moments.shape)}, expected a batch (B, 2C, h, w).")
        dims = (0, 2, 3) if self.per_channel else (0,)
        count = x.numel() // x.shape[1] if self.per_channel else len(x)
        mean = x.mean(dims, keepdim=True)[0]
        squares = (x - mean).square().sum(dims, keepdim=True)[0]
        if self._mean is None:
            self._mean, self._squares = torch.zeros_like(mean), torch.zeros_like(squares)
        if mean.shape != self._mean.shape:
            raise ImageContractError(
                f"moments are {tuple(moments.shape)}, those before gave statistics of {tuple(self._mean.shape)}."
            )
        total = self.count + count
        shift = mean - self._mean
        self._mean = self._mean + shift * count / total
        self._squares = self._squares + squares + shift.square() * self.count * count / total
        self.count = total

    @property
    def mean(self) -> Tensor:
        """mu_QC, (2C, 1, 1) per channel or (2C, h, w), float32; raises ConfigError before the first batch."""
        return self._known(self._mean).float()

    @property
    def std(self) -> Tensor:
        """sigma_QC, the shape of `mean`, float32 (the population's: divided by n)."""
        return (self._known(self._squares) / self.count).sqrt().float()

    def _known(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise ConfigError("no moments were added yet; call update with a batch first.")
        return value
