"""References beside the input: along its width, or as further channels (ReF-LDM, section 5.2, Table 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.errors import ConfigError
from refbfr_core.models.mechanism_base import ReferenceMechanism


class SpatialConcatenation(ReferenceMechanism):
    """[noisy | low-quality] and the references in one strip along the width, all of it at the timestep of the sample.

    A reference's square holds [reference, zeros], as in CacheKV's reference pass: the reference where the network looks
    for a face, nothing where it looks for what to restore. The strip runs in full at every step and is cropped to the
    first square. Convolutions at the seams and the statistics of every normalisation see all squares, so only R = 0
    equals the plain network; people with unequally many references run in separate passes, so that a masked reference
    takes part in nothing.
    """

    name: ClassVar[str] = "spatial"

    def _prepare(self, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return latents, mask

    def _denoise(
        self, sample: Tensor, timestep: int | Tensor, state: tuple[Tensor, Tensor | None], share: int
    ) -> Tensor:
        latents, mask = (None if part is None else part.repeat_interleave(share, 0) for part in state)
        if mask is None:
            return self._strip(sample, timestep, latents)
        counts = mask.sum(1)
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        pieces, places = [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().squeeze(1)
            kept = latents[rows[:, None], order[rows, :count]]
            pieces.append(self._strip(sample[rows], times[rows], kept))
            places.append(rows)
        return torch.cat(pieces)[torch.cat(places).argsort()]

    def _strip(self, sample: Tensor, timestep: int | Tensor, latents: Tensor) -> Tensor:
        if not latents.shape[1]:
            return self._plain(sample, timestep)
        squares = torch.cat([latents, torch.zeros_like(latents)], dim=2).to(sample.dtype)
        beside = squares.permute(0, 2, 3, 1, 4).flatten(3)  # (B, 2C, h, R w)
        strip = torch.cat([sample, beside], dim=3)
        return self._plain(strip, timestep)[..., : sample.shape[3]]


class ChannelConcatenation(ReferenceMechanism):
    """References as further input channels: ``conv_in`` takes 2C + max_references * C channels.

    The new input weights are zero, so the network begins as the plain one and gradients reach the references as soon as
    the weights have moved. Missing references are channels of zeros. Everybody's first reference lies in the same
    channels, pixel over pixel with the sample, so the order matters and poses should agree.
    """

    name: ClassVar[str] = "channel"

    def __init__(self, unet: UNet2DModel, max_references: int) -> None:
        super().__init__(unet)
        if max_references < 1:
            raise ConfigError(f"max_references={max_references}: channel concatenation needs room for at least 1.")
        self.max_references = int(max_references)
        old = self.unet.conv_in
        extra = self.max_references * self.unet.config.out_channels
        wide = nn.Conv2d(old.in_channels + extra, old.out_channels, old.kernel_size, old.stride, old.padding)
        with torch.no_grad():
            wide.weight.zero_()
            wide.weight[:, : old.in_channels] = old.weight
            wide.bias.copy_(old.bias)
        self.unet.conv_in = wide.to(old.weight.device, old.weight.dtype)

    def _prepare(self, latents: Tensor, mask: Tensor | None) -> Tensor:
        people, count, channels, height, width = latents.shape
        missing = latents.new_zeros(people, self.max_references - count, channels, height, width)
        return torch.cat([latents, missing], dim=1).flatten(1, 2)

    def _plain(self, sample: Tensor, timestep: int | Tensor) -> Tensor:
        height, width = sample.shape[-2:]
        nothing = sample.new_zeros(len(sample), self.max_references * self.unet.config.out_channels, height, width)
        return super()._plain(torch.cat([sample, nothing], dim=1), timestep)

    def _denoise(self, sample: Tensor, timestep: int | Tensor, state: Tensor, share: int) -> Tensor:
        channels = state.repeat_interleave(share, 0).to(sample.dtype)
        return super()._plain(torch.cat([sample, channels], dim=1), timestep)
