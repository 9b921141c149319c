"""Injection of restored features into a frozen diffusion network: E-HQI, D-HQI and concatenation (LD-BFR, section 3.3).

Every injector adds to a feature map f_i (B, C, s, s) what it makes of f_i and of the condition P_s(f_HQ) (B, c, s, s).
Its last layer starts at zero, so that the network with injectors starts as the network without.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.errors import ConfigError

EPS = 1e-6


def resample_condition(condition: Tensor, side: int) -> Tensor:
    """P_s: (B, c, h, h) to (B, c', side, side) without losing or inventing a number.

    PixelShuffle where `side` is a multiple of h, PixelUnshuffle where h is a multiple of `side` (section 3.3).

    Raises:
        ConfigError: sides that do not divide, or too few channels to spread.
    """
    channels, own = condition.shape[1], condition.shape[-1]
    up, down = side // own, own // side
    if up * own == side and channels % max(up, 1) ** 2 == 0:
        return F.pixel_shuffle(condition, up)
    if down * side == own:
        return F.pixel_unshuffle(condition, down)
    raise ConfigError(
        f"a condition of {channels} channels and side {own} cannot be rearranged to side {side}; "
        "use sides whose ratio is whole, and channels that its square divides."
    )


def condition_channels(channels: int, own: int, side: int) -> int:
    """Channels of `resample_condition`'s result, from those of the condition and both sides."""
    count = channels * own**2
    if (side % own and own % side) or count % side**2:
        raise ConfigError(f"{channels} channels at side {own} cannot be rearranged to side {side}.")
    return count // side**2


class ConcatInjector(nn.Module):
    """f_o = f_i + Conv(Concat(f_i, P_s(f_HQ))): variant A of Fig. 9, one convolution and no attention."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.conv = zeroed(nn.Conv2d(channels + condition, channels, 3, padding=1))

    def forward(self, feature: Tensor, condition: Tensor) -> Tensor:
        """(B, C, s, s) and (B, c, s, s) to (B, C, s, s)."""
        return plus(feature, self.conv(torch.cat([feature, condition], dim=1)))


class EncoderInjector(nn.Module):
    """E-HQI: f_o = f_i + SA(Conv(Concat(f_i, P_s(f_HQ)))).

    Conv is a 3 x 3 convolution to `expansion` times C channels, a group norm and a 3 x 3 convolution back; SA is a
    group norm, self-attention with heads of `head_width` channels, and a 1 x 1 projection that starts at zero.
    """

    def __init__(self, channels: int, condition: int, head_width: int, groups: int, expansion: float) -> None:
        super().__init__()
        hidden = round(channels * expansion)
        self.conv_in = nn.Conv2d(channels + condition, hidden, 3, padding=1)
        self.norm_in = nn.GroupNorm(groups, hidden, eps=EPS)
        self.conv_out = nn.Conv2d(hidden, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = zeroed(nn.Conv2d(channels, channels, 1))
        self.heads = channels // head_width

    def forward(self, feature: Tensor, condition: Tensor) -> Tensor:
        """(B, C, s, s) and (B, c, s, s) to (B, C, s, s)."""
        mixed = self.conv_out(self.norm_in(self.conv_in(torch.cat([feature, condition], dim=1))))
        query, key, value = self.to_qkv(self.norm(mixed)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = attention(query, key, value, self.heads)
        return plus(feature, self.to_out(attended.transpose(1, 2).reshape(feature.shape)))


class DecoderInjector(nn.Module):
    """D-HQI: f_o = f_i + CA(AdaLN(f_i, MLP(f_HQ)), f_HQ), AdaLN(f, (s, b)) = (1 + s) LN(f) + b.

    P_s(f_HQ) has a token for every place of f_i, so scale s and shift b are of their own at every place. Queries come
    from the modulated tokens, keys and values from those of P_s(f_HQ); a last projection starts at zero.

    Args:
        released: as in the authors' code instead of as printed: the MLP sees Concat(f_i, P_s(f_HQ)), LN has its own
            scale and shift, a second LN stands before CA, and f_i is added inside the zero projection as well.
    """

    def __init__(self, channels: int, condition: int, head_width: int, released: bool) -> None:
        super().__init__()
        self.heads, self.released = channels // head_width, released
        self.norm = nn.LayerNorm(channels, eps=EPS, elementwise_affine=released)
        self.modulation = nn.Linear(condition + channels if released else condition, 2 * channels)
        self.norm_query = nn.LayerNorm(channels, eps=EPS) if released else nn.Identity()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(condition, channels, bias=False)
        self.to_v = nn.Linear(condition, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.project = zeroed(nn.Linear(channels, channels))

    def forward(self, feature: Tensor, condition: Tensor) -> Tensor:
        """(B, C, s, s) and (B, c, s, s) to (B, C, s, s)."""
        tokens, given = feature.flatten(2).transpose(1, 2), condition.flatten(2).transpose(1, 2)
        said = torch.cat([tokens, given], dim=-1) if self.released else given
        scale, shift = self.modulation(F.silu(said)).chunk(2, dim=-1)
        query = self.to_q(self.norm_query((1 + scale) * self.norm(tokens) + shift))
        answer = self.to_out(attention(query, self.to_k(given), self.to_v(given), self.heads))
        added = self.project(tokens + answer if self.released else answer)
        return plus(feature, added.transpose(1, 2).reshape(feature.shape))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention of tokens (B, T, C), `heads` heads; returns (B, T, C)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def plus(feature: Tensor, change: Tensor) -> Tensor:
    """Their sum, in the memory layout of the feature.

    Convolutions choose their way by the layout; with another one behind it, even adding zero would change last digits.
    """
    return feature.clone().add_(change)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all parameters at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
