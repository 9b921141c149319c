"""Would anybody notice? Each known trap of ReF-LDM is sprung on purpose, and the parity comparison must then fail.

The comparisons are the very functions of the parity tests. Every case is also run unbroken, so that a comparison which
always fails would be noticed as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import parity_refldm as parity
import pytest
import torch
from parity_refldm import Networks
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule
from refbfr_core.models import cachekv, reference_cache
from refbfr_core.training import identity
from refbfr_core.weights import convert_strict

Recorded = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "refldm"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recorded:
    return {name: parity.arrays(folder / f"{name}.npz") for name in ("unet_io", "vq_io", "loss")}


# --- comparisons, each as the parity tests make it --------------------------------------------------------------------


def low_contrast(networks: Networks, recorded: Recorded) -> None:
    parity.compare_unet(networks.unet, recorded["unet_io"], small=True)


def ordinary(networks: Networks, recorded: Recorded) -> None:
    parity.compare_unet(networks.unet, recorded["unet_io"])


def references(networks: Networks, recorded: Recorded) -> None:
    parity.compare_references(networks.unet, recorded["unet_io"], 3)


def null_references(networks: Networks, recorded: Recorded) -> None:
    parity.compare_blank_references(networks.unet, recorded["unet_io"])


def decoding(networks: Networks, recorded: Recorded) -> None:
    parity.compare_decoding(networks.vq, recorded["vq_io"])


def loss_values(networks: Networks, recorded: Recorded) -> None:
    with torch.no_grad():
        parity.compare_loss(parity.loss_of(networks, recorded["loss"]), recorded["loss"])


def loss_gradients(networks: Networks, recorded: Recorded) -> None:
    loss = parity.loss_of(networks, recorded["loss"])
    parity.compare_gradients(parity.gradients(networks, loss), recorded["loss"])


# --- traps ------------------------------------------------------------------------------------------------------------


def norm_epsilon(patch: pytest.MonkeyPatch) -> None:
    """The U-Net's norms with the first stage's 1e-6."""
    load = parity.load

    def loaded(folder: Path) -> Networks:
        networks = load(folder)
        for module in networks.unet.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = 1e-6
        return networks

    patch.setattr(parity, "load", loaded)


def plain_thirds(patch: pytest.MonkeyPatch) -> None:
    """Query, key and value as three blocks of rows instead of (head, query/key/value, channel)."""
    apply = convert_strict.Move.apply

    def applied(self: convert_strict.Move, tensor: Tensor) -> dict[str, Tensor]:
        if len(self.targets) == 1:
            return apply(self, tensor)
        thirds = tensor.detach().flatten(tensor.ndim - self.trailing - 1) if self.trailing else tensor.detach()
        return {name: part.clone() for name, part in zip(self.targets, thirds.chunk(3), strict=True)}

    patch.setattr(convert_strict.Move, "apply", applied)


def null_is_none(patch: pytest.MonkeyPatch) -> None:
    """References of zeros are left out of the softmax."""
    build = reference_cache.ReferenceCache.build.__func__

    def built(cls: type, unet: nn.Module, latents: Tensor, mask: Tensor | None = None, **options: int) -> object:
        return build(cls, unet, latents, latents.flatten(2).abs().amax(-1) > 0 if mask is None else mask, **options)

    patch.setattr(reference_cache.ReferenceCache, "build", classmethod(built))


def references_at_main_timestep(patch: pytest.MonkeyPatch) -> None:
    """The reference pass at a timestep of the main pass instead of 0."""
    patch.setattr(reference_cache, "REFERENCE_TIMESTEP", 700)


def unquantised_decoding(patch: pytest.MonkeyPatch) -> None:
    """Latents go into the decoder past the codebook."""
    decode = parity.decode_latents

    def decoded(vq: nn.Module, latents: Tensor, patch_size: int = 1) -> Tensor:
        return decode(vq, latents, patch_size, quantize=False)

    patch.setattr(parity, "decode_latents", decoded)
    patch.setattr(identity, "decode_latents", decoded)


def detached_references(patch: pytest.MonkeyPatch) -> None:
    """No gradient through the cached keys and values."""
    build = reference_cache.ReferenceCache.build.__func__

    def built(cls: type, *args: object, **options: object) -> object:
        cache = build(cls, *args, **options)
        layers = {
            name: cachekv.LayerCache(entry.keys.detach(), entry.values.detach(), entry.tokens)
            for name, entry in cache.layers.items()
        }
        return replace(cache, layers=layers)

    patch.setattr(reference_cache.ReferenceCache, "build", classmethod(built))


def swapped_halves(patch: pytest.MonkeyPatch) -> None:
    """The reference latent where the degraded latent belongs."""
    record = reference_cache._record

    def recorded(network: nn.Module, *args: object) -> object:
        forward = network.forward
        network.forward = lambda sample, timestep: forward(sample.roll(sample.shape[1] // 2, 1), timestep)
        try:
            return record(network, *args)
        finally:
            del network.forward

    patch.setattr(reference_cache, "_record", recorded)


def truth_as_target(patch: pytest.MonkeyPatch) -> None:
    """Identity is compared with the picture instead of its reconstruction by the first stage."""
    loss_of = parity.loss_of

    def loss(networks: Networks, recorded: dict[str, Tensor]) -> identity.RefLDMLoss:
        picture = identity.embed_faces(recorded["gt_image"], parity.toy_embedder(recorded))
        patch.setattr(identity, "identity_targets", lambda *args, **options: picture)
        return loss_of(networks, recorded)

    patch.setattr(parity, "loss_of", loss)


def alpha_without_the_bar(patch: pytest.MonkeyPatch) -> None:
    """The poster's sqrt(alpha_t) instead of the cumulative product's root."""

    def scale(timesteps: Tensor, schedule: Schedule) -> Tensor:
        return schedule.alphas[timesteps].sqrt().float()

    patch.setattr(identity, "SCALES", {**identity.SCALES, "sqrt_alpha_bar": scale})


def lq_first(patch: pytest.MonkeyPatch) -> None:
    """Main pass: the degraded latent before the noisy one."""
    denoise = reference_cache.denoise

    def denoised(unet: nn.Module, sample: Tensor, *rest: object) -> Tensor:
        return denoise(unet, sample.roll(sample.shape[1] // 2, 1), *rest)

    patch.setattr(parity, "denoise", denoised)
    patch.setattr(identity, "denoise", denoised)


Comparison = Callable[[Networks, Recorded], None]
CASES: list[tuple[Callable[[pytest.MonkeyPatch], None], Comparison]] = [
    (norm_epsilon, low_contrast),
    (plain_thirds, ordinary),
    (plain_thirds, references),
    (null_is_none, null_references),
    (references_at_main_timestep, references),
    (references_at_main_timestep, loss_values),
    (unquantised_decoding, decoding),
    (unquantised_decoding, loss_values),
    (detached_references, loss_gradients),
    (swapped_halves, references),
    (swapped_halves, loss_values),
    (lq_first, ordinary),
    (lq_first, loss_values),
    (truth_as_target, loss_values),
    (alpha_without_the_bar, loss_values),
]


@pytest.mark.parametrize(("trap", "compare"), CASES, ids=lambda each: each.__name__)
def test_a_sprung_trap_is_noticed(trap, compare, folder, recorded, monkeypatch):
    trap(monkeypatch)
    networks = parity.load(folder)
    with pytest.raises(AssertionError, match="is off by"):
        compare(networks, recorded)


@pytest.mark.parametrize("compare", {compare: None for _, compare in CASES}, ids=lambda each: each.__name__)
def test_without_a_trap_the_comparison_passes(compare, folder, recorded):
    compare(parity.load(folder), recorded)


def test_detaching_shows_in_the_gradients_only(folder, recorded, monkeypatch):
    # Why values alone are not enough: the loss does not change at all.
    detached_references(monkeypatch)
    loss_values(parity.load(folder), recorded)


# --- on every machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trap", [alpha_without_the_bar, lq_first], ids=lambda each: each.__name__)
def test_a_sprung_trap_is_noticed_without_the_networks(trap, monkeypatch):
    trap(monkeypatch)
    with pytest.raises(AssertionError, match="is off by"):
        parity.compare_carried(monkeypatch)
