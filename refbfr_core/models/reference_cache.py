"""ReF-LDM's CacheKV: references enter a denoising U-Net as extra keys and values of its self-attention.

Paper: ReF-LDM (Hsiao et al., NeurIPS 2024), section 3.2. Each reference latent goes through the same U-Net once, at
timestep 0 and with zeros where the low-quality latent would be; the keys and values of every attention layer are kept
and reused at every denoising step.

The cache is a plain immutable object: the network never holds it, and two caches can be in use side by side.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from refbfr_core.errors import CacheError
from refbfr_core.models.cachekv import (
    AllLayersRecorded,
    CacheKVProcessor,
    LayerCache,
    RecordProcessor,
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
    mask : (P, R) bool, False for references that take no part; None when all do.
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
        chunk_size : run at most this many references at a time (less memory); None runs all as one batch.

        Raises
        ------
        CacheError : no references, or a shape, type or number of channels that does not fit the network.
        """
        network = base_network(unet)
        layers = attention_layers(network)
        _check_latents(network, reference_latents, mask)
        _refuse_checkpointing(network)
        people, count = reference_latents.shape[:2]
        flat = reference_latents.flatten(0, 1)
        kept = None if mask is None or bool(mask.all()) else mask.to(flat.device).flatten().nonzero().squeeze(1)
        if kept is not None:
            # With everything masked, one blank pass still tells the shapes; its keys stay outside the softmax.
            flat = flat[kept] if len(kept) else torch.zeros_like(flat[:1])
        pieces = [_record(network, layers, piece) for piece in flat.split(chunk_size or len(flat))]

        def gather(name: str, which: int) -> Tensor:
            rows = torch.cat([piece[name][which] for piece in pieces]) if len(pieces) > 1 else pieces[0][name][which]
            if kept is not None:
                rows = _scatter_rows(rows, kept, people * count)
            return rows.reshape(people, count * rows.shape[1], rows.shape[2])

        return cls(
            layers={
                name: LayerCache(gather(name, 0), gather(name, 1), tokens=pieces[0][name][0].shape[1])
                for name in layers
            },
            mask=None if kept is None else mask.to(flat.device),
            references=count,
            latent_size=tuple(reference_latents.shape[-2:]),
            network=weakref.ref(network),
        )

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
        """Bytes of all keys and values."""
        return sum(x.numel() * x.element_size() for entry in self.layers.values() for x in (entry.keys, entry.values))

    def repeat_interleave(self, k: int) -> ReferenceCache:
        """Return a cache for k samples a person, rows in the order of `torch.repeat_interleave`; nothing is copied.

        In training, k noisy targets of one person then cost the reference passes once.
        """
        if k < 1:
            raise CacheError(f"a cache cannot be repeated {k} times; use k >= 1.")
        self._require_filled()
        return replace(self, share=self.share * k)

    def select(self, rows: int | slice | list[int] | Tensor) -> ReferenceCache:
        """Return the cache of some batch rows, in the order given: an index, a slice, a list or a 1-D index tensor."""
        self._require_filled()
        chosen = torch.as_tensor(rows, dtype=torch.long) if isinstance(rows, list) else rows
        try:
            index = torch.arange(self.batch_size)[chosen].reshape(-1) // self.share
        except IndexError as error:
            raise CacheError(f"rows {rows} are not all in a cache of {self.batch_size} rows.") from error
        if not len(index):
            raise CacheError(f"no row was selected from a cache of {self.batch_size} rows; name at least one.")
        index = index.to(next(iter(self.layers.values())).keys.device)
        entries = {name: LayerCache(e.keys[index], e.values[index], e.tokens) for name, e in self.layers.items()}
        return replace(self, layers=entries, mask=None if self.mask is None else self.mask[index], share=1)

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
            lines.append(f"  {int(self.mask.sum())} of {self.mask.numel()} references take part")
        lines += [f"  {name}: {e.tokens} tokens x {e.keys.shape[-1]} channels" for name, e in self.layers.items()]
        return "\n".join(lines)

    def _require_filled(self) -> None:
        if not self.layers:
            raise CacheError(
                "this ReferenceCache was never filled; make one with ReferenceCache.build(unet, reference_latents), "
                "or pass cache=None to denoise without references."
            )


def denoise(unet: nn.Module, sample: Tensor, timestep: int | Tensor, cache: ReferenceCache | None = None) -> Tensor:
    """One call of the denoising network, with references (a cache) or without (None). Leaves nothing behind in `unet`.

    Parameters
    ----------
    unet : a diffusers `UNet2DModel`.
    sample : (B, 2C, h, w), the noisy latent in the first C channels and the low-quality latent in the rest.
    timestep : one integer for all rows, or a (B,) integer tensor.
    cache : made by `ReferenceCache.build` with the same network, for B rows.

    Returns
    -------
    (B, C, h, w): the network's prediction (noise, for ReF-LDM).

    Raises
    ------
    CacheError : the cache is unfilled, was built with another network, or does not fit the sample's batch, size,
        device or precision.
    """
    if cache is None:
        return unet(sample, timestep, return_dict=False)[0]
    _check_cache(unet, sample, cache)
    layers = attention_layers(unet)
    chosen = {name: CacheKVProcessor(cache.layers[name], cache.share, cache.mask) for name in layers}
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


def _scatter_rows(rows: Tensor, index: Tensor, total: int) -> Tensor:
    """Put rows (N, T, C) at `index` of a (total, T, C) tensor that is zero elsewhere; an empty index drops them."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy(0, index, rows[: len(index)])


def _check_latents(network: nn.Module, latents: Tensor, mask: Tensor | None) -> None:
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
    if mask is not None and (mask.dtype != torch.bool or mask.shape != latents.shape[:2]):
        raise CacheError(
            f"mask must be bool of shape {tuple(latents.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}; "
            "True keeps a reference."
        )


def _check_cache(unet: nn.Module, sample: Tensor, cache: ReferenceCache) -> None:
    if not isinstance(cache, ReferenceCache):
        raise CacheError(
            f"cache must be a ReferenceCache or None, got {type(cache).__name__}; make one with ReferenceCache.build."
        )
    cache._require_filled()
    network = base_network(unet)
    if cache.network is None or cache.network() is not network:
        raise CacheError(
            "this cache was built with another network, to which its keys mean nothing; "
            "build it again with ReferenceCache.build(unet, reference_latents)."
        )
    _refuse_checkpointing(network)
    if len(sample) != cache.batch_size:
        raise CacheError(
            f"the sample has {len(sample)} rows, the cache serves {cache.people} people x {cache.share}; "
            "use cache.repeat_interleave(k) for k rows a person, or cache.select(rows)."
        )
    if tuple(sample.shape[-2:]) != cache.latent_size:
        raise CacheError(
            f"the sample is {tuple(sample.shape[-2:])}, the cached references are {cache.latent_size}; "
            "encode both at the same size."
        )
    device = next(iter(cache.layers.values())).keys.device
    if sample.device != device:
        raise CacheError(f"the sample is on {sample.device}, the cache on {device}; build it where the network runs.")


def _refuse_checkpointing(network: nn.Module) -> None:
    # Checkpointing repeats the forward pass during backward, when the processors are gone: silently wrong gradients.
    if torch.is_grad_enabled() and getattr(network, "is_gradient_checkpointing", False):
        raise CacheError(
            "gradient checkpointing would repeat a pass without its references; "
            "call unet.disable_gradient_checkpointing() first."
        )
