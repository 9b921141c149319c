"""ReF-LDM's CacheKV: references enter a denoising U-Net as extra keys and values of its self-attention.

Paper: ReF-LDM (Hsiao et al., NeurIPS 2024), section 3.2. Each reference latent goes through the same U-Net once, at
timestep 0 and with zeros where the low-quality latent would be; the keys and values of every attention layer are kept
and reused at every denoising step.

The cache is a plain immutable object: the network never holds it, and two caches can be in use side by side.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from refbfr_core.errors import CacheError
from refbfr_core.models.cache_checks import check_cache, check_latents, check_mask, refuse_checkpointing
from refbfr_core.models.cachekv import (
    AllLayersRecorded,
    CacheKVProcessor,
    LayerCache,
    RecordProcessor,
    SideBySideProcessor,
    attention_layers,
    base_network,
    processors,
)

REFERENCE_TIMESTEP = 0
"""References are clean pictures: they pass at the timestep of the least noise, embedded like any other timestep."""


@dataclass(frozen=True, eq=False, repr=False)
class ReferenceCache:
    """Keys and values of every attention layer for the references of P people. Make one with `ReferenceCache.build`.

    Attributes
    ----------
    layers : layer path -> `LayerCache`, keys and values (P, R*T, C). Empty in a cache that was never filled.
    mask : (P, R) bool, False for references that take no part, or integers, how often each counts; None: each once.
    references : R.
    latent_size : (h, w) of a reference latent.
    share : how many consecutive batch rows use the same person (see `repeat_interleave`).
    network : weak reference to the network it was built with; its keys mean nothing to another.

    Memory is P * R * (sum over layers of 2*T*C) numbers: for the published U-Net about 18.4 MB a reference in float32.
    Only memory bounds R; attention in a main pass costs 1+R times its usual amount.
    """

    layers: Mapping[str, LayerCache] = field(default_factory=dict)
    mask: Tensor | None = None
    references: int = 0
    latent_size: tuple[int, int] = (0, 0)
    share: int = 1
    network: weakref.ref[nn.Module] | None = None

    @classmethod
    def build(
        cls,
        unet: nn.Module,
        reference_latents: Tensor,
        mask: Tensor | None = None,
        *,
        chunk_size: int | None = None,
    ) -> ReferenceCache:
        """Run every reference once through `unet` and keep its keys and values.

        Gradients flow through them, as the paper trains it, unless they are disabled outside.

        Parameters
        ----------
        unet : a diffusers `UNet2DModel` from 2C to C channels (wrapped by accelerate or torch.compile is fine).
        reference_latents : (P, R, C, h, w), in the unit of the sample's latents.
        mask : optional (P, R) bool; a reference marked False is not run at all and changes nothing, whatever it holds.
            Or integers from 0 on: a reference marked n counts as if it had come n times, and is run once.
        chunk_size : run this many references at a time (memory is then bounded); None runs all as one batch. A last
            chunk that is not full is filled up with copies: every call sees equally many rows, so that a reference's
            keys do not depend on how many others come with it.

        Raises
        ------
        CacheError : no references, or a shape, type or number of channels that does not fit the network.
        """
        network = base_network(unet)
        layers = attention_layers(network)
        check_latents(network, reference_latents)
        check_mask(mask, reference_latents)
        refuse_checkpointing(network)
        people, count = reference_latents.shape[:2]
        flat = reference_latents.flatten(0, 1)
        mask = _meaningful(mask)
        kept = None if mask is None or bool(mask.all()) else mask.to(flat.device).flatten().nonzero().squeeze(1)
        if kept is not None:
            # With everything masked, one blank pass still tells the shapes; its keys stay outside the softmax.
            flat = flat[kept] if len(kept) else torch.zeros_like(flat[:1])
        pieces = [_record(network, layers, piece) for piece in _chunks(flat, chunk_size)]

        def entry(name: str) -> LayerCache:
            # Taken out of the pieces layer by layer, so that only one layer at a time is held twice.
            parts = [piece.pop(name) for piece in pieces]
            return LayerCache(*map(joined, zip(*parts, strict=True)), tokens=parts[0][0].shape[1])

        def joined(parts: tuple[Tensor, ...]) -> Tensor:
            rows = (torch.cat(parts) if len(parts) > 1 else parts[0])[: len(flat)]
            if kept is not None:
                rows = _scatter_rows(rows, kept, people * count)
            return rows.reshape(people, count * rows.shape[1], rows.shape[2])

        return cls(
            layers={name: entry(name) for name in layers},
            mask=None if mask is None else mask.to(flat.device),
            references=count,
            latent_size=tuple(reference_latents.shape[-2:]),
            network=weakref.ref(network),
        )

    @classmethod
    def null(
        cls,
        unet: nn.Module,
        counts: Tensor,
        latent_size: tuple[int, int] | None = None,
        *,
        chunk_size: int | None = None,
    ) -> ReferenceCache:
        """Null references, latents of zeros, for P people: what classifier-free guidance compares references with.

        All null references are equal, so their keys and values come from one pass for everybody, and n of them are one
        whose softmax score is larger by log n: softmax attention over [own, n equal copies] is the same function as
        over [own, one copy + log n]. Equal to `build` with zeros up to rounding, at 2 instead of 1+n times the cost.

        Parameters
        ----------
        unet : as in `build`.
        counts : (P,) integers, how many null references each person has; 0 is none.
        latent_size : (h, w); None takes the network's `sample_size`.
        chunk_size : rows of the pass, as in `build`; None is one.

        Raises
        ------
        CacheError : counts that are not one integer of 0 or more a person, or as in `build`.
        """
        network = base_network(unet)
        if not isinstance(counts, Tensor) or counts.ndim != 1 or not len(counts):
            came = tuple(counts.shape) if isinstance(counts, Tensor) else type(counts).__name__
            raise CacheError(f"counts must be a (people,) tensor, one number of null references each; got {came}.")
        weight = next(network.parameters())
        side = network.config.sample_size
        size = latent_size or (side if isinstance(side, (tuple, list)) else (side, side))
        channels = network.config.out_channels
        zeros = torch.zeros(1, 1, channels, *size, device=weight.device, dtype=weight.dtype)
        counts = counts.to(weight.device)[:, None]
        check_mask(counts, zeros.expand(len(counts), -1, -1, -1, -1))
        one = cls.build(unet, zeros, chunk_size=chunk_size)
        entries = {
            name: LayerCache(*(x.expand(len(counts), -1, -1) for x in (e.keys, e.values)), e.tokens)
            for name, e in one.layers.items()
        }
        return replace(one, layers=entries, mask=_meaningful(counts))

    @property
    def filled(self) -> bool:
        """Whether the cache holds anything."""
        return bool(self.layers)

    @property
    def people(self) -> int:
        """P: how many people's references are held; 0 when unfilled."""
        return len(next(iter(self.layers.values())).keys) if self.layers else 0

    @property
    def batch_size(self) -> int:
        """How many rows a sample must have to be denoised with this cache: P * share."""
        return self.people * self.share

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values; what several people share counts once."""
        return sum(_bytes(x) for entry in self.layers.values() for x in (entry.keys, entry.values))

    def repeat_interleave(self, k: int) -> ReferenceCache:
        """Return a cache for k samples a person, rows in the order of `torch.repeat_interleave`; nothing is copied.

        In training, k noisy targets of one person then cost the reference passes once.
        """
        if k < 1:
            raise CacheError(f"a cache cannot be repeated {k} times; use k >= 1.")
        self._require_filled()
        return replace(self, share=self.share * k)

    def select(self, rows: int | slice | list[int] | Tensor) -> ReferenceCache:
        """Return the cache of some batch rows, in the order given: an index, a slice, a list or a 1-D index tensor.

        A slice of a cache that serves one row a person is a view; everything else is copied.
        """
        self._require_filled()
        chosen = torch.as_tensor(rows, dtype=torch.long) if isinstance(rows, list) else rows
        try:
            index = torch.arange(self.batch_size)[chosen].reshape(-1) // self.share
        except IndexError as error:
            raise CacheError(f"rows {rows} are not all in a cache of {self.batch_size} rows.") from error
        if not len(index):
            raise CacheError(f"no row was selected from a cache of {self.batch_size} rows; name at least one.")
        index = index.to(next(iter(self.layers.values())).keys.device)
        taken = rows if isinstance(rows, slice) and self.share == 1 else index
        entries = {name: LayerCache(e.keys[taken], e.values[taken], e.tokens) for name, e in self.layers.items()}
        return replace(self, layers=entries, mask=None if self.mask is None else self.mask[taken], share=1)

    def compact(self) -> ReferenceCache:
        """Return a cache without the references that nobody uses, so that attention does not pay for them.

        Each person's own come first, in their order, and there are as many as the one with most of them has. The order
        of references changes a softmax by no more than rounding.
        """
        self._require_filled()
        if self.mask is None or bool(self.mask.all()):
            return self
        used = self.mask != 0
        keep = max(1, int(used.sum(dim=1).max()))
        order = used.int().argsort(dim=1, descending=True, stable=True)[:, :keep]
        people = torch.arange(self.people, device=order.device)[:, None]
        mask = self.mask[people, order]

        def pick(x: Tensor) -> Tensor:
            return x.unflatten(1, (self.references, -1))[people, order].flatten(1, 2)

        entries = {name: LayerCache(pick(e.keys), pick(e.values), e.tokens) for name, e in self.layers.items()}
        return replace(self, layers=entries, mask=_meaningful(mask), references=keep)

    def __repr__(self) -> str:
        if not self.layers:
            return "ReferenceCache(unfilled)"
        keys = next(iter(self.layers.values())).keys
        height, width = self.latent_size
        lines = [
            f"ReferenceCache: {self.people} people x {self.references} references, latents {height}x{width}",
            f"  {self.nbytes / 2**20:.2f} MiB, {str(keys.dtype).removeprefix('torch.')} on {keys.device}",
        ]
        if self.share > 1:
            lines.append(f"  each person serves {self.share} consecutive rows")
        if self.mask is not None:
            lines.append(f"  {int((self.mask != 0).sum())} of {self.mask.numel()} references take part")
            if self.mask.dtype != torch.bool:
                lines.append(f"  and count as {int(self.mask.sum())}")
        lines += [f"  {name}: {e.tokens} tokens x {e.keys.shape[-1]} channels" for name, e in self.layers.items()]
        return "\n".join(lines)

    def _require_filled(self) -> None:
        if not self.layers:
            raise CacheError(
                "this ReferenceCache was never filled; make one with ReferenceCache.build(unet, reference_latents), "
                "or pass cache=None to denoise without references."
            )


def denoise(
    unet: nn.Module,
    sample: Tensor,
    timestep: int | Tensor,
    cache: ReferenceCache | Sequence[ReferenceCache] | None = None,
) -> Tensor:
    """One call of the denoising network, with references (a cache) or without (None). Leaves nothing behind in `unet`.

    Parameters
    ----------
    unet : a diffusers `UNet2DModel`.
    sample : (B, 2C, h, w), the noisy latent in the first C channels and the low-quality latent in the rest.
    timestep : one integer for all rows, or a (B,) integer tensor.
    cache : made by `ReferenceCache.build` with the same network, for B rows. Several caches serve consecutive stretches
        of the rows, such as the two branches of classifier-free guidance; each stretch attends to its own number of
        references, everything else runs as one batch.

    Returns
    -------
    (B, C, h, w): the network's prediction (noise, for ReF-LDM).

    Raises
    ------
    CacheError : a cache is unfilled, was built with another network, or does not fit the sample's batch, size,
        device or precision.
    """
    if cache is None:
        return unet(sample, timestep, return_dict=False)[0]
    caches = tuple(cache) if isinstance(cache, (tuple, list)) else (cache,)
    for each in caches:
        if not isinstance(each, ReferenceCache):
            raise CacheError(
                f"cache must be a ReferenceCache or None, got {type(each).__name__}; "
                "make one with ReferenceCache.build."
            )
        each._require_filled()
    check_cache(unet, sample, caches)
    layers = attention_layers(unet)
    chosen: dict[str, object] = {}
    for name in layers:
        parts = [CacheKVProcessor(each.layers[name], each.share, each.mask) for each in caches]
        chosen[name] = parts[0] if len(parts) == 1 else SideBySideProcessor(parts)
    with processors(layers, chosen):
        return unet(sample, timestep, return_dict=False)[0]


def _record(network: nn.Module, layers: Mapping[str, nn.Module], latents: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Pass (N, C, h, w) reference latents through the network; return each layer's keys and values, (N, T, width)."""
    record: dict[str, tuple[Tensor, Tensor]] = {}
    recorders = {name: RecordProcessor(name, record, len(layers)) for name in layers}
    with processors(layers, recorders):
        try:
            network(torch.cat([latents, torch.zeros_like(latents)], dim=1), REFERENCE_TIMESTEP)
        except AllLayersRecorded:
            return record
    raise CacheError(f"the reference pass reached {len(record)} of {len(layers)} attention layers; all are needed.")


def _chunks(rows: Tensor, size: int | None) -> list[Tensor]:
    """Rows in chunks of exactly `size`, the last filled up with copies of the first rows; None gives one chunk."""
    if size is None or len(rows) == size:
        return [rows]
    missing = -len(rows) % size
    if missing:
        rows = torch.cat([rows, rows[torch.arange(missing, device=rows.device) % len(rows)]])
    return list(rows.split(size))


def _scatter_rows(rows: Tensor, index: Tensor, total: int) -> Tensor:
    """Put rows (N, T, C) at `index` of a (total, T, C) tensor that is zero elsewhere; an empty index drops them."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, index, rows[: len(index)])


def _meaningful(mask: Tensor | None) -> Tensor | None:
    """The mask, or None where it says nothing: every reference takes part, once."""
    return None if mask is None or bool((mask == 1).all()) else mask


def _bytes(x: Tensor) -> int:
    """Memory behind a tensor, with axes along which it repeats itself (stride 0) counted once."""
    sizes = [size for size, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return x.element_size() * math.prod(sizes)
