"""LD-BFR's formulas written out place by place, and the comparisons of the networks with them.

Loops over samples, heads, places and channels instead of reshaping, so that an axis taken for another one shows. The
network with injectors is compared with the stock one whose attention layers are wrapped from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from diffusers import UNet2DModel
from tiny_ldbfr import FEATURES, injection, unet
from tiny_pdgrad import shake
from torch import Tensor, nn

from refbfr_core.models import hq_injection, injected_unet, vq_restorer
from refbfr_core.models.dual_cross_attention import BRANCHES, DualCrossAttention
from refbfr_core.models.injected_unet import HQInjection

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    """Normal values of a seed."""
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: type[nn.Module], *arguments: object, seed: int = 5, size: float = 0.2, **options: object) -> nn.Module:
    """A module of random weights, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shake(make(*arguments, **options), seed, size)


# --- pieces, one vector at a time -------------------------------------------------------------------------------------


def affine(layer: nn.Conv2d | nn.Linear, vector: Tensor) -> Tensor:
    """A 1 x 1 convolution or linear layer on one place."""
    weight = layer.weight.flatten(1)
    return weight @ vector + (0 if layer.bias is None else layer.bias)


def convolved(layer: nn.Conv2d, picture: Tensor) -> Tensor:
    """A 3 x 3 convolution of (C, h, w) with a margin of zeros."""
    _, height, width = picture.shape
    padded = picture.new_zeros(len(picture), height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = picture
    made = picture.new_zeros(len(layer.weight), height, width)
    for y in range(height):
        for x in range(width):
            made[:, y, x] = layer.weight.flatten(1) @ padded[:, y : y + 3, x : x + 3].flatten() + layer.bias
    return made


def group_normed(layer: nn.GroupNorm, picture: Tensor) -> Tensor:
    """A group norm of (C, h, w)."""
    made = []
    for group in picture.chunk(layer.num_groups):
        made.append((group - group.mean()) / (group.var(unbiased=False) + 1e-6).sqrt())
    return torch.cat(made) * layer.weight[:, None, None] + layer.bias[:, None, None]


def layer_normed(layer: nn.LayerNorm, vector: Tensor) -> Tensor:
    """A layer norm of one place."""
    made = (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-6).sqrt()
    return made if layer.weight is None else made * layer.weight + layer.bias


def attended(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], heads: int) -> list[Tensor]:
    """Softmax attention of lists of vectors, head by head."""
    width = len(queries[0]) // heads
    made = []
    for query in queries:
        parts = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[own] @ key[own] / math.sqrt(width) for key in keys])
            shares = scores.exp() / scores.exp().sum()
            parts.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
        made.append(torch.cat(parts))
    return made


def places(picture: Tensor) -> list[Tensor]:
    """(C, h, w) as h*w vectors, row by row."""
    return [picture[:, y, x] for y in range(picture.shape[1]) for x in range(picture.shape[2])]


def picture_of(vectors: list[Tensor], like: Tensor) -> Tensor:
    """Inverse of `places`."""
    return torch.stack(vectors, dim=1).view(len(vectors[0]), *like.shape[1:])


# --- the formulas -----------------------------------------------------------------------------------------------------


def dcam(module: DualCrossAttention, degraded: Tensor, codes: Tensor, use: tuple[str, ...] = BRANCHES) -> Tensor:
    """f_HQ (B, C, h, w), section 3.2."""

    def channel(low: Tensor, high: Tensor) -> Tensor:
        scale = math.sqrt(low[0].numel()) if module.config.channel_scale else 1.0
        made = torch.zeros_like(high)
        for row in range(len(low)):
            scores = torch.stack([(low[row] * low[other]).sum() / scale for other in range(len(low))]).double()
            shares = (scores - scores.max()).exp()
            for share, plane in zip((shares / shares.sum()).float(), high, strict=True):
                made[row] += share * plane
        return made

    def spatial(low: Tensor, high: Tensor) -> Tensor:
        queries = [affine(module.to_q, place) for place in places(low)]
        keys = [affine(module.to_k, place) for place in places(high)]
        values = [affine(module.to_v, place) for place in places(high)]
        found = attended(queries, keys, values, module.config.heads)
        return picture_of([affine(module.to_out, place) for place in found], low)

    rows = []
    for low, high in zip(degraded, codes, strict=True):
        if module.config.mode == "sequential":
            enriched = high + channel(low, high) if "channel" in use else high
            rows.append(high + spatial(low, enriched) if "spatial" in use else enriched)
            continue
        sums = [one(low, high) for one, name in ((spatial, "spatial"), (channel, "channel")) if name in use]
        rows.append(sum(sums) if sums else high)
    return torch.stack(rows)


