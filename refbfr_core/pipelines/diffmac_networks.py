"""DiffMAC's networks by name, for both profiles, and its second stages one by one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refbfr_core.errors import unknown_name

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from torch import nn

    from refbfr_core.models.second_stage import SecondStage

ZERO_TOKEN = "zero token"
"""The prompt of the small networks: one token of zeros, in the place of a text encoder's."""


def load_second(
    label: str = "id-0.001",
    profile: str = "toy",
    device: str | torch.device | None = None,
    *,
    root: str | Path | None = None,
) -> tuple[SecondStage, UNet2DConditionModel | None]:
    """A second stage by the end of its network's name, and its own denoiser, or None for that of Stage I.

    ``pipe.with_second(*load_second("noise-0.001"))`` is another row of Table 3, everything else shared. A folder that
    holds "diffmac-two-unet" has a denoiser that was trained with the second stages in it.

    Raises:
        UnknownNameError: no such second stage. WeightsError: weights that are missing or damaged.
    """
    from refbfr_core.weights import load_network
    from refbfr_core.weights.registry import DIFFMAC_SECOND

    if label not in DIFFMAC_SECOND:
        raise unknown_name("second stage of DiffMAC", label, DIFFMAC_SECOND)
    return load_network(f"diffmac-two-{label}", profile, device, root=root), _tuned("two", profile, device, root)


def build_diffmac(
    profile: str,
    root: str | Path | None,
    *,
    prediction: str,
    second: str,
    embedder: str,
    prompt: str,
    elsewhere: Collection[str] = (),
    **configuration: Any,
) -> DiffusionPipeline:
    """The pipeline with the second stage `second` (a label, see `load_second`) and networks of these names.

    Where the folder has denoisers that a training changed, "diffmac-one-unet" takes the place of "diffmac-unet" in both
    stages and "diffmac-two-unet" in Stage II. Networks named in `elsewhere` belong to no training of DiffMAC; a folder
    `root` may leave them out, and they come from where the profile has them. `prompt` is `ZERO_TOKEN` or a network.

    Raises WeightsError for weights that are missing or damaged; the authors released none for "paper".
    """
    from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
    from refbfr_core.models.prompt import PromptEmbedding
    from refbfr_core.pipelines.diffmac import DiffMACPipeline
    from refbfr_core.weights import load_network

    def load(name: str) -> nn.Module:
        own = name not in elsewhere or _has(name, profile, root)
        return load_network(name, profile, "cpu", root=root if own else None)

    # What nobody released comes first: whoever lacks it should not have to download gigabytes to hear so.
    modulation = load("diffmac-one")
    stage, tuned_two = load_second(second, profile, "cpu", root=root)
    unet = _tuned("one", profile, "cpu", root) or load("diffmac-unet")
    return DiffMACPipeline(
        vae=load("diffmac-vae"),
        unet=unet,
        modulation=modulation,
        second=stage,
        prompt=PromptEmbedding(1, unet.config.cross_attention_dim) if prompt == ZERO_TOKEN else load(prompt),
        scheduler=to_ddpm_scheduler(make_schedule("diffmac"), prediction_type=prediction),
        embedder=load(embedder),
        unet_two=tuned_two,
        **configuration,
    )


def _tuned(
    stage: str, profile: str, device: str | torch.device | None, root: str | Path | None
) -> UNet2DConditionModel | None:
    """The denoiser that the training of a stage, "one" or "two", changed, where the folder has it."""
    from refbfr_core.weights import load_network

    name = f"diffmac-{stage}-unet"
    return load_network(name, profile, device, root=root) if _has(name, profile, root) else None


def _has(name: str, profile: str, root: str | Path | None) -> bool:
    """Whether the folder that a network would come from holds it."""
    from refbfr_core.weights import network_folder

    return network_folder(name, profile, root).is_dir()
