"""Comparisons with the arrays recorded from the released ReF-LDM code, shared by parity tests and mutation tests.

A mutation test breaks one thing on purpose and expects the very comparison of the parity test to fail; both therefore
call the functions here. Networks are converted anew by `load`, so that a broken conversion is noticed too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from safetensors.torch import load_file
from torch import Tensor, nn

from refbfr_core.diffusion import refldm_schedule
from refbfr_core.models import ReferenceCache, decode_latents, denoise
from refbfr_core.training import identity
from refbfr_core.weights import convert

NETWORK_TOLERANCE = 3e-5
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
FIRST_ATTENTION = "down_blocks.1.attentions.0"
CARRIED = Path(__file__).parent / "fixtures" / "refldm_loss.npz"


@dataclass(frozen=True)
class Networks:
    """The small recorded networks, converted."""

    unet: UNet2DModel
    vq: VQModel


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive}


def load(folder: Path) -> Networks:
    """Both networks from the recorded states, in float32; the first stage frozen, the denoiser trainable."""
    meta = json.loads((folder / "meta.json").read_text())
    unet = convert.convert_ldm_unet(load_file(folder / "unet_state.safetensors"), meta["unet_config"])
    state = load_file(folder / "vq_state.safetensors")
    vq = convert.convert_ldm_vq(state, meta["vq_config"], meta["n_embed"], meta["embed_dim"])
    return Networks(unet, vq.requires_grad_(False))


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b).abs().max())


def close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    off = difference(a, b)
    assert off < tolerance, f"{what} is off by {off:.2g}, allowed is {tolerance:g}"


# --- networks ---------------------------------------------------------------------------------------------------------


def inputs(io: dict[str, Tensor], x: str = "x", lq: str = "lq") -> Tensor:
    return torch.cat([io[x], io[lq]], dim=1)


@torch.no_grad()
def compare_unet(unet: UNet2DModel, io: dict[str, Tensor], small: bool = False) -> None:
    """Without references; ``small`` takes the inputs whose low contrast makes the norms' epsilon matter."""
    end = "_small" if small else ""
    out = denoise(unet, inputs(io, f"x{end}", f"lq{end}"), io["t"])
    close(out, io[f"out_noref{end}"], NETWORK_TOLERANCE, f"out_noref{end}")


@torch.no_grad()
def compare_references(unet: UNet2DModel, io: dict[str, Tensor], count: int) -> None:
    cache = ReferenceCache.build(unet, io["refs"][:, :count])
    close(denoise(unet, inputs(io), io["t"], cache), io[f"out_ref{count}"], NETWORK_TOLERANCE, f"out_ref{count}")


@torch.no_grad()
def compare_blank_references(unet: UNet2DModel, io: dict[str, Tensor]) -> None:
    """Null references are zeros that are attended to."""
    cache = ReferenceCache.build(unet, torch.zeros_like(io["refs"][:, :2]))
    out = denoise(unet, inputs(io), io["t"], cache)
    close(out, io["out_zero_ref2"], NETWORK_TOLERANCE, "out_zero_ref2")
    assert difference(out, io["out_noref"]) > 100 * NETWORK_TOLERANCE


@torch.no_grad()
def compare_decoding(vq: VQModel, vq_io: dict[str, Tensor]) -> None:
    decoded = decode_latents(vq, vq_io["latents_prequant"])
    close(decoded, vq_io["decoded_from_quant"], NETWORK_TOLERANCE, "decoded_from_quant")


# --- the training loss ------------------------------------------------------------------------------------------------


def toy_embedder(recorded: dict[str, Tensor]) -> identity.EmbedderLike:
    """The stand-in for the face network: 8 x 8 average pooling of the 112 x 112 crop and a matrix."""
    weight = recorded["toy_embed_weight"]
    return lambda crops: F.adaptive_avg_pool2d(crops, 8).flatten(1) @ weight.T


def loss_of(networks: Networks, recorded: dict[str, Tensor]) -> identity.RefLDMLoss:
    """`refldm_loss` on the recorded batch: two samples with two references each."""
    references = torch.stack(recorded["ref_latent_strip"].chunk(2, dim=-1), dim=1)
    return identity.refldm_loss(
        networks.unet,
        recorded["x_start"],
        recorded["lq_latent"],
        references,
        recorded["noise"],
        recorded["t"],
        refldm_schedule(),
        vq=networks.vq,
        embedder=toy_embedder(recorded),
    )


