"""Files in the layout of ReF-LDM's release, of a small configuration, for the tests that read and import them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from refbfr_core.weights.published_ldm import ReleasedLayout
from refbfr_core.weights.published_sample import sample_refldm, sample_vqgan

# The configuration of the recorded arrays: pictures of 32 px, latents of 16.
SMALL = ReleasedLayout(
    unet={
        "image_size": 16,
        "in_channels": 16,
        "out_channels": 8,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "attention_resolutions": (2,),
        "num_res_blocks": 1,
        "num_head_channels": 16,
    },
    vq={
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "z_channels": 8,
    },
    n_embed=64,
    embed_dim=8,
)


def write_released(
    folder: Path,
    *,
    refldm: dict[str, Tensor] | None = None,
    vqgan: dict[str, Tensor] | None = None,
    nested: bool = False,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Writes `refldm.ckpt` (flat, or nested as a training framework saves it) and `vqgan.ckpt` (always nested)."""
    folder.mkdir(parents=True, exist_ok=True)
    refldm = sample_refldm(SMALL, seed) if refldm is None else refldm
    vqgan = sample_vqgan(SMALL, seed) if vqgan is None else vqgan
    torch.save({"epoch": 3, "global_step": 150_000, "state_dict": refldm} if nested else refldm, folder / "refldm.ckpt")
    torch.save({"state_dict": vqgan, "pytorch-lightning_version": "1.9.0"}, folder / "vqgan.ckpt")
    return folder / "refldm.ckpt", folder / "vqgan.ckpt"
