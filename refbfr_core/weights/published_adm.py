"""What the pixel denoiser of DifFace's release holds, checked name by name, and the network made of it.

`iddpm_ffhq512_ema500000.pth` is the face prior that DifFace, PGDiff and PDGrad share: an exponential moving average of
one U-Net's 630 tensors, with "module." before every name, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import WeightsError
from refbfr_core.weights.convert_adm import PREFIX, convert_adm_unet
from refbfr_core.weights.convert_strict import first_few
from refbfr_core.weights.published_ldm import Converted

DIFFACE_UNET: Mapping[str, Any] = MappingProxyType(
    {
        "image_size": 512,
        "model_channels": 32,
        "channel_mult": (1, 2, 4, 8, 8, 16, 16),
        "num_res_blocks": (1, 2, 2, 2, 2, 3, 4),
        "attention_sizes": (32, 16, 8),
        "num_head_channels": 64,
        "resblock_updown": False,
    }
)
"""The release, as keywords of `convert_adm_unet`: 159,788,454 parameters in 630 tensors."""


def read_adm(state: Mapping[str, Tensor], config: Mapping[str, Any] = DIFFACE_UNET) -> Converted:
    """The denoiser, float32 in eval mode.

    Raises
    ------
    WeightsError : names or shapes that are not the release's, or values that are not finite; the message names the
        first few.
    """
    broken = [name for name, x in state.items() if not x.is_meta and not bool(torch.isfinite(x).all())]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors hold NaN or infinity ({first_few(broken)}): the file is damaged. Download it again."
        )
    # The file holds the average alone, as its name says; there is nothing in it to tell it from the live weights.
    return Converted(convert_adm_unet(state, **config), True, None, ("exponential moving average, by the file's name",))


def looks_like_adm(names: Mapping[str, Any]) -> bool:
    """Whether a state dictionary is that of a guided-diffusion U-Net, damaged or not."""
    return any(name.removeprefix(PREFIX).startswith(("time_embed.", "input_blocks.")) for name in names)
