"""Tiny random networks for PDGrad's tests: the real classes at a size that runs in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
from refbfr_core.models import FaceEmbedder, PerceptualFeatures
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.models.coarse import CoarseNet
from refbfr_core.pipelines import DifFacePipeline, PDGradPipeline, PGDiffPipeline

SIDE = 32


def shake(network: torch.nn.Module, seed: int, size: float = 0.05) -> torch.nn.Module:
    """Move every weight a little, so that no layer is at its initial zero, and switch to evaluation."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=draws))
    return network.eval()


def components(seed: int = 0) -> dict[str, Any]:
    """unet, scheduler, embedder, perceptual and coarse for pictures of 32 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"sample_size": SIDE, "channels": (8, 16), "layers_per_level": (1, 1), "attention_levels": (1,)}
        shape |= {"head_width": 8, "patch_size": 2, "groups": 4}
        return {
            "unet": shake(ADMUNet(**shape), seed),
            "scheduler": to_ddpm_scheduler(make_schedule("pdgrad"), variance_type="learned_range", clip_sample=True),
            "embedder": FaceEmbedder((8, 8, 8, 8), (1, 1, 1, 1), embedding_dim=16, input_size=64).eval(),
            "perceptual": PerceptualFeatures((4, 4, 8, 8, 8), first_stride=1).eval(),
            "coarse": shake(CoarseNet(**shape), seed + 1, 0.01),
        }


def pdgrad(**changes: Any) -> PDGradPipeline:
    """A quiet PDGrad of 10 steps over the whole process, five of them below tau = 500."""
    return _quiet(PDGradPipeline(**(components() | {"num_inference_steps": 10, "start": 500} | changes)))


def pgdiff(**changes: Any) -> PGDiffPipeline:
    """A quiet PGDiff of 10 steps."""
    parts = components()
    parts.pop("perceptual")
    return _quiet(PGDiffPipeline(**(parts | {"num_inference_steps": 10} | changes)))


def difface(**changes: Any) -> DifFacePipeline:
    """A quiet DifFace of 10 steps."""
    parts = {key: value for key, value in components().items() if key in ("unet", "scheduler", "coarse")}
    return _quiet(DifFacePipeline(**(parts | {"num_inference_steps": 10} | changes)))


def faces(count: int, seed: int = 0, *more: int) -> Tensor:
    """(count, *more, 3, 32, 32) smooth random pictures in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    rough = torch.rand((count, *more, 3, 8, 8), generator=draws).flatten(0, -4)
    smooth = torch.nn.functional.interpolate(rough, (SIDE, SIDE), mode="bilinear")
    return smooth.view(count, *more, 3, SIDE, SIDE)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
