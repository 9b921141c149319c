"""DiffMAC's bottleneck on one number, where everything about it can be computed or drawn, for notebook 09.

The truth T is a draw from N(mu, sigma^2), the first restoration R is T plus an error, Z = lambda R + (1 - lambda) eps,
and r = (R - mu) / sigma. All information is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.bottleneck import COMPENSATIONS, kl_exact

LOGIT_LIMIT = 5.0


@dataclass(frozen=True, eq=False)
class ShareWalk:
    """Trainings of one scalar lambda, a column for each beta: `shares` (steps + 1, B), and at the end of each, over
    fresh draws (B,): the mean squared error `reconstruction`, the `information`, and `kept`, the squared correlation of
    Z and R, which is 1 where R can be read off Z."""

    betas: tuple[float, ...]
    shares: Tensor
    reconstruction: Tensor
    information: Tensor
    kept: Tensor


def passed(share: float, r: float) -> tuple[float, float]:
    """Mean and deviation of p(Z | R) in units of sigma around mu, where the rest is filled with noise."""
    return share * r, 1 - share


def density(z: Tensor, mean: float, std: float) -> Tensor:
    """N(z; mean, std^2)."""
    return torch.exp(-0.5 * ((z - mean) / std).square()) / (std * math.sqrt(2 * math.pi))


def kl_by_draws(share: float, r: float, draws: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """KL(p(Z | R) || q) from draws of Z alone, no formula of it: mean of log p - log q, and its standard error.

    Raises:
        ConfigError: lambda outside [0, 1), where p is no density, or fewer than two draws.
    """
    if not 0 <= share < 1 or draws < 2:
        raise ConfigError(f"share={share} and draws={draws}; expected a lambda in [0, 1) and at least two draws.")
    mean, std = passed(share, r)
    noise = torch.randn(draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = mean + std * noise
    gap = (-0.5 * noise.square() - math.log(std)) - (-0.5 * z.square())
    return float(gap.mean()), float(gap.std() / math.sqrt(draws))


def kl_square(share: Tensor, normalised: Tensor) -> Tensor:
    """Equation 11 with its logarithm read as a square, -(log(1 - lambda))^2: without a lower bound."""
    log = torch.log1p(-share)
    return kl_exact(share, normalised) + log - log.square()


def total_variance(share: Tensor) -> Tensor:
    """Variance of Z over everything, in units of sigma^2, for noise compensation and R ~ N(mu, sigma^2)."""
    return share.square() + (1 - share).square()


def mutual_information(share: Tensor) -> Tensor:
    """I(Z; R) for noise compensation and R ~ N(mu, sigma^2): half the log of total variance over noise variance."""
    return 0.5 * total_variance(share).log() - torch.log1p(-share)


def bound(share: Tensor) -> Tensor:
    """The mean of `kl_exact` over R ~ N(mu, sigma^2). It lies KL(p(Z) || q) above the mutual information."""
    return kl_exact(share, torch.ones_like(share))


def expected_loss(
    share: Tensor, beta: float, compensation: str, error: float, mean: float = 2.0, std: float = 1.0
) -> Tensor:
    """Mean of |Z - T|^2 + beta KL in closed form; for "identity" with the best scale and shift.

    Args:
        share: lambda in [0, 1). error: deviation of R - T. mean, std: of T.

    Raises:
        UnknownNameError: another compensation.
    """
    if compensation not in COMPENSATIONS:
        raise unknown_name("compensation", compensation, COMPENSATIONS)
    if compensation == "identity":
        # A linear function of R fits T best with this error, and lambda R + (1 - lambda) eps can be any of them.
        reconstruction = torch.full_like(share, (std * error) ** 2 / (std**2 + error**2))
    else:
        kept = (1 - share).square()
        reconstruction = share.square() * error**2
        reconstruction = reconstruction + kept * (2 * std**2 if compensation == "noise" else std**2 + mean**2)
    information = kl_exact(share, torch.full_like(share, math.sqrt(1 + (error / std) ** 2)))
    return reconstruction + beta * information


def best_share(beta: float, compensation: str, error: float, mean: float = 2.0, std: float = 1.0) -> float:
    """The lambda in [0, 0.9933] at which `expected_loss` is smallest, from a fine grid."""
    grid = torch.linspace(0, 1 / (1 + math.exp(-LOGIT_LIMIT)), 20_001, dtype=torch.float64)
    return float(grid[expected_loss(grid, beta, compensation, error, mean, std).argmin()])


def train_shares(
    betas: Sequence[float],
    compensation: str,
    *,
    error: float = 0.5,
    mean: float = 2.0,
    std: float = 1.0,
    steps: int = 400,
    batch: int = 256,
    rate: float = 0.05,
    seed: int = 0,
) -> ShareWalk:
    """Train one scalar lambda by gradient descent on |Z - T|^2 + beta KL, once for every beta, with the same draws.

    The logit starts at 2 (lambda 0.88) and is kept in [-5, 5]. "identity" also learns the scale and the shift of
    eps = gamma r + b, which start so that eps is R; a lone number has no identity, so they are two numbers here.

    Raises:
        ConfigError: no beta, or a negative one. UnknownNameError: another compensation.
    """
    if not betas or min(betas) < 0:
        raise ConfigError(f"betas={list(betas)}; expected at least one, each 0 or more.")
    if compensation not in COMPENSATIONS:
        raise unknown_name("compensation", compensation, COMPENSATIONS)
    draws = torch.Generator().manual_seed(seed)
    weights = torch.tensor(betas)
    logit = torch.full((len(betas),), 2.0, requires_grad=True)
    scale = torch.full((len(betas),), float(std), requires_grad=True)
    shift = torch.full((len(betas),), float(mean), requires_grad=True)
    optimizer = torch.optim.Adam([logit, scale, shift], lr=rate)

    def terms(count: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(3, count, 1, generator=draws)
        truth = mean + std * noise[0]
        first = truth + error * noise[1]
        r = (first - mean) / std
        filler = {"identity": scale * r + shift, "noise": mean + std * noise[2], "none": torch.zeros_like(first)}
        share = logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        z = share * first + (1 - share) * filler[compensation]
        kept = _correlation(z.detach(), first) ** 2
        return (z - truth).square().mean(0), kl_exact(share, r).mean(0), kept

    walk = [logit.detach().sigmoid()]
    for _ in range(steps):
        reconstruction, information, _ = terms(batch)
        optimizer.zero_grad()
        (reconstruction + weights * information).sum().backward()
        optimizer.step()
        walk.append(logit.detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid())
    with torch.no_grad():
        return ShareWalk(tuple(betas), torch.stack(walk), *terms(20_000))


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of each column (N, B) with (N, 1): (B,)."""
    one, other = one - one.mean(0), other - other.mean(0)
    return (one * other).mean(0) / (one.square().mean(0) * other.square().mean(0)).sqrt()
