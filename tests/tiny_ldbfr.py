"""Tiny random networks for LD-BFR's tests: the real classes at 64 px, where every injector does something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from tiny_pdgrad import shake
from torch import Tensor

from refbfr_core.diffusion import make_schedule, to_scheduler
from refbfr_core.models.injected_unet import HQInjection
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.models.vq_restorer import VQRestorer

SIDE, CODES = 64, 32
FEATURES = (16, 4, 4)
"""Channels and sides of f_HQ."""
LATENTS = (3, 16, 16)


def condition_vq(seed: int = 0) -> VQModel:
    """VQ-C: 64 px, folded by two, to features 16 x 4 x 4; 32 codes, attention on the deepest level."""
    with _seeded(seed):
        vq = VQModel(
            in_channels=12, out_channels=12, block_out_channels=(8, 8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3, layers_per_block=1,
            latent_channels=16, vq_embed_dim=16, num_vq_embeddings=CODES, norm_num_groups=4, scaling_factor=1.0,
        )  # fmt: skip
        with torch.no_grad():
            # A random encoder says nearly the same of every picture; louder, it picks many codes.
            vq.quant_conv.weight.mul_(12)
        return _with_codes(vq, 1.0)


def output_vq(seed: int = 1) -> OutputVQModel:
    """VQ-O: reads 32 px, latents 3 x 16 x 16, 32 codes, renders 64 px."""
    with _seeded(seed):
        vq = OutputVQModel(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, num_vq_embeddings=CODES, norm_num_groups=4,
        )  # fmt: skip
        return _with_codes(vq, 1.0)


def restorer(vqc: VQModel, seed: int = 2, **dcam: Any) -> VQRestorer:
    """E_LQ near the encoder of `vqc`, and DCAM with 4 heads (`dcam`: mode, channel_scale, dual)."""
    with _seeded(seed):
        return shake(VQRestorer.copy_of(vqc, heads=4, **dcam), seed, 0.02)


def unet(seed: int = 3) -> UNet2DModel:
    """Denoiser of 16 x 16 latents, attention at ds 2, 4 and 8."""
    with _seeded(seed):
        network = UNet2DModel(
            sample_size=LATENTS[1], in_channels=3, out_channels=3, block_out_channels=(8, 16, 16, 16),
            layers_per_block=1, down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
            up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",), attention_head_dim=8, norm_num_groups=4,
        )  # fmt: skip
        return network.eval()


def injection(denoiser: UNet2DModel, variant: str = "D", seed: int = 4, size: float = 0.2) -> HQInjection:
    """Injectors of a variant away from their initial zero; with `size` 0 they are as at the start of training."""
    with _seeded(seed):
        return shake(HQInjection.for_network(denoiser, FEATURES[0], FEATURES[1], variant), seed, size)


def components(variant: str = "D", **dcam: Any) -> dict[str, Any]:
    """vqc, restorer, vqo, unet, injection and scheduler for pictures of 64 px; `dcam` as for `restorer`."""
    vqc, denoiser = condition_vq(), unet()
    return {
        "vqc": vqc,
        "restorer": restorer(vqc, **dcam),
        "vqo": output_vq(),
        "unet": denoiser,
        "injection": injection(denoiser, variant),
        "scheduler": to_scheduler(make_schedule("ldbfr"), prediction_type="v_prediction"),
    }


def ldbfr(variant: str = "D", **changes: Any):
    """A quiet LD-BFR of 5 steps; `changes` are components or defaults of the pipeline."""
    from refbfr_core.pipelines.ldbfr import LDBFRPipeline

    pipe = LDBFRPipeline(**(components(variant) | {"num_inference_steps": 5} | changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def faces(count: int, seed: int = 0, *more: int) -> Tensor:
    """(count, *more, 3, 64, 64) smooth random pictures in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    rough = torch.rand((count, *more, 3, 8, 8), generator=draws).flatten(0, -4)
    smooth = torch.nn.functional.interpolate(rough, (SIDE, SIDE), mode="bilinear")
    return smooth.view(count, *more, 3, SIDE, SIDE)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights made inside are those of `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _with_codes(vq: VQModel, spread: float) -> VQModel:
    """Codes of a spread in which neighbours differ, instead of the class's tiny initial ones; call it seeded."""
    torch.nn.init.normal_(vq.quantize.embedding.weight, std=spread)
    return vq.eval()
