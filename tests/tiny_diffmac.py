"""Tiny random networks for DiffMAC's tests: the real classes at 32 px, where conditions, lambda and identity matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny_pdgrad import shake
from torch import Tensor

from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
from refbfr_core.models import FaceEmbedder
from refbfr_core.models.bottleneck import COMPENSATIONS
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.weights import save_network

SIDE = 32
MOMENTS = (8, 16, 16)
"""Shape of the moments of a picture of `SIDE` pixels; its latents are (4, 16, 16)."""
IDENTITY_DIM = 16
PYRAMID = (8, 8, 8, 8)
CARD = {"summary": "A tiny random network of a test.", "training_data": "nothing", "recipe": {"name": "none"}}
LABELS = {
    "id-0.001": "0.001_id", "id-0.01": "0.01_id", "id-0.1": "0.1_id",
    "noise-0.1": "0.1_n", "noise-0.01": "0.01_n", "noise-0.001": "0.001_n",
    "none-0.1": "0.1_none", "none-0.01": "0.01_none", "none-0.001": "0.001_none",
    "2adain": "2AdaIN",
    "no1-noise-0.1": "no1_0.1_n", "no1-noise-0.01": "no1_0.01_n", "no1-noise-0.001": "no1_0.001_n",
}  # fmt: skip
"""Second stages by the end of their network's name, with the row of Table 3; the first is `tiny_pipeline`'s."""


def vae(seed: int = 0, side: int = SIDE) -> AutoencoderKL:
    """KL autoencoder: pictures of `side` px, folded (32 px by two, 64 px by four), to moments 8 x 16 x 16."""
    channels = 3 * (side // MOMENTS[1]) ** 2
    with _seeded(seed):
        network = AutoencoderKL(
            in_channels=channels, out_channels=channels, block_out_channels=(8,),
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), layers_per_block=1,
            latent_channels=4, norm_num_groups=4, mid_block_add_attention=False, scaling_factor=0.5,
        )  # fmt: skip
        with torch.no_grad():
            # A random encoder says nearly the same of every picture; louder, its moments tell them apart.
            network.quant_conv.weight.mul_(3)
        return network.eval()


def unet(seed: int = 1) -> UNet2DConditionModel:
    """Denoiser of 4 x 16 x 16 latents with Stable Diffusion's twelve encoder tensors; transformers at the third."""
    with _seeded(seed):
        network = UNet2DConditionModel(
            sample_size=MOMENTS[1], in_channels=4, out_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=2,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"), cross_attention_dim=8,
            attention_head_dim=1, norm_num_groups=4, use_linear_projection=True,
        )  # fmt: skip
        return network.eval()


def modulation(denoiser: UNet2DConditionModel, seed: int = 2, size: float = 0.3) -> FeatureModulation:
    """A modulation away from its initial zero; with `size` 0 it is as at the start of training."""
    with _seeded(seed):
        return shake(FeatureModulation.for_network(denoiser, PYRAMID), seed, size)


def tiny_second(
    compensation: str = "identity",
    source: str = "stage-one",
    label: str = "",
    seed: int = 3,
    size: float = 0.3,
    **bottleneck: Any,
) -> SecondStage:
    """A second stage for `unet()`, away from its initial values; compensation "off" has no bottleneck.

    `bottleneck` are further arguments of `ManifoldBottleneck`; the statistics are per channel, made up, not 0 and 1.
    """
    options = {"identity_dim": IDENTITY_DIM, "compensation": compensation, "statistics_side": 0} | bottleneck
    given = FeatureModulation.for_network(unet(), PYRAMID).config
    names = ("condition_channels", "channels", "levels", "pyramid", "channelwise")
    with _seeded(seed):
        network = SecondStage(
            {name: given[name] for name in names}, options if compensation in COMPENSATIONS else None, source, label
        )
        shake(network, seed, size)
        if network.bottleneck:
            shape = network.bottleneck.mean.shape
            mean, std = torch.linspace(-0.5, 0.5, shape[0]), torch.linspace(0.3, 1.2, shape[0])
            network.bottleneck.set_statistics(*(each.view(-1, 1, 1).expand(shape) for each in (mean, std)))
        return network


def embedder(seed: int = 4) -> FaceEmbedder:
    """A random face embedder: 32 px, resized to 64 inside, to unit vectors of width `IDENTITY_DIM`."""
    with _seeded(seed):
        return FaceEmbedder((8, 8, 8, 8), (1, 1, 1, 1), embedding_dim=IDENTITY_DIM, input_size=64).eval()


def components(
    compensation: str = "identity", source: str = "stage-one", side: int = SIDE, **second: Any
) -> dict[str, Any]:
    """vae, unet, modulation, second, embedder, prompt and scheduler; `second` as for `tiny_second`."""
    denoiser = unet()
    return {
        "vae": vae(side=side),
        "unet": denoiser,
        "modulation": modulation(denoiser),
        "second": tiny_second(compensation, source, **second),
        "embedder": embedder(),
        "prompt": PromptEmbedding(tokens=1, width=8),
        "scheduler": to_ddpm_scheduler(make_schedule("diffmac"), prediction_type="v_prediction"),
    }


def tiny_pipeline(compensation: str = "identity", source: str = "stage-one", side: int = SIDE, **changes: Any):
    """A quiet DiffMAC of 4 steps a stage; `changes` are components or defaults of the pipeline. Drawn faces have at
    least 64 px, so studies of them want `side` 64."""
    from refbfr_core.pipelines.diffmac import DiffMACPipeline

    pipe = DiffMACPipeline(**(components(compensation, source, side) | {"num_inference_steps": 4} | changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_networks(folder: str | Path, labels: Sequence[str] = ("id-0.001",)) -> Path:
    """Save the networks of `load_pipeline("diffmac", root=folder)` and one second stage a name of `LABELS`."""
    denoiser = unet()
    networks = {
        "diffmac-vae": vae(),
        "diffmac-unet": denoiser,
        "diffmac-one": modulation(denoiser),
        "guide": embedder(),
    } | {f"diffmac-two-{name}": _second_of(name) for name in labels}
    for name, network in networks.items():
        save_network(network, name, folder, CARD, dtype=torch.float32)
    return Path(folder)


def faces(count: int, seed: int = 0, *more: int) -> Tensor:
    """(count, *more, 3, 32, 32) smooth random pictures in [0, 1]."""
    draws = torch.Generator().manual_seed(seed)
    rough = torch.rand((count, *more, 3, 8, 8), generator=draws).flatten(0, -4)
    smooth = torch.nn.functional.interpolate(rough, (SIDE, SIDE), mode="bilinear")
    return smooth.view(count, *more, 3, SIDE, SIDE)


def _second_of(name: str) -> SecondStage:
    kind = name.removeprefix("no1-").split("-")[0]
    seed = 3 + list(LABELS).index(name)
    return tiny_second(
        {"id": "identity"}.get(kind, kind), "input" if name.startswith("no1") else "stage-one", LABELS[name], seed
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights made inside are those of `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