def compare_loss(loss: identity.RefLDMLoss, recorded: dict[str, Tensor]) -> None:
    """Every recorded number of the loss and every tensor on the way."""
    close(loss.output, recorded["model_out"], NETWORK_TOLERANCE, "model_out")
    # The one-step prediction divides by sqrt(alpha_bar), down to 0.2 here.
    largest = float(recorded["pred_x0"].abs().max())
    close(loss.x0, recorded["pred_x0"], NETWORK_TOLERANCE * max(1.0, largest), "pred_x0")
    close(loss.decoded, recorded["decoded_pred_x0"], NETWORK_TOLERANCE, "decoded_pred_x0")
    close(loss.identity_each, recorded["id_loss_per_sample"], LOSS_TOLERANCE, "id_loss_per_sample")
    close(loss.identity, recorded["id_loss_time_scaled_mean"], LOSS_TOLERANCE, "id_loss_time_scaled_mean")
    close(loss.identity, recorded["loss_perceptual_logged"], LOSS_TOLERANCE, "loss_perceptual_logged")
    close(loss.denoising, recorded["loss_simple"], LOSS_TOLERANCE, "loss_simple")
    close(loss.total, recorded["loss_total"], LOSS_TOLERANCE, "loss_total")


def gradients(networks: Networks, loss: identity.RefLDMLoss) -> dict[str, Tensor]:
    """Gradients of the total under the recorded names and in the recorded layouts."""
    networks.unet.zero_grad(set_to_none=True)
    loss.total.backward()
    unet = networks.unet
    attention = unet.get_submodule(FIRST_ATTENTION)
    projections = torch.stack([getattr(attention, f"to_{letter}").weight.grad for letter in "qkv"])
    # (3, heads * width, C) to the joint projection's rows (head, query/key/value, channel), as a 1-wide convolution.
    joint = projections.unflatten(1, (attention.heads, -1)).transpose(0, 1).flatten(0, 2)[..., None]
    return {
        "out.2.weight": unet.conv_out.weight.grad,
        "input_blocks.0.0.weight": unet.conv_in.weight.grad,
        "input_blocks.4.1.qkv.weight": joint,
        "time_embed.0.weight": unet.time_embedding.linear_1.weight.grad,
    }


def compare_gradients(found: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    expected = {name.removeprefix("grad__"): grad for name, grad in recorded.items() if name.startswith("grad__")}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        close(found[name], gradient, GRADIENT_TOLERANCE * float(gradient.abs().max()), f"gradient of {name}")


def compare_training(networks: Networks, recorded: dict[str, Tensor]) -> None:
    """Values, then gradients."""
    loss = loss_of(networks, recorded)
    compare_loss(loss, recorded)
    compare_gradients(gradients(networks, loss), recorded)


# --- without the networks: the arrays that travel with the repository -------------------------------------------------


class RecordedDenoiser(nn.Module):
    """Returns the recorded output, after checking that it was asked for the recorded input."""

    def __init__(self, recorded: dict[str, Tensor]) -> None:
        super().__init__()
        self.recorded = recorded

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        expected = torch.cat([self.recorded["x_noisy"], self.recorded["lq_latent"]], dim=1)
        close(sample, expected, 1e-6, "input of the denoiser")
        assert torch.equal(timestep, self.recorded["t"])
        return (self.recorded["model_out"],)


def compare_carried(patch: pytest.MonkeyPatch) -> None:
    """The loss with a denoiser and a decoder that return what was recorded, for the recorded inputs and no other."""
    recorded = arrays(CARRIED)

    def decode(vq: None, latents: Tensor, patch_size: int = 1, quantize: bool = True) -> Tensor:
        assert quantize, "decoding without the codebook is off by definition"
        close(latents, recorded["pred_x0"], 1e-5 * float(recorded["pred_x0"].abs().max()), "latents to be decoded")
        return recorded["decoded_pred_x0"]

    patch.setattr(identity, "decode_latents", decode)
    loss = identity.refldm_loss(
        RecordedDenoiser(recorded),
        recorded["x_start"],
        recorded["lq_latent"],
        None,
        recorded["noise"],
        recorded["t"],
        refldm_schedule(),
        vq=object(),
        embedder=toy_embedder(recorded),
        targets=recorded["gt_reconstruction"],
    )
    compare_loss(loss, recorded)
