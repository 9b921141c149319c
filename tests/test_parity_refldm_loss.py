"""The training loss against arrays recorded from the released code (loss.npz): values, tensors on the way, gradients.

The part that needs no network weights travels with the repository (fixtures/refldm_loss.npz) and runs everywhere.
"""

from __future__ import annotations

from pathlib import Path

import parity_refldm as parity
import pytest
import torch
from parity_refldm import Networks
from torch import Tensor

from refbfr_core.diffusion import add_noise, eps_and_x0, refldm_schedule
from refbfr_core.models import decode_latents, encode_latents
from refbfr_core.training import identity


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "refldm"


@pytest.fixture(scope="module")
def networks(folder: Path) -> Networks:
    return parity.load(folder)


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Tensor]:
    return parity.arrays(folder / "loss.npz")


def test_every_array_is_compared(recorded):
    inputs = {"x_start", "gt_image", "lq_latent", "ref_latent_strip", "noise", "t", "toy_embed_weight"}
    compared = {"model_out", "pred_x0", "decoded_pred_x0", "gt_reconstruction", "x_noisy", "min_index_margin"}
    compared |= {"id_loss_per_sample", "id_loss_time_scaled_mean", "loss_simple", "loss_perceptual_logged"}
    compared |= {"loss_total"}
    assert {name for name in recorded if not name.startswith("grad__")} == inputs | compared


@torch.no_grad()
def test_truth_and_its_reconstruction(networks, recorded):
    images = (recorded["gt_image"] + 1) / 2
    parity.close(encode_latents(networks.vq, images), recorded["x_start"], parity.NETWORK_TOLERANCE, "x_start")
    rebuilt = decode_latents(networks.vq, recorded["x_start"])
    parity.close(rebuilt, recorded["gt_reconstruction"], parity.NETWORK_TOLERANCE, "gt_reconstruction")


@torch.no_grad()
def test_codebook_decisions_are_as_clear_as_recorded(networks, recorded):
    codes = networks.vq.quantize.embedding.weight.double()
    latents = recorded["pred_x0"].permute(0, 2, 3, 1).reshape(-1, 8).double()
    nearest, second = torch.cdist(latents, codes).topk(2, largest=False).values.T
    assert float((second - nearest).min()) == pytest.approx(float(recorded["min_index_margin"]), rel=1e-4)


def test_forward_process(recorded):
    noisy = add_noise(recorded["x_start"], recorded["noise"], recorded["t"], refldm_schedule())
    parity.close(noisy, recorded["x_noisy"], 1e-6, "x_noisy")


def test_loss_and_gradients(networks, recorded):
    parity.compare_training(networks, recorded)


def test_targets_may_be_given_in_three_ways(networks, recorded):
    embedder = parity.toy_embedder(recorded)
    pictures, truth = recorded["decoded_pred_x0"], recorded["gt_reconstruction"]
    embeddings = identity.identity_targets(networks.vq, recorded["x_start"], embedder)
    for targets in (truth, embeddings):
        losses = identity.identity_loss(pictures, targets, embedder)
        parity.close(losses, recorded["id_loss_per_sample"], parity.LOSS_TOLERANCE, "id_loss_per_sample")


# --- without the networks: on every machine ---------------------------------------------------------------------------


def test_carried_loss(monkeypatch):
    parity.compare_carried(monkeypatch)


def test_carried_prediction():
    recorded = parity.arrays(parity.CARRIED)
    x0 = eps_and_x0(recorded["model_out"], recorded["x_noisy"], recorded["t"], refldm_schedule())[1]
    largest = float(recorded["pred_x0"].abs().max())
    parity.close(x0, recorded["pred_x0"], 1e-6 * largest, "pred_x0")
