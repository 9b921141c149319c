"""What all reference mechanisms have in common: one door for references, one for denoising (ReF-LDM, Table 2).

A *mechanism* wraps a stock denoising U-Net. ``prepare`` takes the references of a whole restoration and does, once,
whatever does not depend on the timestep; ``forward`` is one denoising call. A training or a sampler needs no more.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.errors import CacheError, ConfigError
from refbfr_core.models.cache_checks import check_latents


@dataclass(frozen=True, eq=False, repr=False)
class Context:
    """The prepared references of P people, for the mechanism that made it.

    Attributes
    ----------
    owner : weak reference to that mechanism.
    references : R, masked ones included; 0 without references, and then the context fits every batch.
    people, share : a batch has ``people * share`` rows, each person serving ``share`` consecutive ones.
    latent_size : (h, w) of a reference latent.
    state : whatever the mechanism keeps.
    """

    owner: weakref.ref[nn.Module]
    references: int = 0
    people: int = 0
    share: int = 1
    latent_size: tuple[int, int] = (0, 0)
    state: Any = None

    def repeat_interleave(self, k: int) -> Context:
        """A context for k rows a person, in the order of `torch.repeat_interleave`; nothing is copied here."""
        if k < 1:
            raise CacheError(f"a context cannot be repeated {k} times; use k >= 1.")
        return replace(self, share=self.share * k)

    def __repr__(self) -> str:
        if not self.references:
            return "Context(no references)"
        return f"Context({self.people} people x {self.references} references, {self.share} rows each)"


class ReferenceMechanism(nn.Module):
    """A denoising U-Net without references; subclasses let references in.

    Parameters
    ----------
    unet : a stock `UNet2DModel` from 2C to C channels. It is copied; the copy keeps its weights.

    Raises
    ------
    ConfigError : another kind of network.
    """

    name: ClassVar[str] = "none"
    max_references: int | None = None
    """Most references of a person; None: any number."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        channels = getattr(getattr(unet, "config", None), "out_channels", None)
        if not isinstance(unet, UNet2DModel) or unet.config.in_channels != 2 * channels:
            taken = getattr(getattr(unet, "config", None), "in_channels", "no known number of")
            raise ConfigError(
                f"a {type(unet).__name__} from {taken} to {channels} channels came; reference mechanisms wrap a "
                "UNet2DModel from 2C to C channels: the noisy latent and the low-quality latent."
            )
        self.unet = copy.deepcopy(unet)

    def prepare(self, reference_latents: Tensor | None, mask: Tensor | None = None) -> Context:
        """Run once for a restoration.

        Parameters
        ----------
        reference_latents : (P, R, C, h, w) in the unit of the sample's latents; None or R = 0 for none.
        mask : optional (P, R) bool; a reference marked False changes nothing, whatever it holds.

        Raises
        ------
        CacheError : latents or a mask that do not fit the network. ConfigError : more references than it takes.
        """
        if reference_latents is None or (reference_latents.ndim == 5 and not reference_latents.shape[1]):
            return Context(weakref.ref(self))
        check_latents(self.unet, reference_latents)
        _check_mask(mask, reference_latents)
        people, count = reference_latents.shape[:2]
        if self.max_references is not None and count > self.max_references:
            raise ConfigError(
                f"{count} references came, this network takes {self.max_references}: {self.name} concatenation fixes "
                "their number when it is trained. Pass fewer, or train with a larger max_references."
            )
        if mask is not None:
            mask = mask.to(reference_latents.device)
            if not bool(mask.any()):
                return Context(weakref.ref(self))
            reference_latents = reference_latents.masked_fill(~mask[..., None, None, None], 0.0)
            mask = None if bool(mask.all()) else mask
        state = self._prepare(reference_latents, mask)
        return Context(weakref.ref(self), count, people, 1, tuple(reference_latents.shape[-2:]), state)

    def forward(self, sample: Tensor, timestep: int | Tensor, context: Context | None = None) -> Tensor:
        """One call of the network; it holds nothing afterwards.

        Parameters
        ----------
        sample : (B, 2C, h, w), the noisy latent in the first C channels and the low-quality latent in the rest.
        timestep : one integer for all rows, or (B,) integers.
        context : from `prepare`; None without references.

        Returns
        -------
        (B, C, h, w), the network's prediction.

        Raises
        ------
        CacheError : a context of another mechanism, or one that does not fit the sample.
        """
        if context is not None and context.references:
            self._check(sample, context)
        if context is None or context.state is None:
            return self._plain(sample, timestep)
        return self._denoise(sample, timestep, context.state, context.share)

    def _prepare(self, latents: Tensor, mask: Tensor | None) -> Any:
        """What `_denoise` will need of (P, R, C, h, w) latents; None when references are not used at all."""
        return None

    def _plain(self, sample: Tensor, timestep: int | Tensor) -> Tensor:
        return self.unet(sample, timestep, return_dict=False)[0]

    def _denoise(self, sample: Tensor, timestep: int | Tensor, state: Any, share: int) -> Tensor:
        raise NotImplementedError

    def _check(self, sample: Tensor, context: Context) -> None:
        if context.owner() is not self:
            raise CacheError(
                "this context was prepared by another network, to which it means nothing; "
                "call prepare(reference_latents) of the one that denoises."
            )
        if len(sample) != context.people * context.share:
            raise CacheError(
                f"the sample has {len(sample)} rows, the context serves {context.people} people x {context.share}; "
                "use context.repeat_interleave(k) for k rows a person."
            )
        if tuple(sample.shape[-2:]) != context.latent_size:
            raise CacheError(
                f"the sample is {tuple(sample.shape[-2:])}, the references are {context.latent_size}; "
                "encode both at the same size."
            )


def _check_mask(mask: Tensor | None, latents: Tensor) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != latents.shape[:2]):
        raise CacheError(
            f"mask must be bool of shape {tuple(latents.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}; "
            "True keeps a reference."
        )
