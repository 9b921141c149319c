"""What a reference cache and a sample must fulfil before a network is called with them; each failure says its cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from refbfr_core.errors import CacheError
from refbfr_core.models.cachekv import base_network

if TYPE_CHECKING:
    from refbfr_core.models.reference_cache import ReferenceCache


def check_latents(network: nn.Module, latents: Tensor) -> None:
    """Raise `CacheError` unless `latents` are (P, R, C, h, w) that this network takes."""
    if not isinstance(latents, Tensor) or latents.ndim != 5:
        came = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise CacheError(
            f"reference latents must be a tensor (people, references, C, h, w), got {came}; "
            "the (references, C, h, w) of one person needs [None]."
        )
    if 0 in latents.shape:
        raise CacheError(
            f"latents of shape {tuple(latents.shape)} hold no reference; pass cache=None to denoise without references."
        )
    channels, takes, returns = latents.shape[2], network.config.in_channels, network.config.out_channels
    if channels != returns or takes != 2 * returns:
        raise CacheError(
            f"reference latents have {channels} channels and the network takes {takes} and returns {returns}; "
            "CacheKV needs C-channel latents and a network from 2C to C channels."
        )
    weight = next(network.parameters())
    mixed_precision = torch.is_autocast_enabled(weight.device.type)
    if latents.device != weight.device or (latents.dtype != weight.dtype and not mixed_precision):
        raise CacheError(
            f"reference latents are {latents.dtype} on {latents.device}, the network {weight.dtype} on "
            f"{weight.device}; use latents.to(unet.device, unet.dtype)."
        )


def check_mask(mask: Tensor | None, latents: Tensor) -> None:
    """Raise `CacheError` unless `mask` is None, or bool or integers from 0 on, one for each reference of `latents`."""
    if mask is None:
        return
    kind = isinstance(mask, Tensor) and not mask.is_floating_point() and not mask.is_complex()
    if not kind or mask.shape != latents.shape[:2]:
        came = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise CacheError(
            f"mask must be bool of shape {tuple(latents.shape[:2])}, or integers that say how often each counts, "
            f"got {came}; True keeps a reference."
        )
    if mask.dtype != torch.bool and bool((mask < 0).any()):
        raise CacheError(f"a reference counts {int(mask.min())} times; use 0 to leave it out, or more.")


def check_cache(unet: nn.Module, sample: Tensor, caches: Sequence[ReferenceCache]) -> None:
    """Raise `CacheError` unless filled caches, one after the other, fit this network and sample."""
    network = base_network(unet)
    refuse_checkpointing(network)
    serve = sum(cache.batch_size for cache in caches)
    if len(sample) != serve:
        people = " and ".join(f"{cache.people} people x {cache.share}" for cache in caches)
        raise CacheError(
            f"the sample has {len(sample)} rows, the cache serves {people}; "
            "use cache.repeat_interleave(k) for k rows a person, or cache.select(rows)."
        )
    for cache in caches:
        if cache.network is None or cache.network() is not network:
            raise CacheError(
                "this cache was built with another network, to which its keys mean nothing; "
                "build it again with ReferenceCache.build(unet, reference_latents)."
            )
        if tuple(sample.shape[-2:]) != cache.latent_size:
            raise CacheError(
                f"the sample is {tuple(sample.shape[-2:])}, the cached references are {cache.latent_size}; "
                "encode both at the same size."
            )
        device = next(iter(cache.layers.values())).keys.device
        if sample.device != device:
            raise CacheError(
                f"the sample is on {sample.device}, the cache on {device}; build it where the network runs."
            )


def refuse_checkpointing(network: nn.Module) -> None:
    """Raise `CacheError` where gradients would be taken through checkpoints."""
    # Checkpointing repeats the forward pass during backward, when the processors are gone: silently wrong gradients.
    if torch.is_grad_enabled() and getattr(network, "is_gradient_checkpointing", False):
        raise CacheError(
            "gradient checkpointing would repeat a pass without its references; "
            "call unet.disable_gradient_checkpointing() first."
        )
