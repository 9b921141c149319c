"""Where does attention look? The softmax weights of a real denoising call, for a few query tokens.

A layer of T tokens has heads * T * (1+R)*T weights; they are never held together. Only the rows of the queries that
were asked for are computed, from what really entered each layer during the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from refbfr_core.errors import CacheError, ConfigError, unknown_name
from refbfr_core.models.cachekv import LayerCache, attention_layers
from refbfr_core.models.reference_cache import ReferenceCache, denoise

_LIMIT = 1 << 28


def record_attention(
    unet: nn.Module,
    sample: Tensor,
    timestep: int | Tensor,
    cache: ReferenceCache | None = None,
    *,
    points: Tensor,
    layers: Sequence[str] | None = None,
    max_bytes: int = _LIMIT,
) -> AttentionMaps:
    """One call of `denoise`, with the attention weights of chosen queries written down. Leaves nothing in `unet`.

    Parameters
    ----------
    unet, sample, timestep, cache : as for `denoise`; B rows, references of the cache or none (R = 0).
    points : (Q, 2) or (B, Q, 2), places in the picture as fractions of its width and height (x right, y down) in
        [0, 1); in every layer the query is the token that covers the place.
    layers : paths of attention layers, as in `cache.layers`; None takes all.
    max_bytes : refuse to record more (default 256 MiB).

    Returns
    -------
    AttentionMaps, weights in float32.

    Raises
    ------
    UnknownNameError : a layer the network does not have. ConfigError : points of another shape or outside of the
        picture, or more than `max_bytes`. CacheError : what `denoise` raises.
    """
    available = attention_layers(unet)
    chosen = list(available) if layers is None else list(layers)
    for name in chosen:
        if name not in available:
            raise unknown_name("attention layer", name, available)
    places = _as_places(points, len(sample)).to(sample.device)
    weights: dict[str, Tensor] = {}

    def look(name: str, hidden: Tensor) -> None:
        entry = None if cache is None else cache.layers[name]
        query, key = _queries_and_keys(available[name], hidden, places, entry, 1 if cache is None else cache.share)
        held = sum(w.numel() for w in weights.values()) * 4
        if held + query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * 4 > max_bytes:
            raise ConfigError(
                f"the maps of {len(chosen)} layers need more than max_bytes={max_bytes:,}; name fewer layers or points."
            )
        weights[name] = _weights(query, key, cache).unflatten(-1, (-1, *hidden.shape[-2:]))

    with torch.no_grad(), _watching({name: available[name] for name in chosen}, look):
        prediction = denoise(unet, sample, timestep, cache)
    if len(weights) != len(chosen):
        raise CacheError(
            f"{len(chosen) - len(weights)} of {len(chosen)} layers were not seen running; "
            "pass the network itself, not one compiled by torch.compile."
        )
    return AttentionMaps(prediction, {name: weights[name] for name in chosen}, places)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps:
    """What one denoising call looked at.

    Attributes
    ----------
    prediction : (B, C, h, w), the network's output in that call.
    weights : layer path -> (B, heads, Q, 1+R, h, w) float32, first the row's own tokens, then each reference's; over
        the last three axes they sum to 1. (h, w) is the layer's own grid.
    points : (B, Q, 2) where the queries are, as fractions of the picture.
    """

    prediction: Tensor
    weights: Mapping[str, Tensor]
    points: Tensor

    def mass(self) -> Tensor:
        """(layers, B, Q, 1+R): how much of a query's attention goes to its own tokens and to each reference; the mean
        over heads. Sums to 1 over the last axis.
        """
        return torch.stack([weights.sum(dim=(-2, -1)).mean(dim=1) for weights in self.weights.values()])

    def __repr__(self) -> str:
        lines = [f"AttentionMaps: {self.points.shape[0]} pictures, {self.points.shape[1]} queries"]
        for name, weights in self.weights.items():
            _, heads, _, sources, height, width = weights.shape
            lines.append(f"  {name}: {heads} heads, {sources} x {height} x {width} keys")
        return "\n".join(lines)


def mass_near(maps: Tensor, points: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """How much of each map lies close to a point, and how much would by chance.

    Parameters
    ----------
    maps : (..., h, w) weights of one source; each map is taken as a share of its own sum.
    points : (..., 2), fractions of the picture, broadcast against the maps' leading axes; NaN where there is none.
    radius : distance as a fraction of the picture's side; a token counts when its centre is within it, and the token
        that covers the point always does.

    Returns
    -------
    (share of the weight that is near, share of the tokens that are near), both (...), NaN where the point is.
    """
    height, width = maps.shape[-2:]
    y = (torch.arange(height, device=maps.device) + 0.5) / height
    x = (torch.arange(width, device=maps.device) + 0.5) / width
    right, down = (x - points[..., 0, None, None]).abs(), (y[:, None] - points[..., 1, None, None]).abs()
    inside = (right**2 + down**2 <= radius**2) | ((right <= 0.5 / width) & (down <= 0.5 / height))
    inside = inside.to(maps.dtype).expand_as(maps)
    near = (maps * inside).sum(dim=(-2, -1)) / maps.sum(dim=(-2, -1))
    missing = points.isnan().any(dim=-1)
    return near.masked_fill(missing, math.nan), inside.mean(dim=(-2, -1)).masked_fill(missing, math.nan)


def attention_lift(weights: Tensor, points: Tensor, radius: float = 0.1) -> Tensor:
    """How many times more attention lies near given points than if it were spread evenly over the same pictures.

    Parameters
    ----------
    weights : (B, heads, Q, S, h, w), maps of S pictures, such as `AttentionMaps.weights[layer][:, :, :, 1:]`.
    points : (B, Q, S, 2), for each query one point in each of the S pictures; NaN leaves a picture out.
    radius : as in `mass_near`.

    Returns
    -------
    (B, Q), the heads taken together: 1 for a query that does not care where it looks; NaN without any point.
    """
    maps = weights.mean(dim=1)
    near, chance = mass_near(maps, points, radius)
    amount = maps.sum(dim=(-2, -1)).masked_fill(near.isnan(), math.nan)
    lift = (near * amount).nansum(dim=-1) / (chance * amount).nansum(dim=-1)
    return lift.masked_fill(near.isnan().all(dim=-1), math.nan)


def query_tokens(points: Tensor, height: int, width: int) -> Tensor:
    """Index of the token (row by row) that covers each place: (..., 2) fractions to (...) whole numbers."""
    column, row = (points[..., 0] * width).floor().long(), (points[..., 1] * height).floor().long()
    return row * width + column


def _as_places(points: Tensor, rows: int) -> Tensor:
    if points.ndim == 2:
        points = points[None].expand(rows, -1, -1)
    if points.ndim != 3 or points.shape[0] != rows or points.shape[1] < 1 or points.shape[2] != 2:
        raise ConfigError(
            f"points have shape {tuple(points.shape)}; expected (Q, 2), or (B, Q, 2) for B = {rows} rows."
        )
    if not bool(((points >= 0) & (points < 1)).all()):
        raise ConfigError(
            f"points lie between {float(points.min()):.3g} and {float(points.max()):.3g}; expected fractions of the "
            "picture in [0, 1). Divide pixels by the picture's side."
        )
    return points


def _queries_and_keys(
    layer: Attention, hidden: Tensor, places: Tensor, entry: LayerCache | None, share: int
) -> tuple[Tensor, Tensor]:
    """(B, heads, Q, d) queries and (B, heads, (1+R)*T, d) keys of one layer, in float32."""
    tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
    index = query_tokens(places, *hidden.shape[-2:])
    query = layer.to_q(torch.take_along_dim(tokens, index[..., None], dim=1))
    key = layer.to_k(tokens)
    if entry is not None:
        key = torch.cat([key, entry.keys.repeat_interleave(share, dim=0)], dim=1)
    query, key = (x.float().unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (query, key))
    return query, key


def _weights(query: Tensor, key: Tensor, cache: ReferenceCache | None) -> Tensor:
    """(B, heads, Q, (1+R)*T) softmax weights; references that take no part have weight 0."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if cache is not None and cache.mask is not None:
        tokens = key.shape[2] // (1 + cache.mask.shape[1])
        own = cache.mask.new_ones(len(cache.mask), 1)
        # How often a reference takes part; log 0 = -inf takes it out of the softmax.
        counts = torch.cat([own, cache.mask], dim=1).float().log().repeat_interleave(tokens, dim=1)
        scores = scores + counts.repeat_interleave(cache.share, dim=0)[:, None, None]
    return scores.softmax(dim=-1)


@contextmanager
def _watching(layers: Mapping[str, Attention], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `look(name, input)` whenever one of the layers runs inside the `with` block."""
    handles = []

    def watch(name: str, layer: Attention) -> None:
        def hook(module: nn.Module, arguments: tuple, named: dict) -> None:
            look(name, arguments[0] if arguments else named["hidden_states"])

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    try:
        for name, layer in layers.items():
            watch(name, layer)
        yield
    finally:
        for handle in handles:
            handle.remove()
