"""DiffMAC at full size on the meta device: the counts of its parts, and shapes through the whole network."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from refbfr_core.models.diffmac_full_size import full_size_networks, full_size_text_encoder
from refbfr_core.models.ldbfr_full_size import count_parameters
from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.modulation import SD_CHANNELS, SD_LEVELS, encoder_tensors
from refbfr_core.weights.stable_diffusion import SD21_LAYOUT


@pytest.fixture(scope="module")
def full():
    return full_size_networks()


def test_counts(full):
    assert full.parameters() == {
        "vae": 83_653_863, "unet": 865_910_724, "modulation": 44_680_640, "second": 44_680_640 + 8_792, "prompt": 1
    }  # fmt: skip
    parts = [count_parameters(part) for part in (full.unet.down_blocks, full.unet.mid_block, full.unet.up_blocks)]
    assert [round(count / 1e6, 1) for count in parts] == [251.9, 97.7, 514.2]
    outside = ("conv_in", "time_embedding", "conv_norm_out", "conv_out")
    assert sum(parts) + sum(count_parameters(getattr(full.unet, name)) for name in outside) == 865_910_724
    assert all(p.is_meta for network in vars(full).values() for p in network.parameters())


@pytest.mark.parametrize(("light", "pyramid", "zeros"), [(False, 23_976_640, 20_704_000), (True, 961_472, 4_156_160)])
def test_counts_of_the_modulation(light, pyramid, zeros):
    modulation = full_size_networks(light=light).modulation
    assert count_parameters(modulation.condition_convs) == pyramid
    assert count_parameters(modulation.scales) + count_parameters(modulation.shifts) == zeros


def test_counts_of_the_bottleneck(full):
    bottleneck = full.second.bottleneck
    assert count_parameters(bottleneck.conv) == 584
    assert count_parameters(bottleneck.scale) + count_parameters(bottleneck.shift) == 8_208
    assert bottleneck.mean.shape == bottleneck.std.shape == (8, 64, 64)
    assert full_size_networks(compensation="noise").second.bottleneck.config.compensation == "noise"


def test_the_modulation_is_made_for_the_denoiser(full):
    assert encoder_tensors(full.unet) == list(zip(SD_CHANNELS, SD_LEVELS, strict=True))
    assert tuple(full.modulation.config.channels) == SD_CHANNELS
    assert full.second.config.modulation_config["pyramid"] == full.modulation.config.pyramid


def test_the_qc_layer_has_72_parameters(full):
    assert count_parameters(full.vae.quant_conv) == 72 and full.vae.config.scaling_factor == 0.18215


def test_shapes_from_a_picture_to_a_prediction(full):
    """On the meta device a forward pass costs nothing and still refuses what does not fit."""
    with torch.device("meta"), torch.no_grad():
        moments = full.vae.quant_conv(full.vae.encoder(torch.empty(1, 3, 512, 512)))
        assert moments.shape == (1, 8, 64, 64)
        latents = DiagonalGaussianDistribution(moments).mode() * 0.18215
        made = full.second.bottleneck(moments, torch.empty(1, 512))
        assert made.moments.shape == made.share.shape == (1, 8, 64, 64)
        prompt = torch.empty(1, 77, 1024)
        assert full.prompt().shape == prompt.shape
        maps = full.modulation.conditions(latents)
        assert [tuple(each.shape[1:]) for each in maps] == [
            (320, 64, 64), (640, 32, 32), (1280, 16, 16), (1280, 8, 8)
        ]  # fmt: skip
        predicted = denoise_modulated(full.unet, latents, 500, prompt, full.modulation, latents)
        assert predicted.shape == (1, 4, 64, 64)
        assert full.vae.decode(predicted).sample.shape == (1, 3, 512, 512)


def test_configurations_are_those_that_an_import_asks_for(full):
    for network, expected in ((full.unet, SD21_LAYOUT.unet), (full.vae, SD21_LAYOUT.vae)):
        own = {key: tuple(v) if isinstance(v := network.config[key], list) else v for key in expected}
        assert own == dict(expected)


def test_the_text_encoder_has_340_million_parameters():
    pytest.importorskip("transformers")
    encoder = full_size_text_encoder()
    assert count_parameters(encoder) == 340_387_840
    assert {key: getattr(encoder.config, key) for key in SD21_LAYOUT.text} == dict(SD21_LAYOUT.text)