def concatenation(module: hq_injection.ConcatInjector, feature: Tensor, condition: Tensor) -> Tensor:
    """Variant A's f_o."""
    pairs = zip(feature, condition, strict=True)
    return torch.stack([own + convolved(module.conv, torch.cat([own, given])) for own, given in pairs])


def e_hqi(module: hq_injection.EncoderInjector, feature: Tensor, condition: Tensor) -> Tensor:
    """f_o = f_i + SA(Conv(Concat(f_i, P_s(f_HQ))))."""
    rows = []
    for own, given in zip(feature, condition, strict=True):
        hidden = group_normed(module.norm_in, convolved(module.conv_in, torch.cat([own, given])))
        normed = group_normed(module.norm, convolved(module.conv_out, hidden))
        threes = [affine(module.to_qkv, place) for place in places(normed)]
        width = len(own)
        parts = [[three[k * width : (k + 1) * width] for three in threes] for k in range(3)]
        found = attended(*parts, module.heads)
        rows.append(own + picture_of([affine(module.to_out, place) for place in found], own))
    return torch.stack(rows)


def d_hqi(module: hq_injection.DecoderInjector, feature: Tensor, condition: Tensor) -> Tensor:
    """f_o = f_i + CA(AdaLN(f_i, MLP(f_HQ)), f_HQ), as printed or as released."""
    rows = []
    for own, given in zip(feature, condition, strict=True):
        queries = []
        for place, cell in zip(places(own), places(given), strict=True):
            said = torch.cat([place, cell]) if module.released else cell
            both = affine(module.modulation, said * torch.sigmoid(said))
            scale, shift = both[: len(place)], both[len(place) :]
            modulated = layer_normed(module.norm, place) * (1 + scale) + shift
            modulated = layer_normed(module.norm_query, modulated) if module.released else modulated
            queries.append(affine(module.to_q, modulated))
        keys = [affine(module.to_k, cell) for cell in places(given)]
        values = [affine(module.to_v, cell) for cell in places(given)]
        found = [affine(module.to_out, place) for place in attended(queries, keys, values, module.heads)]
        inner = [place + new if module.released else new for place, new in zip(places(own), found, strict=True)]
        rows.append(own + picture_of([affine(module.project, place) for place in inner], own))
    return torch.stack(rows)


