"""Recipes of DiffMAC's networks (Gao et al., 2024, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.models.bottleneck import COMPENSATIONS, KL_FORMS
from refbfr_core.models.modulated_unet import TRAIN_UNET
from refbfr_core.training.base_recipe import Recipe


@dataclass(frozen=True)
class KLFirstStageRecipe(Recipe):
    """The KL autoencoder that plays the part of Stable Diffusion's: 128 px to moments 8 x 32 x 32.

    `crop` is the side of the training crops, `lq_share` the share of ruined pictures among them, `kl_weight` the weight
    of the mean Kullback-Leibler divergence to the standard normal: small, so that the posterior is nearly
    deterministic, as Stable Diffusion's is. The other weights are those of `FirstStageRecipe`.
    """

    network: str = "diffmac-vae"
    steps: int = 2600
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 50
    cooldown: float = 0.35
    weight_decay: float = 0.0
    ema: float = 0.995
    widths: tuple[int, ...] = (32, 56)
    pixel_fold: int = 2
    layers: int = 1
    latent_channels: int = 4
    groups: int = 8
    crop: int = 64
    mse_weight: float = 5.0
    edge_weight: float = 0.1
    perceptual_weight: float = 0.1
    kl_weight: float = 1e-4
    lq_share: float = 0.15
    degradation: str = "toy-refldm-train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.perceptual_weight, self.kl_weight) < 0 or not 0 <= self.lq_share <= 1:
            raise ConfigError(
                f"perceptual_weight={self.perceptual_weight} and kl_weight={self.kl_weight} must be 0 or more, "
                f"lq_share={self.lq_share} in [0, 1]."
            )


@dataclass(frozen=True)
class MomentDiffusionRecipe(Recipe):
    """What the three diffusions of DiffMAC share.

    `first_stage` is a folder with "diffmac-vae", "" the shipped one. `prediction` and `min_snr` are those of
    `RefLDMRecipe`; the paper predicts noise (equation 1) with plain means.
    """

    network: str = "diffmac-unet"
    first_stage: str = ""
    schedule: str = "diffmac"
    prediction: str = "v_prediction"
    min_snr: float = 5.0
    flips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction not in ("epsilon", "v_prediction"):
            raise unknown_name("prediction type", self.prediction, ("epsilon", "v_prediction"))


@dataclass(frozen=True)
class DiffusionBaseRecipe(MomentDiffusionRecipe):
    """The unconditional latent diffusion that plays the part of Stable Diffusion: a stock `UNet2DConditionModel`.

    Four levels with two residual blocks, so that the encoder has Stable Diffusion's twelve tensors. `attention` are the
    levels with transformer blocks (0 the finest; Stable Diffusion has them at 0, 1 and 2), `prompt_width` the width of
    the prompt's single zero token.
    """

    steps: int = 4400
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    ema: float = 0.998
    eval_every: int = 800
    widths: tuple[int, ...] = (32, 40, 40, 32)
    layers: int = 2
    attention: tuple[int, ...] = (2,)
    prompt_width: int = 8
    head_width: int = 16
    groups: int = 8
    flips: bool = True


@dataclass(frozen=True)
class StageOneRecipe(MomentDiffusionRecipe):
    """Stage I (equation 12): the modulation learns to restore, the denoiser stays as it is unless `train_unet` says so.

    Attributes
    ----------
    start : folder with "diffmac-unet", "" the shipped one.
    degradations, lq_variants : version v of a picture is ruined by ``degradations[v % len]``.
    pyramid : widths of the condition pyramid. channelwise : see `FeatureModulation`.
    train_unet : "none", "encoder" or "all"; other than "none" also saves the denoiser, as "<network>-unet".
    """

    network: str = "diffmac-one"
    steps: int = 2000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.4
    ema: float = 0.995
    eval_every: int = 400
    start: str = ""
    degradations: tuple[str, ...] = ("toy-ldbfr-severe", "toy-ldbfr-medium", "toy-ldbfr-train")
    lq_variants: int = 3
    pyramid: tuple[int, ...] = (16, 24, 32, 32)
    channelwise: bool = False
    train_unet: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_unet not in TRAIN_UNET:
            raise unknown_name("trained part of the UNet", self.train_unet, TRAIN_UNET)
        if self.lq_variants < 1 or not self.degradations:
            raise ConfigError("lq_variants must be 1 or more, and degradations name at least one preset.")


IDENTITY_SOURCES = ("own", "reference")


@dataclass(frozen=True)
class StageTwoRecipe(StageOneRecipe):
    """Stage II (equation 13): bottleneck and second modulation, which starts from Stage I's; rows of Table 3.

    Attributes
    ----------
    stage_one : folder with "diffmac-one", "" the shipped one.
    source : "stage-one" (R = E_X_D1) or "input" (R = E_X_LQ, the paper's no1 rows).
    compensation : of `COMPENSATIONS`, or "off" for a second modulated diffusion without a bottleneck (2AdaIN).
    info_weight : lambda_info of equation 13, the beta of equation 6. rec_weight : lambda_rec. kl : of `KL_FORMS`.
    min_std, bias : see `ManifoldBottleneck`. rate : learning rate of the bottleneck in units of `lr`; its few numbers
        have far to go in a short training.
    identity : whose embedding is injected while training: "own", F_ID(X_D1) as in the paper, or "reference", that of
        another photo of the person, an extension.
    inference_steps : of Stage I when its outputs are cached. cached_views, cached_variants : views a person and ruined
        versions a view that are restored; the first of those that Stage I was trained on.
    """

    network: str = "diffmac-two-id-0.001"
    steps: int = 750
    batch: int = 16
    warmup: int = 50
    lr: float = 1e-3
    eval_every: int = 250
    stage_one: str = ""
    source: str = "stage-one"
    compensation: str = "identity"
    info_weight: float = 0.001
    rec_weight: float = 1.0
    kl: str = "exact"
    min_std: float = 0.01
    bias: float = 2.0
    rate: float = 10.0
    identity: str = "own"
    embedder: str = "guide"
    inference_steps: int = 25
    cached_views: int = 2
    cached_variants: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, value, known in (
            ("compensation", self.compensation, (*COMPENSATIONS, "off")),
            ("form of the divergence", self.kl, KL_FORMS),
            ("source of R", self.source, ("stage-one", "input")),
            ("identity", self.identity, IDENTITY_SOURCES),
        ):
            if value not in known:
                raise unknown_name(what, value, known)
        if self.embedder == "judge":
            raise ConfigError("the judge only scores results; inject the identity of embedder='guide'.")
        if min(self.info_weight, self.rec_weight, self.rate) < 0:
            raise ConfigError(
                f"info_weight={self.info_weight}, rec_weight={self.rec_weight} and rate={self.rate} must be 0 or more."
            )
        if not 1 <= self.cached_views <= self.views or not 1 <= self.cached_variants <= self.lq_variants:
            raise ConfigError(
                f"cached_views={self.cached_views} must lie between 1 and views={self.views}, "
                f"cached_variants={self.cached_variants} between 1 and lq_variants={self.lq_variants}."
            )

    @property
    def rates(self) -> dict[str, float]:
        """Shares of the learning rate by the beginning of a parameter's name, see `make_optimizer`."""
        return {"network.bottleneck": self.rate}


def second_stage_recipes(**common: Any) -> dict[str, StageTwoRecipe]:
    """Recipes of all second stages by the name of their network; `common` holds for all. Table 3's rows first."""
    kinds = {"id": "identity", "noise": "noise", "none": "none"}
    settings: dict[str, dict[str, Any]] = {
        f"{short}-{weight:g}": {"compensation": kind, "info_weight": weight}
        for short, kind in kinds.items()
        for weight in (0.1, 0.01, 0.001)
    }
    settings["2adain"] = {"compensation": "off"}
    for weight in (0.1, 0.01, 0.001):
        settings[f"no1-noise-{weight:g}"] = {"compensation": "noise", "info_weight": weight, "source": "input"}
    settings["ref-0.01"] = {"compensation": "identity", "info_weight": 0.01, "identity": "reference"}
    return {
        (name := f"diffmac-two-{label}"): StageTwoRecipe(network=name, **chosen, **common)
        for label, chosen in settings.items()
    }
