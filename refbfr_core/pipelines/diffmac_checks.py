"""What DiffMAC's pipeline refuses: networks that do not fit each other, and calls that cannot work."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.images import check_images
from refbfr_core.models.modulation import FeatureModulation, encoder_tensors
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.models.second_stage import SecondStage

IDENTITIES = ("auto", "own", "references")
"""Whose identity a call injects: the references' where there are any and else X_D1's; X_D1's; the references'."""


def check_networks(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    modulation: FeatureModulation,
    second: SecondStage,
    unet_two: UNet2DConditionModel | None,
    embedder: nn.Module | None,
    prompt: PromptEmbedding,
) -> None:
    """Raises ConfigError unless denoisers, modulations, bottleneck, embedder and prompt fit the autoencoder's latents
    and each other."""
    width = vae.config.latent_channels
    for name, network in (("unet", unet), ("unet_two", unet if unet_two is None else unet_two)):
        channels = (network.config.in_channels, network.config.out_channels)
        if channels != (width, width):
            raise ConfigError(
                f"the {name} maps {channels[0]} to {channels[1]} channels, latents of the vae have {width}; use "
                "networks that were trained together."
            )
        if network.config.sample_size != unet.config.sample_size or not isinstance(network.config.sample_size, int):
            raise ConfigError(
                f"the {name}'s sample_size is {network.config.sample_size!r}; one int for both stages says how large "
                "pictures are. Create the UNet2DConditionModel with sample_size=<side of its latents>."
            )
        given = prompt().shape[-1]
        if network.config.cross_attention_dim != given:
            raise ConfigError(
                f"the prompt embedding has width {given}, the {name} takes {network.config.cross_attention_dim}; use "
                "the prompt of this network's text encoder."
            )
    _check_modulation("modulation", modulation, unet)
    _check_modulation("second stage's modulation", second.modulation, unet if unet_two is None else unet_two)
    if second.bottleneck is not None:
        _check_bottleneck(second, 2 * width, unet.config.sample_size, embedder)


def _check_modulation(name: str, modulation: FeatureModulation, unet: UNet2DConditionModel) -> None:
    made_for = list(zip(modulation.config.channels, modulation.config.levels, strict=True))
    own = encoder_tensors(unet)
    if made_for != own or modulation.config.condition_channels != unet.config.in_channels:
        raise ConfigError(
            f"the {name} was made for encoder tensors {made_for} (channels, level) and conditions of "
            f"{modulation.config.condition_channels} channels, its denoiser has {own} and {unet.config.in_channels}; "
            "use FeatureModulation.for_network(unet, ...)."
        )


def _check_bottleneck(second: SecondStage, channels: int, side: int, embedder: nn.Module | None) -> None:
    own = second.bottleneck.config
    if own.channels != channels or own.statistics_side not in (0, side):
        raise ConfigError(
            f"the bottleneck was made for moments of {own.channels} channels and statistics of side "
            f"{own.statistics_side}, here they have {channels} and side {side}; use one trained with this vae."
        )
    if own.compensation != "identity":
        return
    if embedder is None:
        raise ConfigError("this second stage injects an identity; pass the embedder it was trained with.")
    width = getattr(getattr(embedder, "config", None), "embedding_dim", own.identity_dim)
    if width != own.identity_dim:
        raise ConfigError(
            f"the bottleneck takes identities of {own.identity_dim} numbers, the embedder gives {width}; pass the "
            "embedder it was trained with."
        )


def check_identity(
    second: SecondStage, identity: str | Tensor, references: Tensor | None, blend: float, count: int
) -> None:
    """Raises unless a call's identity can be injected: ConfigError, UnknownNameError for another name.

    Args:
        identity: a name of `IDENTITIES`, or embeddings (B, D). references: checked ones, or None.
        blend: w in [0, 1]. count: B.
    """
    number = isinstance(blend, (int, float)) and not isinstance(blend, bool)
    if not number or not 0 <= blend <= 1:
        raise ConfigError(
            f"blend is {blend!r}; expected a number in [0, 1]: 0 for the restoration's own identity, 1 for the other."
        )
    if isinstance(identity, Tensor):
        expected = (count, second.bottleneck.config.identity_dim) if second.compensation == "identity" else None
        _injects(second, "identity=<tensor>")
        if identity.shape != expected or not identity.is_floating_point():
            raise ConfigError(
                f"identity is {identity.dtype} of shape {tuple(identity.shape)}; expected embeddings {expected}, such "
                "as pipe.identity(pictures) gives."
            )
        if not bool(torch.isfinite(identity).all()) or bool((identity.norm(dim=1) == 0).any()):
            raise ConfigError("identity holds NaN, infinity or a row of zeros, which has no direction to inject.")
        return
    if identity not in IDENTITIES:
        raise unknown_name("identity", identity, IDENTITIES)
    if identity == "references":
        _injects(second, "identity='references'")
        if references is None:
            raise ConfigError("identity='references' came without references; pass references=..., or identity='auto'.")


def _injects(second: SecondStage, what: str) -> None:
    if second.compensation != "identity":
        raise ConfigError(
            f"{what} came, but this second stage ({second.config.label or second.compensation}) injects no identity; "
            "use one whose compensation is 'identity'."
        )


def check_share(second: SecondStage, share: Any, shape: tuple[int, ...]) -> None:
    """Raises ConfigError unless `share`, a lambda instead of the network's own, is None, a number in [0, 1], or a
    tensor of such numbers that broadcasts to the moments' `shape` (B, 2C, h, w)."""
    if share is None:
        return
    if second.bottleneck is None:
        raise ConfigError("this second stage has no bottleneck (2AdaIN), so there is no lambda to set.")
    if isinstance(share, Tensor):
        try:
            fits = torch.broadcast_shapes(share.shape, shape) == torch.Size(shape)
        except RuntimeError:
            fits = False
        if not fits or not share.is_floating_point():
            raise ConfigError(f"share is {share.dtype} of shape {tuple(share.shape)}; it must broadcast to {shape}.")
        inside = bool(((share >= 0) & (share <= 1)).all())
    else:
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise ConfigError(f"share is {share!r}; expected a number in [0, 1], a tensor of them, or None.")
        inside = math.isfinite(share) and 0 <= share <= 1
    if not inside:
        raise ConfigError(
            "lambda must lie in [0, 1]: 1 keeps everything of the first restoration, 0 nothing. "
            + ("The tensor's values do not." if isinstance(share, Tensor) else f"share={share!r} does not.")
        )


