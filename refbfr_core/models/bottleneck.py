"""DiffMAC's manifold information bottleneck (MIB): how much of the first restoration passes, and what fills the rest.

Paper: DiffMAC (Gao et al., 2024), section 3.3, equations 7 to 11, built on the information bottleneck for attribution
(Schulz et al., ICLR 2020). It works on moments (B, 8, h, w), see `moments`:

    F_R = (R - mu_QC) / max(sigma_QC, o)                     (7)
    eps_id = gamma_id * F_R + beta_id                        (8)
    lambda = sigmoid(conv(F_R)),  Z = lambda R + (1 - lambda) eps    (9)

lambda is the share of R that passes: 1 keeps everything, 0 replaces everything by the compensation eps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name

COMPENSATIONS = ("identity", "noise", "none")
"""What takes the place of the share of R that is held back: eps_id of (8), noise with the statistics of clean faces,
or nothing (Z = lambda R)."""
KL_FORMS = ("exact", "printed")


@dataclass(frozen=True)
class BottleneckOutput:
    """`moments` Z, `share` lambda, `normalised` F_R, `compensation` eps (zeros for "none"), all (B, 8, h, w), and
    `information`, the integrand of (11), in nats a number, the same shape."""

    moments: Tensor
    share: Tensor
    normalised: Tensor
    compensation: Tensor
    information: Tensor


def kl_exact(share: Tensor, normalised: Tensor) -> Tensor:
    """Divergence of N(lambda R + (1 - lambda) mu, (1 - lambda)^2 sigma^2) from N(mu, sigma^2), in nats, elementwise.

    With r = (R - mu) / sigma: -log(1 - lambda) + [(1 - lambda)^2 + (lambda r)^2 - 1] / 2. 0 at lambda = 0, increasing,
    infinite at lambda = 1. Where the compensation is noise its mean over R is an upper bound of the mutual information
    I(Z; R). With eps_id, Z is a function of R alone and this is a price on lambda, nothing more.

    Parameters
    ----------
    share : lambda in [0, 1]. normalised : r; the shapes broadcast.
    """
    return -torch.log1p(-share) + 0.5 * ((1 - share).square() + (share * normalised).square() - 1)


def kl_printed(share: Tensor, normalised: Tensor) -> Tensor:
    """Equation 11 as the paper prints it: the factor 1/2 does not reach the logarithm, whose term is twice too large.

    `kl_exact` minus log(1 - lambda). Same minimum at lambda = 0, but with slope 1 there.
    """
    return kl_exact(share, normalised) - torch.log1p(-share)


class ManifoldBottleneck(ModelMixin, ConfigMixin):
    """The bottleneck: one convolution for lambda, two linear layers for the identity, fixed statistics of clean faces.

    Args:
        channels: of the moments, 8.
        identity_dim: width of the identity embedding, 512 of ArcFace. Only the identity compensation has FC layers.
        compensation: a name of `COMPENSATIONS`. kl: a name of `KL_FORMS`.
        statistics_side: side of the statistics, 64 as published (one number a channel and place); 0 for one a channel.
        min_std: o of (7).
        bias: of lambda's convolution at the start; 2 passes 88 %. Its weights start a thousandth of the usual size.
        logit_limit: the logit of lambda is kept within +- this, lambda below 0.9933, because (11) diverges at 1.

    Raises:
        UnknownNameError: another compensation or form.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 8,
        identity_dim: int = 512,
        compensation: str = "identity",
        kl: str = "exact",
        statistics_side: int = 64,
        min_std: float = 0.01,
        bias: float = 2.0,
        logit_limit: float = 5.0,
    ) -> None:
        super().__init__()
        if compensation not in COMPENSATIONS:
            raise unknown_name("compensation", compensation, COMPENSATIONS)
        if kl not in KL_FORMS:
            raise unknown_name("form of the divergence", kl, KL_FORMS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.mul_(1e-3)
            self.conv.bias.fill_(bias)
        if compensation == "identity":
            self.scale, self.shift = nn.Linear(identity_dim, channels), nn.Linear(identity_dim, channels)
            for layer in (self.scale, self.shift):
                nn.init.normal_(layer.weight, std=1e-3)
        side = statistics_side or 1
        self.register_buffer("mean", torch.zeros(channels, side, side))
        self.register_buffer("std", torch.ones(channels, side, side))
        self._start_from_statistics()  # not set_statistics: its checks need numbers, the meta device has none

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix mu_QC and sigma_QC (8, 1, 1) or (8, h, w), and let the FC layers start from them, so that eps_id is R.

        Raises ConfigError for another shape, values that are not finite, or a negative deviation.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape or not bool(torch.isfinite(value).all()):
                raise ConfigError(
                    f"{name} has shape {tuple(value.shape)}, expected finite numbers {tuple(self.mean.shape)}; use "
                    "RunningMoments with the same per_channel."
                )
        if bool((std < 0).any()):
            raise ConfigError("standard deviations must be 0 or more.")
        self.mean.copy_(mean)
        self.std.copy_(std)
        self._start_from_statistics()

    @torch.no_grad()
    def _start_from_statistics(self) -> None:
        if self.config.compensation == "identity":
            self.scale.bias.copy_(self.floor_std.mean((1, 2)))
            self.shift.bias.copy_(self.mean.mean((1, 2)))

    @property
    def floor_std(self) -> Tensor:
        """max(sigma_QC, o), the shape of `std`."""
        return self.std.clamp_min(self.config.min_std)

    def normalise(self, moments: Tensor) -> Tensor:
        """Equation 7: F_R of moments (B, 8, h, w). Raises ImageContractError for other moments."""
        channels, side = self.mean.shape[0], self.mean.shape[-1]
        if moments.ndim != 4 or moments.shape[1] != channels or (side > 1 and moments.shape[2:] != (side, side)):
            where = f"{side}, {side}" if side > 1 else "h, w"
            raise ImageContractError(f"moments are {tuple(moments.shape)}, expected (B, {channels}, {where}).")
        return (moments - self.mean) / self.floor_std

    def forward(
        self,
        moments: Tensor,
        identity: Tensor | None = None,
        noise: Tensor | None = None,
        share: Tensor | float | None = None,
    ) -> BottleneckOutput:
        """Equations 7 to 9 and the integrand of 11.

        Args:
            moments: R (B, 8, h, w).
            identity: (B, D) embedding F_ID, for the identity compensation only.
            noise: (B, 8, h, w) standard normal, for the noise compensation only.
            share: a lambda in [0, 1] to use instead of the network's own, a number or a tensor that broadcasts to R. At
                exactly 1 the information is infinite.

        Raises:
            ConfigError: what the compensation needs is missing, or a share outside [0, 1]. ImageContractError: shapes.
        """
        normalised = self.normalise(moments)
        if share is None:
            limit = self.config.logit_limit
            share = self.conv(normalised).clamp(-limit, limit).sigmoid()
        else:
            share = torch.as_tensor(share, dtype=moments.dtype, device=moments.device)
            if not bool(((share >= 0) & (share <= 1)).all()):
                raise ConfigError("lambda must lie in [0, 1]: 1 keeps everything of the first restoration, 0 nothing.")
            share = share.expand_as(moments)
        compensation = self._compensation(normalised, identity, noise)
        information = (kl_exact if self.config.kl == "exact" else kl_printed)(share, normalised)
        return BottleneckOutput(
            share * moments + (1 - share) * compensation, share, normalised, compensation, information
        )

    def _compensation(self, normalised: Tensor, identity: Tensor | None, noise: Tensor | None) -> Tensor:
        kind = self.config.compensation
        if kind == "none":
            return torch.zeros_like(normalised)
        if kind == "noise":
            if noise is None or noise.shape != normalised.shape:
                raise ConfigError(f"this bottleneck compensates with noise; pass noise of {tuple(normalised.shape)}.")
            return self.mean + self.floor_std * noise
        expected = (len(normalised), self.config.identity_dim)
        if identity is None or identity.shape != expected:
            came = None if identity is None else tuple(identity.shape)
            raise ConfigError(f"this bottleneck injects an identity; pass an embedding {expected}, not {came}.")
        # (8): eight scales and eight shifts a face, the same at every place.
        return self.scale(identity)[..., None, None] * normalised + self.shift(identity)[..., None, None]
