"""What every training has in common: the frozen dataclass that all recipes extend."""

from __future__ import annotations

from dataclasses import dataclass

from refbfr_core.errors import ConfigError, unknown_name

LR_SCHEDULES = ("constant", "cosine", "trapezoid")
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Recipe:
    """What every training has.

    Attributes
    ----------
    network : name under which the result is saved ("judge", "guide", "refldm-vq", "refldm-unet").
    steps, batch : optimiser steps, and samples of one step over all processes together.
    lr, lr_schedule, warmup, cooldown : peak learning rate; "constant", "cosine" (to zero) or "trapezoid" (constant,
    then
        linear to zero over the last `cooldown` share of the steps); linear warm-up steps.
    ema : decay of the averaged weights, with the warm-up min(ema, (1 + k) / (10 + k)) of ReF-LDM.
    precision : "bf16" (autocast) or "no" (float32).
    people, views, face_seed : size and seed of the face cache; `people=0` takes everybody who is on disk at the start.
    """

    network: str = ""
    steps: int = 1000
    batch: int = 32
    lr: float = 1e-3
    lr_schedule: str = "trapezoid"
    warmup: int = 100
    cooldown: float = 0.25
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "bf16"
    channels_last: bool = False
    log_every: int = 20
    eval_every: int = 500
    checkpoint_every: int = 200
    split: str = "train"
    people: int = 2000
    views: int = 6
    face_seed: int = 0
    resolution: int = 128
    val_people: int = 64

    def __post_init__(self) -> None:
        if self.lr_schedule not in LR_SCHEDULES:
            raise unknown_name("learning rate schedule", self.lr_schedule, LR_SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        at_least_one = (
            "steps",
            "batch",
            "views",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "val_people",
            "resolution",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema < 1 or not 0 <= self.cooldown <= 1 or self.lr <= 0 or self.people < 0:
            raise ConfigError(
                f"ema={self.ema} must lie in [0, 1), cooldown={self.cooldown} in [0, 1], lr={self.lr} above 0, "
                f"people={self.people} "
                "at 0 or above."
            )
