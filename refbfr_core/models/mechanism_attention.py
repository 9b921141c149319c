"""References through attention: keys and values of the network itself (CacheKV), or of extra layers (cross-attention).

ReF-LDM (Hsiao et al., NeurIPS 2024), section 3.2 and Table 2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from refbfr_core.errors import CacheError
from refbfr_core.models.cachekv import _attend, attention_layers, processors
from refbfr_core.models.mechanism_base import ReferenceMechanism
from refbfr_core.models.reference_cache import ReferenceCache, denoise


class CacheKV(ReferenceMechanism):
    """`ReferenceCache` and `denoise` behind the common interface: no weight is added."""

    name: ClassVar[str] = "cachekv"

    def _prepare(self, latents: Tensor, mask: Tensor | None) -> ReferenceCache:
        # Without gradients, one reference of each person at a time: the peak then does not grow with their number.
        chunk = None if torch.is_grad_enabled() else len(latents)
        return ReferenceCache.build(self.unet, latents, mask, chunk_size=chunk)

    def _denoise(self, sample: Tensor, timestep: int | Tensor, state: ReferenceCache, share: int) -> Tensor:
        return denoise(self.unet, sample, timestep, state.repeat_interleave(share))


class CrossAttention(ReferenceMechanism):
    """After every self-attention block an extra layer that attends to tokens of the reference latents.

    Tokens are patches of the latents, as fine as the finest self-attention, projected, with a learned position (where
    in a face a patch lies) that all references share. References are a set, so no number is attached to them: their
    order changes nothing and any number of them fits. Only reference tokens are ever attended to here, so the bias of
    the projection is all the "this is a reference" they need. Keys and values depend on no timestep and are computed
    once. Output projections start at zero: the network begins as the plain one, and gradients reach the references as
    soon as the projections have moved.
    """

    name: ClassVar[str] = "cross"

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__(unet)
        config = self.unet.config
        width = config.block_out_channels[-1]
        self.patch = 2 ** next(i for i, kind in enumerate(config.down_block_types) if "Attn" in kind)
        self.side = config.sample_size // self.patch
        self.project = nn.Linear(config.out_channels * self.patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.side**2, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleDict(
            {
                _key(name): CrossAttentionLayer(layer, width, config.norm_num_groups)
                for name, layer in attention_layers(self.unet).items()
            }
        )

    def _prepare(self, latents: Tensor, mask: Tensor | None) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
        size, needed = tuple(latents.shape[-2:]), self.side * self.patch
        if size != (needed, needed):
            raise CacheError(
                f"reference latents are {size}, this network has learned positions for {(needed, needed)}; "
                "encode references at the resolution it was made for."
            )
        patches = F.pixel_unshuffle(latents.flatten(0, 1), self.patch).flatten(2).transpose(1, 2)
        tokens = self.norm(self.project(patches) + self.position)
        tokens = tokens.unflatten(0, latents.shape[:2]).flatten(1, 2)  # (P, R T, width)
        tokens_mask = None if mask is None else mask.repeat_interleave(self.side**2, dim=1)
        return {name: (*layer.keys_and_values(tokens), tokens_mask) for name, layer in self.layers.items()}

    def _denoise(self, sample: Tensor, timestep: int | Tensor, state: dict[str, Any], share: int) -> Tensor:
        own = attention_layers(self.unet)
        chosen = {
            name: CrossAttentionProcessor(layer.processor, self.layers[_key(name)], *state[_key(name)])
            for name, layer in own.items()
        }
        with processors(own, chosen):
            return self._plain(sample, timestep)


class CrossAttentionLayer(nn.Module):
    """Norm, queries from (B, C, h, w) features, keys and values from tokens, output projection (zero), residual."""

    def __init__(self, beside: Attention, token_width: int, groups: int) -> None:
        super().__init__()
        width, self.heads = beside.to_q.in_features, beside.heads
        self.norm = nn.GroupNorm(groups, width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(token_width, width)
        self.to_v = nn.Linear(token_width, width)
        self.to_out = nn.Linear(width, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both (P, S, C) of (P, S, token width) tokens."""
        return self.to_k(tokens), self.to_v(tokens)

    def forward(self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, h, w) to the same. `keys`, `values` (P, S, C) serve B / P consecutive rows each; `mask` (P, S) bool.

        A person of whom no token takes part gets nothing added.
        """
        query = self.to_q(self.norm(hidden).flatten(2).transpose(1, 2))
        # Queries do not see each other here, so all rows of a person can share one set of keys without a copy.
        together = query.reshape(len(keys), -1, query.shape[2])
        allowed = None
        if mask is not None:
            some = mask.any(1)
            allowed = (mask | ~some[:, None])[:, None, None]
        mixed = self.to_out(_attend(self, together, keys, values, allowed))
        if mask is not None:
            mixed = mixed * some[:, None, None]
        return hidden + mixed.reshape(query.shape).transpose(1, 2).reshape(hidden.shape)


class CrossAttentionProcessor:
    """The layer's own self-attention, then a cross-attention layer; see `refbfr_core.models.cachekv.processors`."""

    def __init__(
        self, inner: Any, layer: CrossAttentionLayer, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> None:
        self.inner, self.layer, self.keys, self.values, self.mask = inner, layer, keys, values, mask

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        hidden = self.inner(attn, hidden_states, temb=temb)
        return self.layer(hidden, self.keys, self.values, self.mask)


def _key(name: str) -> str:
    """A layer's path as a key of a ModuleDict, which may not hold dots."""
    return name.replace(".", "-")
