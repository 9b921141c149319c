"""The full-size recipes, for photographs: what ReF-LDM's authors trained and how (spec: paper and released
configurations). They are chosen with `--profile paper` and run by `refbfr_core.training.launch_full`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.training.recipes import IDENTITY_SCALES, Recipe, recipe


@dataclass(frozen=True)
class RefLDMFullRecipe(Recipe):
    """ReF-LDM's denoiser on photographs with references (Hsiao et al., NeurIPS 2024, sections 3.2 to 4.1).

    `batch` counts targets of one step over all processes together, however many there are and however many pieces each
    goes through. `references` of each target are used, repeated if there are fewer; 0 trains the plain LDM.
    `identity_weight` and `identity_scale` belong to the identity loss (section 3.3), `drop_lq` and `drop_references`
    are the probabilities of zeroing a condition. `degradation` is a preset, applied on the fly. `perspective` is the
    probability in `ReferenceAugmentation`, `flip` that of mirroring a whole sample. `weighted` draws targets by the
    weights in the list instead of going through all of them. `width`, `multipliers`, `attention` (downsampling factors
    that have it), `layers`, `head_width` and `groups` describe the network.

    What the sources do not say and was chosen here: no gradient clipping (`clip` is so large that it never acts), the
    number of steps and warm-up of the plain LDM, when to evaluate and save.
    """

    network: str = "refldm-unet"
    steps: int = 150_000
    batch: int = 8
    lr: float = 5e-5
    lr_schedule: str = "constant"
    warmup: int = 10_000
    cooldown: float = 0.0
    weight_decay: float = 0.01
    decay_everything: bool = True
    clip: float = 1e6
    ema: float = 0.9999
    log_every: int = 50
    eval_every: int = 5_000
    checkpoint_every: int = 1_000
    people: int = 0
    resolution: int = 512
    schedule: str = "refldm"
    references: int = 5
    identity_weight: float = 0.1
    identity_scale: str = "sqrt_alpha_bar"
    drop_lq: float = 0.1
    drop_references: float = 0.1
    degradation: str = "refldm-train"
    perspective: float = 1.0
    flip: float = 0.5
    weighted: bool = False
    width: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    attention: tuple[int, ...] = (2, 4, 8)
    layers: int = 2
    head_width: int = 32
    groups: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        # Imported here: reading the recipes should not load the image libraries.
        from refbfr_core.degradation import PRESETS

        if self.degradation not in PRESETS:
            raise unknown_name("degradation preset", self.degradation, PRESETS)
        if self.identity_scale not in IDENTITY_SCALES:
            raise unknown_name("scale of the identity loss", self.identity_scale, IDENTITY_SCALES)
        if self.references < 0 or self.identity_weight < 0:
            raise ConfigError(f"references={self.references} and identity_weight={self.identity_weight} must be >= 0.")
        for name in ("drop_lq", "drop_references", "flip", "perspective"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be a probability, from 0 to 1.")

    @property
    def needs_identity(self) -> bool:
        """Whether an identity network takes part."""
        return self.identity_weight > 0 and self.identity_scale != "none"


PAPER_RECIPES: Mapping[str, RefLDMFullRecipe] = types.MappingProxyType(
    {
        "ldm": RefLDMFullRecipe(batch=40, warmup=1, references=0, identity_weight=0.0, drop_references=0.0),
        "refldm": RefLDMFullRecipe(),
    }
)
"""Stage 1, a latent diffusion model without references, and stage 2, which starts from it."""


def paper_recipe(name: str, **changes: Any) -> RefLDMFullRecipe:
    """The full-size recipe called ``name`` with some values changed; text is read as the right type.

    Raises
    ------
    UnknownNameError : no such recipe or value. ConfigError : a value of the wrong kind or out of range.
    """
    return recipe(name, PAPER_RECIPES, **changes)
