"""The paper profile of PDGrad and its relatives, assembled from files in the released layouts (small, random)."""

from __future__ import annotations

import pytest
import torch
from tiny_pdgrad import faces

from refbfr_core import load_pipeline
from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.models import IResNet, PerceptualFeatures
from refbfr_core.pipelines import registry
from refbfr_core.weights import import_published
from refbfr_core.weights.published_sample import sample_adm

SMALL = {
    "image_size": 32,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": (1, 2),
    "attention_sizes": (16,),
    "num_head_channels": 32,
    "resblock_updown": False,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder as `refbfr weights import` leaves it after both files."""
    folder = tmp_path_factory.mktemp("released")
    torch.save(sample_adm(SMALL, seed=1), folder / "prior.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(IResNet(layers=(2, 2, 2, 2)).state_dict(), folder / "arcface.pth")
    files = [folder / "prior.pth", folder / "arcface.pth"]
    import_published(files, accept=lambda entry: True, root=folder / "weights", pixel_unet=SMALL)
    return folder / "weights"


@pytest.fixture
def no_vgg(monkeypatch):
    """LPIPS's VGG16 is not here; a small perceptual network takes its place."""
    small = {**registry._OTHER_NETWORKS, "lpips-vgg": lambda: PerceptualFeatures((4, 4, 8, 8, 8), first_stride=1)}
    monkeypatch.setattr(registry, "_OTHER_NETWORKS", small)


def test_the_published_networks_restore_with_a_coarse_picture_of_the_caller(weights, no_vgg):
    for name in ("pdgrad", "pgdiff", "difface"):
        pipe = load_pipeline(name, profile="paper", device="cpu", root=weights)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.scheduler.config.prediction_type == "epsilon"
        lq = faces(1, 1)
        out = pipe(lq, faces(1, 2, 1), coarse="none", num_inference_steps=5)
        assert out.images.shape == lq.shape and bool(torch.isfinite(out.images).all())
        with pytest.raises(ConfigError, match="no coarse restorer"):
            pipe(lq)


def test_the_papers_settings_are_the_defaults(weights, no_vgg):
    pipe = load_pipeline("pdgrad", profile="paper", device="cpu", root=weights)
    assert (pipe.config.num_inference_steps, pipe.config.start, pipe.config.scale) == (1000, 700, 0.1)
    assert pipe.embedder.config.alignment == "resize"
    assert load_pipeline("difface", profile="paper", device="cpu", root=weights).config.eta == 0.5


def test_missing_files_say_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="iddpm_ffhq512_ema500000.pth"):
        load_pipeline("pdgrad", profile="paper", device="cpu")
