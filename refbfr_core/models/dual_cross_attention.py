"""DCAM, LD-BFR's dual cross-attention: degraded features ask, clean codes answer (Du et al., ACM MM 2024, section 3.2).

Queries and the channel matrix come from the degraded feature, which still knows the person's colours and outlines;
values come from the codes, which know what clean faces look like. Its formulas have no numbers in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name

MODES = ("parallel", "sequential")
BRANCHES = ("spatial", "channel")


@dataclass(frozen=True)
class DCAMTrace:
    """Everything inside one pass, for looking at.

    `fused` is f_HQ; `spatial` f_SCA and `channel` f_CCA, all (B, C, h, w); `spatial_map` (B, heads, N, N), rows are
    queries; `channel_map` M_C (B, C, C), rows sum to one. What a disabled branch would give is None.
    """

    fused: Tensor
    spatial: Tensor | None
    channel: Tensor | None
    spatial_map: Tensor | None
    channel_map: Tensor | None


class DualCrossAttention(ModelMixin, ConfigMixin):
    """f_HQ = f_SCA + f_CCA from the degraded feature f_LQ and the looked-up codes f'_HQ.

    * spatial: Q = W_Q f_LQ, K = W_K f'_HQ, V = W_V f'_HQ, f_SCA = W_O Softmax(Q K^T / sqrt(d)) V over the N places;
    * channel: M_C = Softmax(F_LQ F_LQ^T / s), rows over channels, f_CCA = M_C F'_HQ.

    Args:
        channels: C of both features.
        heads: of the spatial branch; d = C / heads.
        mode: "parallel", the sum printed in the paper, or "sequential", as released: the channel branch with a residual
            first, k = f'_HQ + f_CCA, then keys and values from k and a residual on f'_HQ, f_HQ = f'_HQ + f_SCA(k).
        channel_scale: s is sqrt(N) if true and 1, as released, if not: without it a few entries take most of a row.

    Raises:
        ConfigError: heads that do not divide the channels. UnknownNameError: another mode.
    """

    @register_to_config
    def __init__(
        self, channels: int = 256, heads: int = 8, mode: str = "parallel", channel_scale: bool = True
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise unknown_name("DCAM mode", mode, MODES)
        if heads < 1 or channels % heads:
            raise ConfigError(f"{channels} channels do not divide into {heads} heads; choose a divisor.")
        self.to_q = nn.Conv2d(channels, channels, 1)
        self.to_k = nn.Conv2d(channels, channels, 1)
        self.to_v = nn.Conv2d(channels, channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, degraded: Tensor, codes: Tensor, use: Sequence[str] = BRANCHES) -> Tensor:
        """f_HQ (B, C, h, w) from f_LQ and f'_HQ of that shape; `use` names the branches that take part.

        With neither, f_HQ is f'_HQ itself. Raises ImageContractError for features that do not fit, UnknownNameError for
        a branch that does not exist.
        """
        return self.look(degraded, codes, use, maps=False).fused

    def look(
        self, degraded: Tensor, codes: Tensor, use: Sequence[str] = BRANCHES, *, maps: bool = True
    ) -> DCAMTrace:
        """As `forward`, with both branches and, if asked for, their attention maps."""
        self._check(degraded, codes, use)
        spatial = spatial_map = channel = channel_map = None
        keys = codes
        if "channel" in use:
            channel, channel_map = self.channel_attention(degraded, codes)
            if self.config.mode == "sequential":
                keys = codes + channel
        if "spatial" in use:
            spatial, spatial_map = self.spatial_attention(degraded, keys, maps)
        parts = [part for part in (spatial, channel) if part is not None]
        if not parts:
            fused = codes
        elif self.config.mode == "parallel":
            fused = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        else:
            fused = codes + spatial if spatial is not None else keys
        return DCAMTrace(fused, spatial, channel, spatial_map, channel_map if maps else None)

    def spatial_attention(self, degraded: Tensor, codes: Tensor, maps: bool) -> tuple[Tensor, Tensor | None]:
        """f_SCA (B, C, h, w), and its map (B, heads, N, N) if wanted."""
        heads, shape = self.config.heads, degraded.shape
        tokens = [layer(x).flatten(2).unflatten(1, (heads, -1)).transpose(-1, -2)
                  for layer, x in ((self.to_q, degraded), (self.to_k, codes), (self.to_v, codes))]  # fmt: skip
        if maps:
            query, key, value = tokens
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            attended = weights @ value
        else:
            attended, weights = F.scaled_dot_product_attention(*tokens), None
        return self.to_out(attended.transpose(-1, -2).reshape(shape)), weights

    def channel_attention(self, degraded: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """f_CCA (B, C, h, w) and M_C (B, C, C); every output channel is a mean of the codes' channels."""
        rows = degraded.flatten(2)
        scale = math.sqrt(rows.shape[-1]) if self.config.channel_scale else 1.0
        # In float32: Gram entries are sums of N products, and a softmax of large ones decides by differences.
        weights = (rows.float() @ rows.float().transpose(1, 2) / scale).softmax(-1)
        return (weights.to(codes.dtype) @ codes.flatten(2)).reshape(codes.shape), weights

    def _check(self, degraded: Tensor, codes: Tensor, use: Collection[str]) -> None:
        if degraded.ndim != 4 or degraded.shape != codes.shape or degraded.shape[1] != self.config.channels:
            raise ImageContractError(
                f"DCAM compares features of one shape (B, {self.config.channels}, h, w), got {tuple(degraded.shape)} "
                f"and {tuple(codes.shape)}; encode and look up with the same network."
            )
        for name in use:
            if name not in BRANCHES:
                raise unknown_name("DCAM branch", name, BRANCHES)
