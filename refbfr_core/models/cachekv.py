"""The attention arithmetic of CacheKV, as processors for the stock diffusers `Attention` layer.

Notation: B rows of a batch, T tokens of one layer, C channels, R references. Keys and values travel token-first,
(B, T, C), exactly as the layer's linear projections return them: the references of one person then lie one after the
other, (B, R*T, C), without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from refbfr_core.errors import CacheError


@dataclass(frozen=True, eq=False)
class LayerCache:
    """Keys and values of all references in one attention layer.

    `keys`, `values`: (P, R*T, C) for P people, after the layer's projections and before any scaling; `tokens` is T.
    """

    keys: Tensor
    values: Tensor
    tokens: int


class AllLayersRecorded(Exception):  # noqa: N818 - a signal between two functions of this package, not an error
    """The reference pass has filled its last layer; whatever the network would still compute is thrown away anyway."""


def base_network(unet: nn.Module) -> nn.Module:
    """Return the network inside the wrappers that torch.compile and distributed training put around it."""
    while True:
        inner = getattr(unet, "_orig_mod", None) or getattr(unet, "module", None)
        if not isinstance(inner, nn.Module):
            return unet
        unet = inner


def attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """Return the self-attention layers of a diffusers U-Net by their path, e.g. "down_blocks.1.attentions.0".

    Raises
    ------
    CacheError : there is none, or one does more than plain self-attention, which CacheKV is not defined for.
    """
    layers = {name: module for name, module in base_network(unet).named_modules() if isinstance(module, Attention)}
    if not layers:
        raise CacheError(
            f"{type(unet).__name__} has no diffusers Attention layer, so references have no way in; "
            "use a UNet2DModel with attention blocks."
        )
    for name, layer in layers.items():
        if not _is_plain(layer):
            raise CacheError(
                f"attention layer {name} is not plain self-attention; "
                "CacheKV works on the attention blocks of a stock UNet2DModel."
            )
    return layers


def _is_plain(layer: Attention) -> bool:
    extras = (layer.spatial_norm, layer.norm_q, layer.norm_k, layer.added_kv_proj_dim)
    unusual = layer.is_cross_attention or layer.fused_projections or layer.is_causal
    return layer.group_norm is not None and not unusual and all(extra is None for extra in extras)


def _attend(layer: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of (B, T, C) queries over (B, S, C) keys and values, `layer.heads` heads. Returns (B, T, C).

    `mask` broadcasts to (B, heads, T, S): bool, True where a key takes part, or floats added to the scores.
    """
    query, key, value = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (query, key, value))
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and (mask is None or mask.dtype != torch.bool):
        # Training in bf16 on a CPU: the fused kernel takes two to four times as long as plain matrix products there.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = (scores if mask is None else scores + mask).softmax(dim=-1) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _attention_block(
    layer: Attention, hidden: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Norm, projections, `attend(query, key, value)`, output projection, residual: (B, C, h, w) to the same shape."""
    tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
    mixed = attend(layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
    mixed = layer.to_out[1](layer.to_out[0](mixed))
    mixed = mixed.transpose(1, 2).reshape(hidden.shape)
    return (mixed + hidden if layer.residual_connection else mixed) / layer.rescale_output_factor


class RecordProcessor:
    """Ordinary self-attention that also writes the layer's keys and values into `record[name]`.

    Used in the reference pass (ReF-LDM, section 3.2): a reference attends to itself only. Raises `AllLayersRecorded`
    as soon as `total` layers are in the record.
    """

    def __init__(self, name: str, record: dict[str, tuple[Tensor, Tensor]], total: int) -> None:
        self.name, self.record, self.total = name, record, total

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # A UNet2DModel leaves the last three at None or unused: they belong to cross-attention and spatial norms.
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.record[self.name] = (key, value)
            if len(self.record) == self.total:
                raise AllLayersRecorded
            return _attend(attn, query, key, value)

        return _attention_block(attn, hidden_states, attend)


class CacheKVProcessor:
    """Self-attention with keys and values [own, reference 1, ..., reference R] on the token axis, under one softmax.

    ReF-LDM, section 3.2: queries come from the main pass only, so the output keeps its size.

    `entry` holds P people; a batch of P*share rows uses each of them for `share` consecutive rows. `mask`: (P, R) or
    None. Bool: the tokens of references marked False take no part in the softmax. Integers: how many times each
    reference counts; n equal keys are one key whose score is larger by log n, so a repeated reference costs nothing.
    """

    def __init__(self, entry: LayerCache, share: int = 1, mask: Tensor | None = None) -> None:
        self.entry, self.share, self.mask = entry, share, mask

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.attend(attn, query, key, value)

        return _attention_block(attn, hidden_states, attend)

    @property
    def rows(self) -> int:
        """How many rows of a batch this serves: P * share."""
        return len(self.entry.keys) * self.share

    def attend(self, layer: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `rows` rows (B, T, C) over their own keys and values and the cached ones. Returns (B, T, C)."""
        if key.dtype != self.entry.keys.dtype:
            raise CacheError(
                f"the network computes keys in {key.dtype} but the cache holds {self.entry.keys.dtype}; "
                "build the cache and denoise under the same precision."
            )
        key, value = self._join(key, self.entry.keys), self._join(value, self.entry.values)
        return _attend(layer, query, key, value, self._softmax_mask(query.dtype))

    def _join(self, own: Tensor, cached: Tensor) -> Tensor:
        """(P*share, T, C) own and (P, R*T, C) cached rows to (P*share, (1+R)*T, C), in a single copy."""
        if self.share == 1:
            return torch.cat([own, cached], dim=1)
        own = own.unflatten(0, (-1, self.share))
        return torch.cat([own, cached.unsqueeze(1).expand(-1, self.share, -1, -1)], dim=2).flatten(0, 1)

    def _softmax_mask(self, dtype: torch.dtype) -> Tensor | None:
        """(P*share, 1, 1, (1+R)*T), as `_attend` takes it; None when every key takes part once."""
        if self.mask is None:
            return None
        own = self.mask.new_ones(len(self.mask), self.entry.tokens)
        counts = torch.cat([own, self.mask.repeat_interleave(self.entry.tokens, dim=1)], dim=1)
        if counts.dtype != torch.bool:
            counts = counts.log().to(dtype)
        return counts.repeat_interleave(self.share, dim=0)[:, None, None]


class SideBySideProcessor:
    """Consecutive stretches of one batch, each attending with a cache of its own.

    Projections, norms and every other layer see one large batch; only the softmax is taken stretch by stretch, so each
    costs as many keys as it has. `parts`: one `CacheKVProcessor` a stretch, in the order of the rows.
    """

    def __init__(self, parts: Sequence[CacheKVProcessor]) -> None:
        self.parts = tuple(parts)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        sizes = [part.rows for part in self.parts]

        def attend(*projected: Tensor) -> Tensor:
            stretches = zip(*(x.split(sizes) for x in projected), strict=True)
            return torch.cat([part.attend(attn, *own) for part, own in zip(self.parts, stretches, strict=True)])

        return _attention_block(attn, hidden_states, attend)


@contextmanager
def processors(layers: Mapping[str, Attention], chosen: Mapping[str, object]) -> Iterator[None]:
    """Give each layer its chosen processor inside the `with` block; the old ones come back however the block ends."""
    previous = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.set_processor(chosen[name])
        yield
    finally:
        for name, layer in layers.items():
            layer.set_processor(previous[name])
