"""Recipes of the networks that PDGrad stands on (Sensors 2024, 24(22), 7112)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.training.base_recipe import Recipe


@dataclass(frozen=True)
class PerceptualRecipe(Recipe):
    """A small perceptual network for drawn faces: the toy twin of LPIPS's VGG16 in equations 12 and 14.

    Attributes
    ----------
    widths, first_stride : channels of the five stages, and the stride of the very first convolution.
    degradations : presets that ruin faces, one drawn for each comparison; `visible` those of which even the mildest
        draw is plain to see, for comparisons with a harmless change.
    shares : how often a comparison asks each of the three questions of `refbfr_core.training.perceptual`: which is
        ruined more, harmless or ruined, same face or another person's.
    temperature : scale on which the logarithms of two distances are compared.
    content_weight, ruin_weight : of the two tasks that give the trunk something to see, beside the ranking (weight 1).
    """

    network: str = "perceptual"
    steps: int = 500
    batch: int = 16
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 5.0
    cooldown: float = 0.4
    ema: float = 0.995
    precision: str = "no"
    channels_last: bool = True
    seed: int = 3
    eval_every: int = 250
    widths: tuple[int, ...] = (16, 24, 32, 48, 64)
    first_stride: int = 2
    degradations: tuple[str, ...] = ("toy-refldm-train", "toy-ldbfr-medium", "toy-pdgrad")
    visible: tuple[str, ...] = ("toy-ldbfr-mild", "toy-ldbfr-medium", "toy-refldm-severe")
    shares: tuple[float, ...] = (0.3, 0.45, 0.25)
    temperature: float = 0.25
    content_weight: float = 1.0
    ruin_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shares) != 3 or abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0:
            raise ConfigError(f"shares {self.shares} must be three probabilities that add up to 1.")
        if not (self.degradations and self.visible):
            raise ConfigError("degradations and visible must name at least one degradation preset each.")
        if self.temperature <= 0 or min(self.content_weight, self.ruin_weight) < 0:
            raise ConfigError(
                f"temperature={self.temperature} must be above 0, content_weight={self.content_weight} and "
                f"ruin_weight={self.ruin_weight} at 0 or above."
            )


@dataclass(frozen=True)
class ADMRecipe(Recipe):
    """A training whose network is a small `ADMUNet`: `channels`, `layers`, `attention_levels`, `head_width`, `groups`
    and `patch_size` describe it. `flips` mirrors half of the faces."""

    channels: tuple[int, ...] = (64, 96, 96)
    layers: tuple[int, ...] = (1, 1, 1)
    attention_levels: tuple[int, ...] = (1, 2)
    head_width: int = 32
    groups: int = 16
    patch_size: int = 4
    flips: bool = True

    def network_shape(self) -> dict[str, Any]:
        """The recipe's part of the network's arguments."""
        return {
            "sample_size": self.resolution,
            "channels": self.channels,
            "layers_per_level": self.layers,
            "attention_levels": self.attention_levels,
            "head_width": self.head_width,
            "patch_size": self.patch_size,
            "groups": self.groups,
        }


@dataclass(frozen=True)
class PixelDiffusionRecipe(ADMRecipe):
    """Unconditional pixel diffusion with a learned variance (Nichol and Dhariwal, ICML 2021), PDGrad's toy prior.

    `bounded_code` is the `ADMUNet`'s. `prediction` is "epsilon" (the published networks), "v_prediction" or "sample"
    (the clean picture: what a narrow network on large patches learns best, since noise does not fit through it).
    `min_snr` gamma weights the squared error by min(1, gamma / snr), that of "sample" by min(snr, gamma); 0 leaves it
    plain. `start` is a folder of exported networks to begin with, "" none. `vlb_weight` is lambda in
    L_simple + lambda L_vlb (their eq. 16), where L_vlb counts T times a step's term, so that it is the bound of the
    whole process.
    """

    network: str = "pdgrad-unet"
    steps: int = 5000
    batch: int = 32
    lr: float = 8e-4
    warmup: int = 300
    ema: float = 0.999
    schedule: str = "pdgrad"
    prediction: str = "epsilon"
    min_snr: float = 0.0
    vlb_weight: float = 0.001
    bounded_code: bool = True
    start: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise unknown_name("prediction type", self.prediction, ("epsilon", "v_prediction", "sample"))
        if self.vlb_weight < 0 or self.min_snr < 0:
            raise ConfigError(f"vlb_weight={self.vlb_weight} and min_snr={self.min_snr} must be 0 or more.")


@dataclass(frozen=True)
class CoarseRecipe(ADMRecipe):
    """A feed-forward restorer, PDGrad's f in y_c = f(y): keeps colour and shape, loses who it is.

    It regresses the clean face, so under a severe degradation it answers with an average of all that would fit.
    One of `degradations` is drawn for every picture; `edge_weight` weighs the difference of gradients beside the
    absolute error.
    """

    network: str = "coarse"
    steps: int = 2500
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.998
    channels: tuple[int, ...] = (32, 48, 64)
    attention_levels: tuple[int, ...] = (2,)
    head_width: int = 16
    degradations: tuple[str, ...] = ("toy-pdgrad", "toy-refldm-severe", "toy-refldm-train")
    edge_weight: float = 1.0
