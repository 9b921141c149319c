"""U-Net, CacheKV, VQGAN and a whole sampling run against arrays recorded from the released ReF-LDM code.

The arrays (small random networks, every parameter randomised) lie in the shared folder; a part of them travels with
the repository and is checked on every machine by test_parity_refldm_carried.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import parity_refldm as parity
import pytest
import torch
from diffusers import UNet2DModel, VQModel
from parity_refldm import NETWORK_TOLERANCE
from torch import Tensor

from refbfr_core.diffusion import (
    Predict,
    Trace,
    alpha_bar_pairs,
    guided_predict,
    refldm_schedule,
    sample,
    trailing_timesteps,
    uniform_timesteps,
)
from refbfr_core.images import from_network
from refbfr_core.models import ReferenceCache, crop_and_resize, decode_latents, denoise, encode_latents
from refbfr_core.models.cachekv import LayerCache
from refbfr_core.weights import convert


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "refldm"


@pytest.fixture(scope="module")
def networks(folder: Path) -> parity.Networks:
    return parity.load(folder)


@pytest.fixture(scope="module")
def unet(networks: parity.Networks) -> UNet2DModel:
    return networks.unet


@pytest.fixture(scope="module")
def vq(networks: parity.Networks) -> VQModel:
    return networks.vq


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, Tensor]:
    return parity.arrays(folder / "unet_io.npz")


@pytest.fixture(scope="module")
def vq_io(folder: Path) -> dict[str, Tensor]:
    return parity.arrays(folder / "vq_io.npz")


@pytest.fixture(scope="module")
def run(folder: Path) -> dict[str, Tensor]:
    return parity.arrays(folder / "ddim_run.npz")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# --- U-Net and CacheKV ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [False, True])
def test_unet_without_references(unet, io, small):
    # The small inputs are what tells a norm epsilon of 1e-6 from 1e-5.
    parity.compare_unet(unet, io, small)


def test_time_embedding(unet, io):
    sinusoid = unet.time_proj(io["t"])
    assert parity.difference(sinusoid, io["timestep_sinusoid"]) < 1e-6
    assert parity.difference(unet.time_embedding(sinusoid), io["mid_noref__time_embed_out"]) < NETWORK_TOLERANCE


@pytest.mark.parametrize(
    ("layer", "recorded"),
    [
        ("conv_in", "after_input_block_0"),
        ("down_blocks.0.resnets.0", "after_input_block_1"),
        ("down_blocks.1.attentions.0", "after_first_attention"),
        ("down_blocks.1.attentions.1", "after_last_input_block"),
        ("mid_block", "after_middle_block"),
    ],
)
def test_activations_on_the_way(unet, io, layer, recorded):
    seen = {}
    hook = unet.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.update(output=output))
    denoise(unet, parity.inputs(io), io["t"])
    hook.remove()
    assert parity.difference(seen["output"], io[f"mid_noref__{recorded}"]) < NETWORK_TOLERANCE


@pytest.mark.parametrize("count", [1, 3])
def test_unet_with_references(unet, io, count):
    parity.compare_references(unet, io, count)


def test_a_cache_is_reused_for_another_step(unet, io):
    cache = ReferenceCache.build(unet, io["refs"])
    denoise(unet, parity.inputs(io), io["t"], cache)
    second = denoise(unet, parity.inputs(io, "x_second"), io["t_second"], cache)
    assert parity.difference(second, io["out_ref3_reuse_second"]) < NETWORK_TOLERANCE


def test_blank_references_are_not_no_references(unet, io):
    parity.compare_blank_references(unet, io)


@pytest.mark.parametrize(
    ("where", "layer"),
    [
        ("first", "down_blocks.1.attentions.0"),
        ("middle", "mid_block.attentions.0"),
        ("last", "up_blocks.0.attentions.2"),
    ],
)
def test_cached_keys_and_values(unet, io, where, layer):
    cache = ReferenceCache.build(unet, io["refs"][:, :1])
    entry: LayerCache = cache.layers[layer]

    def recorded_layout(rows: Tensor) -> Tensor:
        heads = unet.get_submodule(layer).heads
        return rows.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)  # (B*heads, width, tokens)

    assert parity.difference(recorded_layout(entry.keys), io[f"ref1_cached_k__{where}"]) < NETWORK_TOLERANCE
    assert parity.difference(recorded_layout(entry.values), io[f"ref1_cached_v__{where}"]) < NETWORK_TOLERANCE


# --- VQGAN ------------------------------------------------------------------------------------------------------------


def test_vq_encodes_without_quantising(vq, vq_io):
    images = vq_io["image_u8"].permute(0, 3, 1, 2) / 255.0
    assert parity.difference(vq.encoder(vq_io["image"]), vq_io["encoder_out"]) < NETWORK_TOLERANCE
    assert parity.difference(encode_latents(vq, images), vq_io["latents_prequant"]) < NETWORK_TOLERANCE
    low = (vq_io["image_lowcontrast"] + 1) / 2
    assert parity.difference(encode_latents(vq, low), vq_io["latents_prequant_lowcontrast"]) < NETWORK_TOLERANCE


def test_vq_codebook(vq, vq_io):
    quantised, loss, (_, _, indices) = vq.quantize(vq_io["latents_prequant"])
    assert torch.equal(indices.view(vq_io["indices"].shape), vq_io["indices"])
    assert parity.difference(quantised, vq_io["latents_quant"]) < 1e-6
    assert float(loss) == pytest.approx(float(vq_io["codebook_loss"]), rel=1e-5)


def test_vq_decodes_with_and_without_codebook(vq, vq_io):
    parity.compare_decoding(vq, vq_io)
    unquantised = decode_latents(vq, vq_io["latents_prequant"], quantize=False)
    assert parity.difference(unquantised, vq_io["decoded_no_quant"]) < NETWORK_TOLERANCE


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_conditions_are_encoded_like_the_authors_do(vq, run):
    def encode(images: Tensor) -> Tensor:
        return encode_latents(vq, (images + 1) / 2)

    references = run["ref_images"]
    strip = torch.cat(references.unbind(1), dim=-1)  # references side by side, as one wide picture
    assert parity.difference(encode(run["lq_image"]), run["lq_latent"]) < NETWORK_TOLERANCE
    assert parity.difference(encode(strip), run["ref_latent_strip"]) < NETWORK_TOLERANCE
    separately = torch.stack([encode(reference) for reference in references.unbind(1)], dim=1)
    assert parity.difference(separately, run["ref_latents_encoded_separately"]) < NETWORK_TOLERANCE


def _predictor(unet: UNet2DModel, run: dict[str, Tensor], scale: float, outputs: list[Tensor]) -> Predict:
    """The guided prediction of ReF-LDM: blank references are the unconditional branch, computed first."""
    references = torch.stack(run["ref_latent_strip"].chunk(2, dim=-1), dim=1)
    blank = torch.zeros_like(references)

    def bound(latents: Tensor) -> Predict:
        cache = ReferenceCache.build(unet, latents)

        def predict(x_t: Tensor, t: int) -> Tensor:
            inputs = torch.cat([x_t, run["lq_latent"]], dim=1)
            outputs.append(denoise(unet, inputs.repeat(cache.people, 1, 1, 1), t, cache))
            return outputs[-1]

        return predict

    return guided_predict(bound(references), bound(blank), scale, both=bound(torch.cat([blank, references])))


@pytest.mark.parametrize(
    ("name", "scale", "timesteps"),
    [
        ("cfg15", 1.5, trailing_timesteps(1000, 5)),
        ("cfg10", 1.0, trailing_timesteps(1000, 5)),
        ("cfg15_uniform", 1.5, uniform_timesteps(1000, 4)),
    ],
)
def test_ddim_run(unet, run, name, scale, timesteps):
    assert timesteps == run[f"{name}__timesteps_descending"].tolist()
    schedule, trace, outputs = refldm_schedule(), Trace(keep=("x_t", "x0", "x_prev")), []
    for which, recorded in enumerate((f"{name}__ddim_alphas", f"{name}__ddim_alphas_prev")):
        levels = [pair[which] for pair in alpha_bar_pairs(timesteps, schedule)]
        np.testing.assert_allclose(levels[::-1], run[recorded].numpy(), rtol=5e-6)
    final = sample(_predictor(unet, run, scale, outputs), run["x_T"], timesteps, schedule, trace=trace)
    assert parity.difference(final, run[f"{name}__final"]) < 2e-5 * float(run[f"{name}__x_t"][-2:].abs().max())
    for step in range(len(timesteps)):
        # A random network amplifies; the tolerance is relative to the sample of the step.
        bound = 2e-5 * float(run[f"{name}__x_t"][step].abs().max())
        assert parity.difference(trace.stack("x_t")[step], run[f"{name}__x_t"][step]) < bound
        assert parity.difference(outputs[step], run[f"{name}__unet_out"][step]) < max(bound, NETWORK_TOLERANCE)
        x0 = run[f"{name}__pred_x0"][step]
        assert parity.difference(trace.stack("x0")[step], x0) < 2e-5 * float(x0.abs().max())


def test_decoding_the_result(vq, run):
    decoded = decode_latents(vq, run["cfg15__final"])
    assert parity.difference(decoded, run["cfg15__decoded"]) < 5e-5
    assert parity.difference(from_network(decoded), run["cfg15__decoded_01"]) < 5e-5


# --- identity preprocessing and full-size layouts ---------------------------------------------------------------------


@pytest.mark.parametrize("size", ["512x512", "256x256", "200x232", "100x140"])
def test_identity_preprocessing(folder, size):
    arrays = parity.arrays(folder / "identity_preprocess.npz")
    image = arrays[f"image_u8_{size}"].permute(2, 0, 1)[None] / 127.5 - 1
    assert parity.difference(crop_and_resize(image), arrays[f"pre_{size}"]) < 1e-6


def test_full_size_layouts_convert_whole(folder):
    keys = json.loads((folder / "full_config_keys.json").read_text())
    unet_state, vq_state = (
        {name: torch.empty(shape, device="meta") for name, shape in keys[part].items()}
        for part in ("unet", "first_stage")
    )
    unet = convert.convert_ldm_unet(unet_state, FULL_UNET)
    vq = convert.convert_ldm_vq(vq_state, FULL_VQ, n_embed=8192, embed_dim=8)
    assert (len(unet_state), len(unet.state_dict())) == (366, 430)
    assert sum(p.numel() for p in unet.parameters()) == 117_759_368
    assert sum(p.numel() for p in vq.parameters()) == 57_183_515
    assert {layer.heads for layer in (unet.down_blocks[1].attentions[0], unet.down_blocks[2].attentions[0])} == {10}
    assert unet.mid_block.attentions[0].heads == 20
    assert vq.config.scaling_factor == 1.0


FULL_UNET = {
    "image_size": 64,
    "in_channels": 16,
    "out_channels": 8,
    "model_channels": 160,
    "channel_mult": [1, 2, 2, 4],
    "attention_resolutions": [2, 4, 8],
    "num_res_blocks": 2,
    "num_head_channels": 32,
    "use_spatial_transformer": False,
}
FULL_VQ = {
    "double_z": False,
    "z_channels": 8,
    "resolution": 512,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
