"""The part of the recorded ReF-LDM arrays that travels with the repository, so that no machine goes without.

fixtures/refldm_networks.safetensors: the first quarter of the small recorded U-Net (up to and including its first
attention block), what it computes, and the codebook of the small VQGAN. The remaining three quarters are filled with
noise here: nothing they do is compared. test_parity_refldm.py checks everything, with the shared folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.autoencoders.vae import VectorQuantizer
from safetensors import safe_open
from torch import Tensor

from refbfr_core.models import ReferenceCache, crop_and_resize, denoise
from refbfr_core.weights import convert

FIXTURES = Path(__file__).parent / "fixtures"
TOLERANCE = 3e-5
FIRST_ATTENTION = "down_blocks.1.attentions.0"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    with safe_open(FIXTURES / "refldm_networks.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict: it cannot be iterated


@pytest.fixture(scope="module")
def unet(recorded: dict[str, Tensor]) -> UNet2DModel:
    with safe_open(FIXTURES / "refldm_networks.safetensors", framework="pt") as file:
        config, other_shapes = (json.loads(file.metadata()[key]) for key in ("unet_config", "other_shapes"))
    state = {key.removeprefix("state."): tensor for key, tensor in recorded.items() if key.startswith("state.")}
    noise = torch.Generator().manual_seed(0)
    state |= {key: torch.randn(shape, generator=noise) * 0.05 for key, shape in other_shapes.items()}
    return convert.convert_ldm_unet(state, config)


def _difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@torch.no_grad()
def test_time_embedding(unet, recorded):
    sinusoid = unet.time_proj(recorded["unet.t"])
    assert _difference(sinusoid, recorded["unet.timestep_sinusoid"]) < 1e-6
    embedded = unet.time_embedding(sinusoid)
    assert _difference(embedded, recorded["unet.mid_noref__time_embed_out"]) < TOLERANCE


@torch.no_grad()
def test_forward_to_the_first_attention(unet, recorded):
    seen = {}
    hook = unet.get_submodule(FIRST_ATTENTION).register_forward_hook(lambda module, args, out: seen.update(out=out))
    denoise(unet, torch.cat([recorded["unet.x"], recorded["unet.lq"]], dim=1), recorded["unet.t"])
    hook.remove()
    assert _difference(seen["out"], recorded["unet.mid_noref__after_first_attention"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("which", ["k", "v"])
def test_reference_pass(unet, recorded, which):
    # A reference at another timestep than 0, or in the low-quality half of the input, is off by tenths here.
    entry = ReferenceCache.build(unet, recorded["unet.refs"]).layers[FIRST_ATTENTION]
    rows = entry.keys if which == "k" else entry.values
    heads = unet.get_submodule(FIRST_ATTENTION).heads
    in_recorded_layout = rows.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
    assert _difference(in_recorded_layout, recorded[f"unet.ref1_cached_{which}__first"]) < TOLERANCE


def test_codebook_lookup(recorded):
    quantizer = VectorQuantizer(64, 8, beta=0.25)
    quantizer.load_state_dict({"embedding.weight": recorded["vq.codebook"]})
    quantised, _, (_, _, indices) = quantizer(recorded["vq.latents_prequant"])
    assert torch.equal(indices.view(recorded["vq.indices"].shape), recorded["vq.indices"])
    assert _difference(quantised, recorded["vq.latents_quant"]) < 1e-6


def test_identity_preprocessing():
    with np.load(FIXTURES / "refldm_identity_preprocess.npz") as archive:
        image, expected = (torch.from_numpy(archive[key]) for key in ("image_u8_100x140", "pre_100x140"))
    assert _difference(crop_and_resize(image.permute(2, 0, 1)[None] / 127.5 - 1), expected) < 1e-6
