"""What an identity could do at most in DiffMAC's bottleneck: the best scales and shifts for a known truth.

Equation 8 turns an identity into one scale gamma and one shift beta a channel, the same at every place. Given R and
lambda, Z of (9) is linear in these sixteen numbers,

    Z = lambda R + (1 - lambda) (gamma F_R + beta),

so those that bring Z nearest to the moments of the truth are a least-squares problem a channel. No embedding and no FC
layers can bring the Z of the same lambda nearer. That is a bound on the squared error of the moments; identity or PSNR
of the picture that Stage II makes of Z may still be higher elsewhere. The pipeline conditions on the mean of the
posterior, so the eight numbers of the log-variances do nothing to its picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.models.bottleneck import BottleneckOutput
from refbfr_core.models.moments import encode_moments, latents_of
from refbfr_core.models.second_stage import SecondStage

ARGUMENTS = ("modulation_config", "bottleneck_config", "source", "label")
"""Of `SecondStage`."""


@dataclass(frozen=True)
class KnownCompensation:
    """A bottleneck whose compensation knows the truth.

    `own` and `best` are its outputs with the identity of X_D1 and with the best numbers, `scale` and `shift` (B, 8)
    these numbers, `target` (B, 8, h, w) the moments of the truth, `first` X_D1. `pipe` takes the best numbers for the
    unit vectors `identity` (B, D) as embeddings.
    """

    own: BottleneckOutput
    best: BottleneckOutput
    scale: Tensor
    shift: Tensor
    target: Tensor
    first: Tensor
    pipe: Any
    identity: Tensor

    def restore(self, lq: Tensor, **options: Any) -> Any:
        """Stage II from the best Z: a call of `pipe` with these pictures; `options` are its keywords, such as seed."""
        return self.pipe(lq, first=self.first, identity=self.identity, **options)


def best_modulation(output: BottleneckOutput, moments: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """gamma and beta (B, 8) that bring Z of (9) nearest to `target`, in the mean square over all places of a channel.

    Where lambda is 1 nothing depends on them, and they come out as 0.

    Args:
        output: of the bottleneck, for lambda and F_R. moments: R, target: moments of the truth; all (B, 8, h, w).

    Raises:
        ImageContractError: shapes that differ.
    """
    if not output.share.shape == moments.shape == target.shape:
        raise ImageContractError(
            f"lambda is {tuple(output.share.shape)}, R {tuple(moments.shape)} and the target {tuple(target.shape)}; "
            "all three must have one shape."
        )
    # Two unknowns a channel and a thousand places: float64 and the CPU's solver, which takes columns of zeros.
    share, normalised, r, t = (
        each.detach().to("cpu", torch.float64).flatten(2) for each in (output.share, output.normalised, moments, target)
    )
    columns = torch.stack([(1 - share) * normalised, 1 - share], dim=-1)
    solution = torch.linalg.lstsq(columns, (t - share * r)[..., None], driver="gelsd").solution[..., 0]
    return tuple(part.to(moments) for part in solution.unbind(-1))


def fixed_modulation(second: SecondStage, scale: Tensor, shift: Tensor) -> SecondStage:
    """A second stage that shares everything but its FC layers: face i of a batch gets row i of `scale` and `shift`.

    It takes the unit vectors ``torch.eye(B, D)`` as embeddings, so that they go the way of all others.

    Args:
        second: with an identity compensation of D numbers. scale, shift: (B, 8), B at most D.

    Raises:
        ConfigError: another compensation, or more faces. ImageContractError: other shapes.
    """
    if second.compensation != "identity":
        raise ConfigError(
            f"this second stage compensates with {second.compensation!r}; only 'identity' has scales and shifts."
        )
    channels = second.bottleneck.config.channels
    if scale.shape != shift.shape or scale.ndim != 2 or scale.shape[1] != channels:
        raise ImageContractError(
            f"scale is {tuple(scale.shape)} and shift {tuple(shift.shape)}; expected (B, {channels}) for both."
        )
    if len(scale) > second.bottleneck.config.identity_dim:
        raise ConfigError(
            f"{len(scale)} faces need as many unit vectors, and embeddings have only "
            f"{second.bottleneck.config.identity_dim} numbers; take fewer faces at a time."
        )
    with torch.random.fork_rng(devices=[]):  # its random initial values go nowhere
        made = SecondStage(**{name: second.config[name] for name in ARGUMENTS})
    made.modulation = second.modulation
    made.bottleneck.conv = second.bottleneck.conv
    made.bottleneck.mean, made.bottleneck.std = second.bottleneck.mean, second.bottleneck.std
    with torch.no_grad():
        for layer, values in ((made.bottleneck.scale, scale), (made.bottleneck.shift, shift)):
            layer.weight.zero_()[:, : len(values)] = values.T
            layer.bias.zero_()
    # The method of ModelMixin warns of every change of type.
    return torch.nn.Module.to(made, second.device, second.dtype).train(second.training)


@torch.no_grad()
def best_compensation(pipe: Any, truth: Tensor, first: Tensor) -> KnownCompensation:
    """Replace the identity of a pipeline's second stage by the best sixteen numbers for each face.

    Args:
        pipe: a DiffMAC pipeline whose second stage injects an identity. truth, first: clean pictures and their X_D1,
            (B, 3, H, W) in [0, 1].

    Raises:
        ConfigError: a second stage without identity compensation. ImageContractError: the pictures break the contract.
    """
    own = pipe.bottleneck(first)
    target = encode_moments(pipe.vae, truth)
    scale, shift = best_modulation(own, encode_moments(pipe.vae, first), target)
    known = pipe.with_second(fixed_modulation(pipe.second, scale, shift), pipe.unet_two)
    known.set_progress_bar_config(disable=True)
    identity = torch.eye(len(first), pipe.second.bottleneck.config.identity_dim)
    return KnownCompensation(
        own, known.bottleneck(first, identity=identity), scale, shift, target, first, known, identity
    )


def latent_error(moments: Tensor, target: Tensor, scaling_factor: float) -> Tensor:
    """The integrand of L_rec for each face, (B,): mean squared difference of the scaled latents of two moments."""
    one, other = (latents_of(each, scaling_factor) for each in (moments, target))
    return (one - other).square().mean((1, 2, 3))