def check_first(first: Any, second: SecondStage, shape: tuple[int, ...]) -> Tensor:
    """Returns `first`, X_D1 made before, a picture for each of lq of `shape` (B, 3, H, W).

    Raises ImageContractError for pictures that break the contract or do not fit, ConfigError where the second stage
    has no Stage I before it.
    """
    if second.config.source == "input":
        raise ConfigError(
            f"this second stage ({second.config.label or 'source input'}) works on the ruined picture, without Stage "
            "I; leave first out."
        )
    check_images(first, "first")
    if tuple(first.shape) != tuple(shape):
        raise ImageContractError(
            f"first is {tuple(first.shape)} for lq of {tuple(shape)}; pass the stage_one that an earlier call returned."
        )
    return first


def check_moments(moments: Tensor, what: str) -> Tensor:
    """Returns moments (B, 2C, h, w), of `what`; raises NonFiniteError for NaN or infinity."""
    finite = torch.isfinite(moments).flatten(1).all(dim=1)
    if bool(finite.all()):
        return moments
    raise NonFiniteError(
        f"the moments of {what} hold NaN or infinity for image(s) {(~finite).nonzero().flatten().tolist()} of the "
        "batch: weights are damaged or overflow in this precision. Reload them with load_pipeline(...), or run in "
        "float32."
    )
