"""Checkpoints in the released layouts with random values: for tests and for measuring speed without the authors' files.

They restore nothing. Names, shapes, the sharing of tensors and the schedule are those of ReF-LDM's and DifFace's
releases and of the latent diffusion of faces, so whatever reads the real files can be tried on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refbfr_core.diffusion import make_schedule
from refbfr_core.weights.convert_adm import PREFIX, adm_unet_shapes
from refbfr_core.weights.published_adm import DIFFACE_UNET
from refbfr_core.weights.published_ldbfr import LDM_LAYOUT
from refbfr_core.weights.published_ldm import (
    AVERAGE,
    CONDITIONS,
    FIRST_STAGE,
    LIVE,
    REFLDM_LAYOUT,
    ReleasedLayout,
    average_name,
    schedule_buffers,
)


def sample_refldm(layout: ReleasedLayout = REFLDM_LAYOUT, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """The flat state dictionary of a `refldm.ckpt`: denoiser, its average, the VQGAN three times, the schedule.

    The average has other values than the denoiser, the VQGAN is that of `sample_vqgan` with the same seed. On the
    "meta" device there are names and shapes only.
    """
    return _latent_diffusion(layout, (FIRST_STAGE, *CONDITIONS), seed, device)


def sample_ldm(layout: ReleasedLayout = LDM_LAYOUT, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """The state dictionary inside a `model.ckpt` of latent diffusion: denoiser, its average, the VQGAN, the schedule.

    Of an unconditional model; devices as in `sample_refldm`.
    """
    return _latent_diffusion(layout, (FIRST_STAGE,), seed, device)


def _latent_diffusion(
    layout: ReleasedLayout, stages: tuple[str, ...], seed: int, device: str
) -> dict[str, Tensor]:
    shapes = layout.unet_shapes()
    state = {LIVE + name: tensor for name, tensor in _random(shapes, seed + 1, device).items()}
    state |= {average_name(name): tensor for name, tensor in _random(shapes, seed + 2, device).items()}
    state[f"{AVERAGE}decay"] = torch.tensor(0.9999, device=device)
    state[f"{AVERAGE}num_updates"] = torch.tensor(150_000, dtype=torch.int32, device=device)
    stage = _random(layout.vq_shapes(), seed, device)
    for prefix in stages:
        state |= {prefix + name: tensor for name, tensor in stage.items()}
    buffers = schedule_buffers(make_schedule(layout.schedule))
    return state | {name: buffer.to(device, torch.float32) for name, buffer in buffers.items()}


def sample_vqgan(layout: ReleasedLayout = REFLDM_LAYOUT, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """The state dictionary inside a `vqgan.ckpt`, with something of its training under `loss.`."""
    training = {"loss.discriminator.main.0.weight": (64, 3, 4, 4), "loss.discriminator.main.0.bias": (64,)}
    return _random(layout.vq_shapes(), seed, device) | _random(training, seed + 3, device)


def sample_adm(config: Mapping[str, Any] = DIFFACE_UNET, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """The state dictionary of an `iddpm_ffhq512_ema500000.pth`: one U-Net, "module." before its names."""
    shapes = {PREFIX + name: shape for name, shape in adm_unet_shapes(**config).items()}
    return _random(shapes, seed + 4, device)


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int, device: str) -> dict[str, Tensor]:
    """Values that keep activations near one: matrices by their number of inputs, norms near one, small biases."""
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            values = 1.0 + 0.2 * values
        else:
            values *= 0.1
        tensors[name] = values.to(device)
    return tensors
