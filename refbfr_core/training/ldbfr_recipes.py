"""Recipes of LD-BFR's stages after its VQGANs (Du et al., ACM MM 2024, section 3.4 and 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.dual_cross_attention import MODES
from refbfr_core.models.injected_unet import VARIANTS
from refbfr_core.training.base_recipe import Recipe


@dataclass(frozen=True)
class DCVQRRecipe(Recipe):
    """Stage 1: E_LQ and DCAM learn equations 2 to 4, the condition VQGAN is frozen.

    Attributes
    ----------
    first_stage : folder of exported networks with "ldbfr-vqc", "" the shipped one.
    degradations : presets, one drawn for every step. The paper trains milder than it tests; here both are covered.
    pixel_weight : lambda of equation 4, which the paper does not give; 1 with both terms as means over elements.
    commitment : weight of a commitment loss that pulls f_LQ towards its codes. The paper mentions none, but equations 2
        to 4 alone let f_LQ drift off: the straight-through gradient says in which direction the codes should move and
        never that f_LQ has gone far enough. Without DCAM and with weight 1, f_LQ rests where it equals f^_HQ, so that
        its nearest code is the right one.
    encoder_rate : share of the learning rate that E_LQ gets; the authors' code has 0.01. Equations 2 to 4 never ask for
        the code of the clean face, so E_LQ and DCAM agree on codes of their own; notebook 08 measures how far.
    heads, mode, channel_scale : of `DualCrossAttention`. dual : False trains E_LQ alone (Fig. 7, "without").
    """

    network: str = "ldbfr-restorer"
    steps: int = 1300
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 50
    cooldown: float = 0.4
    ema: float = 0.995
    eval_every: int = 325
    first_stage: str = ""
    degradations: tuple[str, ...] = ("toy-ldbfr-train", "toy-ldbfr-medium", "toy-ldbfr-severe", "toy-ldbfr-severe")
    pixel_weight: float = 1.0
    commitment: float = 1.0
    encoder_rate: float = 0.2
    heads: int = 4
    mode: str = "parallel"
    channel_scale: bool = True
    dual: bool = True
    flips: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise unknown_name("DCAM mode", self.mode, MODES)
        if not self.degradations or min(self.pixel_weight, self.commitment, self.encoder_rate) < 0:
            raise ConfigError(
                f"degradations {self.degradations} must name a preset, pixel_weight={self.pixel_weight}, "
                f"commitment={self.commitment} and encoder_rate={self.encoder_rate} be 0 or more."
            )

    @property
    def rates(self) -> dict[str, float]:
        """Shares of the learning rate by the beginning of a parameter's name, see `make_optimizer`."""
        return dict.fromkeys(("restorer.encoder", "restorer.quant_conv"), self.encoder_rate)


@dataclass(frozen=True)
class LatentPriorRecipe(Recipe):
    """Stage 2a: the unconditional latent diffusion of equation 5 on the output VQGAN's latents, theta_1.

    `first_stage` is a folder with "ldbfr-vqo", "" the shipped one. `widths`, `layers`, `head_width` and `groups`
    describe a stock `UNet2DModel` with attention below the finest level. `prediction` and `min_snr` are those of
    `RefLDMRecipe`; the published networks predict noise.
    """

    network: str = "ldbfr-unet"
    steps: int = 4000
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    ema: float = 0.998
    eval_every: int = 1000
    first_stage: str = ""
    widths: tuple[int, ...] = (32, 64, 64, 64)
    layers: int = 1
    head_width: int = 16
    groups: int = 8
    schedule: str = "ldbfr"
    prediction: str = "v_prediction"
    min_snr: float = 5.0
    flips: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in ("epsilon", "v_prediction"):
            raise unknown_name("prediction type", self.prediction, ("epsilon", "v_prediction"))


@dataclass(frozen=True)
class InjectionRecipe(Recipe):
    """Stage 2b: theta_2 of equation 6, HQ-feature injection into the frozen theta_1.

    `variant` is a letter of Fig. 9. `start` is a folder with "ldbfr-unet", `stage_one` one with "ldbfr-restorer" and
    "ldbfr-vqc", `first_stage` one with "ldbfr-vqo"; "" stands for the shipped ones. f_HQ of `lq_variants` ruined
    versions of every picture is computed once; version v is ruined by ``degradations[v % len]``. Batches, noise and
    timesteps are the same for all variants. `expansion` is that of E-HQI (2 as released); the rest as in
    `LatentPriorRecipe`.
    """

    network: str = "ldbfr-hqi-d"
    steps: int = 1500
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 100
    cooldown: float = 0.4
    ema: float = 0.995
    eval_every: int = 500
    variant: str = "D"
    start: str = ""
    stage_one: str = ""
    first_stage: str = ""
    degradations: tuple[str, ...] = ("toy-ldbfr-severe", "toy-ldbfr-medium", "toy-ldbfr-train")
    lq_variants: int = 3
    expansion: float = 0.5
    released: bool = False
    schedule: str = "ldbfr"
    prediction: str = "v_prediction"
    min_snr: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise unknown_name("variant", self.variant, VARIANTS)
        if self.network != (own := f"ldbfr-hqi-{self.variant.lower()}"):
            raise ConfigError(f"variant {self.variant} is saved as {own}, not as {self.network}.")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise unknown_name("prediction type", self.prediction, ("epsilon", "v_prediction"))
        if self.lq_variants < 1 or not self.degradations:
            raise ConfigError("lq_variants must be 1 or more, and degradations name at least one preset.")
