"""Pictures to latents and back through a stock VQModel."""

from __future__ import annotations

import pytest
import torch
from diffusers import VQModel

from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.models import decode_latents, encode_latents


@pytest.fixture
def vq() -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        latent_channels=4,
        num_vq_embeddings=32,
        scaling_factor=0.5,
    ).eval()


def test_latents_are_the_scaled_unquantised_encoding_of_network_range(vq):
    images = torch.rand(2, 3, 16, 16)
    latents = encode_latents(vq, images)
    assert latents.shape == (2, 4, 8, 8)
    assert torch.equal(latents, vq.encode(2 * images - 1).latents * 0.5)


def test_patches_fold_neighbours_into_channels_and_back(vq):
    images = torch.rand(2, 3, 16, 16)
    plain, folded = encode_latents(vq, images), encode_latents(vq, images, patch_size=2)
    assert folded.shape == (2, 16, 4, 4)
    # One folded pixel holds a 2x2 neighbourhood of each channel, channels outermost.
    assert torch.equal(folded[0, :, 1, 2], plain[0, :, 2:4, 4:6].flatten())
    assert torch.equal(decode_latents(vq, folded, patch_size=2), decode_latents(vq, plain))


def test_decoding_undoes_the_scale_and_quantises_unless_told_not_to(vq):
    latents = encode_latents(vq, torch.rand(1, 3, 16, 16))
    raw = latents / 0.5
    assert torch.equal(decode_latents(vq, latents, quantize=False), vq.decode(raw, force_not_quantize=True).sample)
    nearest = torch.cdist(raw.permute(0, 2, 3, 1).flatten(0, 2), vq.quantize.embedding.weight).argmin(1)
    codes = vq.quantize.embedding.weight[nearest].view(1, 8, 8, 4).permute(0, 3, 1, 2)
    expected = vq.decode(codes, force_not_quantize=True).sample
    assert torch.allclose(decode_latents(vq, latents), expected, atol=1e-5)


def test_gradients_reach_pictures_and_latents_through_the_codebook(vq):
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    decode_latents(vq, encode_latents(vq, images, 2), 2).square().mean().backward()
    assert float(images.grad.abs().max()) > 0


def test_wrong_shapes_and_ranges(vq):
    with pytest.raises(ImageContractError):
        encode_latents(vq, torch.rand(1, 3, 16, 16) * 2 - 1)
    with pytest.raises(ConfigError, match="patches of 3"):
        encode_latents(vq, torch.rand(1, 3, 16, 16), patch_size=3)
    with pytest.raises(ConfigError, match=r"takes \(B, 16, h, w\)"):
        decode_latents(vq, torch.zeros(1, 4, 8, 8), patch_size=2)
    with pytest.raises(ConfigError, match="4 channels takes no RGB pictures"):
        encode_latents(VQModel(in_channels=4), torch.rand(1, 3, 16, 16))


def test_a_first_stage_may_take_folded_pixels():
    folded = VQModel(
        in_channels=12,
        out_channels=12,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=8,
        scaling_factor=1.0,
    ).eval()
    images = torch.rand(1, 3, 16, 16)
    latents = encode_latents(folded, images)
    assert latents.shape == (1, 3, 4, 4)
    decoded = decode_latents(folded, latents, quantize=False)
    assert decoded.shape == images.shape
    # Every second pixel of a channel is a channel of its own, row by row.
    assert torch.equal(decoded[:, :, 1::2, 0::2], folded.decode(latents, force_not_quantize=True).sample[:, 2::4])
