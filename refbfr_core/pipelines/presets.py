"""Named ways to sample, so that a result can be said to be made as somebody else made theirs.

ReF-LDM's two scripts do not sample alike:

| name | script of the release | steps | spacing | guidance | start noise |
|---|---|---:|---|---:|---|
| `release` | for a single image | 50 | `trailing` | 1.5 | seed 2024 |
| `paper-evaluation` | for a data set, as the paper evaluates | 100 | `uniform` | 1.5 | seed 2024, all images the same |

    pipe(lq, references, **SAMPLING["paper-evaluation"])                 # settings only, noise by the pipeline's seeds
    pipe(lq, references, **sampling("paper-evaluation", len(lq)))        # and the seeds: one start x_T for all images

A seed stands for the same numbers here and for other numbers in the authors' scripts, which draw them on a GPU: the
start is shared by all images as it is there, but it is not theirs.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from refbfr_core.errors import ConfigError, unknown_name

__all__ = ["SAMPLING", "SAMPLING_SEED", "sampling"]

SAMPLING: MappingProxyType[str, MappingProxyType[str, Any]] = MappingProxyType(
    {
        "release": MappingProxyType(
            {"num_inference_steps": 50, "timestep_spacing": "trailing", "guidance_scale": 1.5, "eta": 0.0}
        ),
        "paper-evaluation": MappingProxyType(
            {"num_inference_steps": 100, "timestep_spacing": "uniform", "guidance_scale": 1.5, "eta": 0.0}
        ),
    }
)
"""Keywords of a pipeline call, by the name of the preset."""

SAMPLING_SEED = 2024
"""The seed of both of the release's scripts."""


def sampling(name: str, images: int) -> dict[str, Any]:
    """The keywords of a preset together with the seeds for a call of `images` pictures, all the same.

    Both scripts start from seed 2024: the one for a data set uses one x_T for all images, the other restores one image.
    So an image starts from the same noise alone and in a batch of any size.

    Raises
    ------
    UnknownNameError : no such preset. ConfigError : fewer than one image.
    """
    if name not in SAMPLING:
        raise unknown_name("sampling preset", name, SAMPLING)
    if images < 1:
        raise ConfigError(f"seeds for {images} images were asked for; expected at least one image: len(lq).")
    return {**SAMPLING[name], "seed": [SAMPLING_SEED] * images}