def rearranged(condition: Tensor, side: int) -> Tensor:
    """P_s of (B, c, h, h), number by number."""
    batch, channels, own, _ = condition.shape
    r = max(side, own) // min(side, own)
    made = condition.new_zeros(batch, channels * own**2 // side**2, side, side)
    for c in range(min(channels, made.shape[1])):
        for y in range(min(side, own)):
            for x in range(min(side, own)):
                for i in range(r):
                    for j in range(r):
                        deep, wide = (c * r * r + i * r + j, y, x), (c, y * r + i, x * r + j)
                        source, target = (deep, wide) if side >= own else (wide, deep)
                        made[(slice(None), *target)] = condition[(slice(None), *source)]
    return made


@contextmanager
def wrapped(network: UNet2DModel, injectors: HQInjection, condition: Tensor) -> Iterator[None]:
    """The stock network with an injector around each attention layer of the levels that have some."""

    handles, last, own = [], len(network.down_blocks) - 1, dict(injectors.injectors.items())
    for half, blocks in (("down", network.down_blocks), ("up", network.up_blocks)):
        for number, block in enumerate(blocks):
            factor = 2 ** (number if half == "down" else last - number)
            if f"{half}_{factor}" not in own:
                continue
            given = rearranged(condition, network.config.sample_size // factor)
            for layer, injector in zip(block.attentions, own[f"{half}_{factor}"], strict=True):
                handles.append(layer.register_forward_hook(partial(_inject, injector, given)))
    assert len(handles) == sum(len(each) for each in own.values())
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inject(injector: nn.Module, given: Tensor, layer: nn.Module, came: object, went: Tensor) -> Tensor:
    return injector(went, given)


# --- the comparisons; a mutation must make them fail ------------------------------------------------------------------


@torch.no_grad()
def compare_dcam(mode: str = "parallel", channel_scale: bool = True, use: tuple[str, ...] = BRANCHES) -> None:
    module = seeded(DualCrossAttention, 8, 2, mode, channel_scale)
    degraded, codes = draw(2, 8, 3, 4, size=0.7), draw(2, 8, 3, 4, seed=1)
    expected = dcam(module, degraded, codes, use)
    torch.testing.assert_close(module(degraded, codes, use), expected, **CLOSE)
    torch.testing.assert_close(module.look(degraded, codes, use).fused, expected, **CLOSE)


@torch.no_grad()
def compare_concatenation() -> None:
    module = seeded(hq_injection.ConcatInjector, 8, 4)
    feature, condition = draw(2, 8, 3, 3), draw(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(module(feature, condition), concatenation(module, feature, condition), **CLOSE)


@torch.no_grad()
def compare_e_hqi() -> None:
    module = seeded(hq_injection.EncoderInjector, 8, 4, 4, 2, 2.0)
    feature, condition = draw(2, 8, 3, 3), draw(2, 4, 3, 3, seed=1)
    torch.testing.assert_close(module(feature, condition), e_hqi(module, feature, condition), **CLOSE)


@torch.no_grad()
def compare_d_hqi(released: bool = False) -> None:
    module = seeded(hq_injection.DecoderInjector, 8, 6, 4, released)
    feature, condition = draw(2, 8, 3, 3), draw(2, 6, 3, 3, seed=1)
    torch.testing.assert_close(module(feature, condition), d_hqi(module, feature, condition), **CLOSE)


def compare_rearranging() -> None:
    for channels, own, side in ((16, 4, 8), (16, 4, 4), (3, 4, 2), (16, 2, 8), (2, 8, 2)):
        condition = draw(2, channels, own, own)
        assert torch.equal(hq_injection.resample_condition(condition, side), rearranged(condition, side))


@torch.no_grad()
def compare_network(variant: str = "D") -> None:
    network = unet()
    injectors = injection(network, variant)
    sample, condition = draw(2, 3, 16, 16), draw(2, *FEATURES, seed=1)
    times = torch.tensor([3, 700])
    with wrapped(network, injectors, condition):
        expected = network(sample, times).sample
    got = injected_unet.denoise_injected(network, sample, times, injectors, condition)
    torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def compare_layout() -> None:
    """One picture as attention leaves it: channels last in memory, except that the batch axis does not say so."""
    feature = draw(1, 4, 3, 3).as_strided((1, 4, 3, 3), (4, 1, 12, 4))
    injector = hq_injection.DecoderInjector(4, 2, 2, released=False)
    made = injector(feature, draw(1, 2, 3, 3, seed=1))
    assert torch.equal(made, feature) and made.stride() == feature.stride()


def compare_look_up() -> None:
    features, codebook = draw(2, 4, 3, 3).requires_grad_(), draw(10, 4, seed=1)
    codes, looked_up = vq_restorer.look_up(features, codebook)
    for b in range(2):
        for y in range(3):
            for x in range(3):
                distances = [float((features[b, :, y, x].detach() - code).norm()) for code in codebook]
                assert distances[int(codes[b, y, x])] == min(distances)
                assert torch.allclose(looked_up[b, :, y, x], codebook[codes[b, y, x]], atol=1e-6)
    weights = draw(2, 4, 3, 3, seed=2)
    (looked_up * weights).sum().backward()
    assert features.grad is not None and torch.equal(features.grad, weights)
