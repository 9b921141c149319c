"""What is trained and how: one frozen dataclass a network, every number that matters in it.

A recipe goes into the log, the checkpoint and the model card as it is. Values can be changed by keyword, from Python or
the command line; an unknown keyword is refused with the nearest known one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.training.base_recipe import Recipe
from refbfr_core.training.diffmac_recipes import (
    DiffusionBaseRecipe,
    KLFirstStageRecipe,
    StageOneRecipe,
    second_stage_recipes,
)
from refbfr_core.training.first_stage_recipes import ConditionVQRecipe, FirstStageRecipe, OutputVQRecipe
from refbfr_core.training.ldbfr_recipes import DCVQRRecipe, InjectionRecipe, LatentPriorRecipe
from refbfr_core.training.pdgrad_recipes import CoarseRecipe, PerceptualRecipe, PixelDiffusionRecipe

MECHANISMS = ("none", "cachekv", "spatial", "channel", "cross")
IDENTITY_SCALES = ("none", "constant", "sqrt_alpha_bar", "below_100", "below_500")


@dataclass(frozen=True)
class EmbedderRecipe(Recipe):
    """ArcFace embedder (Deng et al., CVPR 2019). The margin is 0 for the first third and reaches `margin` at two
    thirds.

    `degraded` is the share of training pictures that are ruined by the preset `degradation`; `colour` the strength of
    the colour jitter; `grey` the share of nearly grey pictures.
    """

    steps: int = 3000
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 5e-4
    ema: float = 0.998
    clip: float = 5.0
    widths: tuple[int, ...] = (32, 48, 96, 160)
    blocks: tuple[int, ...] = (1, 2, 2, 1)
    embedding: int = 256
    dropout: float = 0.1
    scale: float = 32.0
    margin: float = 0.35
    degradation: str = "toy-refldm-train"
    degraded: float = 0.5
    colour: float = 0.25
    grey: float = 0.1


@dataclass(frozen=True)
class RefLDMRecipe(Recipe):
    """ReF-LDM's denoiser (spec: epsilon prediction, L2), with references in the same network through CacheKV.

    A batch is `batch / targets` people with `targets` noisy targets each; the references of a person run once and serve
    all their targets. `reference_counts` gives the probability of 0, 1, 2, ... references in a step; `drop_references`
    and `drop_lq` the probability of zeroing them (ReF-LDM section 4: 0.1 each, independently). `prediction` is
    "epsilon" (the paper) or "v_prediction" (Salimans and Ho, ICLR 2022). `min_snr` gamma weights the loss by
    min(1, gamma / snr) (Hang et al., ICCV 2023), 0 gives the paper's plain mean.
    """

    network: str = "refldm-unet"
    steps: int = 20000
    batch: int = 32
    targets: int = 8
    lr: float = 5e-4
    lr_schedule: str = "trapezoid"
    warmup: int = 500
    cooldown: float = 0.15
    ema: float = 0.9995
    eval_every: int = 1000
    checkpoint_every: int = 500
    widths: tuple[int, ...] = (96, 160)
    layers: int = 1
    groups: int = 8
    head_width: int = 32
    patch_size: int = 2
    first_stage: str = ""
    schedule: str = "refldm"
    prediction: str = "epsilon"
    reference_counts: tuple[float, ...] = (0.12, 0.40, 0.30, 0.18)
    drop_references: float = 0.1
    drop_lq: float = 0.05
    min_snr: float = 0.0
    degradations: tuple[str, ...] = ("toy-refldm-severe", "toy-refldm-train")
    lq_variants: int = 2
    flips: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.targets:
            raise ConfigError(
                f"batch={self.batch} must be a multiple of targets={self.targets}: every person gets as many."
            )
        if self.prediction not in ("epsilon", "v_prediction"):
            raise unknown_name("prediction type", self.prediction, ("epsilon", "v_prediction"))
        if abs(sum(self.reference_counts) - 1) > 1e-6 or min(self.reference_counts) < 0:
            raise ConfigError(f"reference_counts {self.reference_counts} must be probabilities that add up to 1.")
        if len(self.reference_counts) > self.views:
            raise ConfigError(
                f"up to {len(self.reference_counts) - 1} references and a target need {len(self.reference_counts)} "
                f"views, the recipe has {self.views}; draw more views or use fewer references."
            )


@dataclass(frozen=True)
class PlainRecipe(RefLDMRecipe):
    """A small latent diffusion model without references: the common starting point of the reference mechanisms."""

    steps: int = 10000
    batch: int = 32
    targets: int = 1
    lr: float = 1e-3
    widths: tuple[int, ...] = (48, 96)
    head_width: int = 48
    reference_counts: tuple[float, ...] = (1.0,)
    drop_references: float = 0.0


@dataclass(frozen=True)
class MechanismRecipe(RefLDMRecipe):
    """Fine-tuning of the plain network with one way for references to enter (ReF-LDM, Table 2).

    `mechanism` is one of `MECHANISMS`, `start` the folder that "refldm-plain" exported to (the one that holds
    refldm-unet). Batches, noise and timesteps are the same in every arm.
    """

    network: str = "refldm-mechanism"
    mechanism: str = "cachekv"
    start: str = ""
    widths: tuple[int, ...] = (48, 96)
    head_width: int = 48
    reference_counts: tuple[float, ...] = (0.1, 0.18, 0.18, 0.18, 0.18, 0.18)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mechanism not in MECHANISMS:
            raise unknown_name("reference mechanism", self.mechanism, MECHANISMS)
        if len(self.reference_counts) < 3:
            raise ConfigError(
                f"reference_counts {self.reference_counts} allow {len(self.reference_counts) - 1} references; the "
                "report on validation people uses 2, so give at least three probabilities."
            )


@dataclass(frozen=True)
class RefLDMIdentityRecipe(RefLDMRecipe):
    """Fine-tuning of a trained denoiser with ReF-LDM's identity loss (section 3.3), and its ablation.

    `start` is the folder of exported networks to begin with, "" the shipped ones. `scale` is a name of
    `refbfr_core.training.identity.SCALES`, or "none" for L_LDM alone: same batches, noise and timesteps in every arm.
    `identity_weight` of the paper is 0.1; the recipe "refldm-identity" has 0.5, with which the two terms have gradients
    of about equal length at the start (with 0.1 identity has a fifth). `embedder` is the network behind the loss; the
    judge is refused, because it must not take part in any training.
    """

    start: str = ""
    scale: str = "sqrt_alpha_bar"
    identity_weight: float = 0.1
    embedder: str = "guide"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in IDENTITY_SCALES:
            raise unknown_name("scale of the identity loss", self.scale, IDENTITY_SCALES)
        if self.embedder == "judge":
            raise ConfigError("the judge only scores results; train against embedder='guide'.")


RECIPES: Mapping[str, Recipe] = types.MappingProxyType(
    {
        "embedder-guide": EmbedderRecipe(
            network="guide", seed=1, steps=600, warmup=50, people=1200, views=6, widths=(32, 48, 96, 160), degraded=0.4,
        ),
        "embedder-judge": EmbedderRecipe(
            network="judge", seed=2, steps=900, warmup=50, split="judge", people=1600, views=5,
            widths=(24, 64, 96, 144), blocks=(1, 1, 3, 1),
            degraded=0.3, degradation="toy-refldm-moderate", colour=0.35, grey=0.2, embedding=192,
        ),
        "refldm-vq": FirstStageRecipe(steps=2800, lr=3e-3, unquantised=0.6, people=3520, views=6),
        "refldm-base": RefLDMRecipe(
            steps=5800, lr=6e-4, warmup=300, cooldown=0.25, ema=0.999, targets=4, people=2560, views=6,
            prediction="v_prediction", min_snr=5.0, flips=False, lq_variants=3,
            degradations=("toy-refldm-severe", "toy-refldm-severe", "toy-refldm-train"),
        ),
        "refldm-identity": RefLDMIdentityRecipe(
            steps=150, batch=16, lr=2e-4, warmup=10, cooldown=0.4, ema=0.99, eval_every=1000, checkpoint_every=100,
            log_every=10, identity_weight=0.5, targets=4, people=512, views=6, prediction="v_prediction", min_snr=5.0,
            flips=False, lq_variants=3, degradations=("toy-refldm-severe", "toy-refldm-severe", "toy-refldm-train"),
        ),
        "refldm-mechanism": MechanismRecipe(
            steps=400, batch=16, lr=6e-4, warmup=50, cooldown=0.4, ema=0.998, eval_every=2000, targets=4,
            people=1280, views=6, val_people=256,
            prediction="v_prediction", min_snr=5.0, flips=False, lq_variants=3,
            degradations=("toy-refldm-severe", "toy-refldm-severe", "toy-refldm-train"),
        ),
        "refldm-plain": PlainRecipe(
            steps=5200, lr=1e-3, warmup=300, cooldown=0.25, ema=0.999, people=1280, views=6,
            eval_every=1300, val_people=256, prediction="v_prediction", min_snr=5.0, flips=False, lq_variants=3,
            degradations=("toy-refldm-severe", "toy-refldm-severe", "toy-refldm-train"),
        ),
        "perceptual": PerceptualRecipe(people=2560, views=6),
        "pdgrad-unet": PixelDiffusionRecipe(
            steps=4000, people=2560, views=6, val_people=256, eval_every=1000, cooldown=0.3,
            prediction="sample", min_snr=5.0,
        ),
        "ldbfr-vqc": ConditionVQRecipe(people=2560, views=6, val_people=256),
        "ldbfr-vqo": OutputVQRecipe(people=2560, views=6, val_people=256),
        "ldbfr-restorer": DCVQRRecipe(people=2560, views=6, val_people=256),
        "ldbfr-restorer-plain": DCVQRRecipe(
            network="ldbfr-restorer-plain", dual=False, encoder_rate=1.0, people=2560, views=6, val_people=256,
        ),
        "ldbfr-unet": LatentPriorRecipe(steps=3800, people=2560, views=6, val_people=256),
        **{
            f"ldbfr-hqi-{variant.lower()}": InjectionRecipe(
                network=f"ldbfr-hqi-{variant.lower()}", variant=variant, people=2560, views=6, val_people=256,
            )
            for variant in "ABCD"
        },
        "diffmac-vae": KLFirstStageRecipe(people=2560, views=6, val_people=256),
        "diffmac-unet": DiffusionBaseRecipe(people=2560, views=6, val_people=256),
        "diffmac-one": StageOneRecipe(people=1280, views=6, val_people=256),
        **second_stage_recipes(people=480, views=6, val_people=64),
        "coarse": CoarseRecipe(steps=500, people=2560, views=6, val_people=256, eval_every=1000),
    }
)  # fmt: skip


def recipe(name: str, recipes: Mapping[str, Recipe] | None = None, /, **changes: Any) -> Recipe:
    """Return the recipe called ``name`` with some values changed; text (from a command line) is read as the right type.

    It is looked up in ``recipes``, by default `RECIPES`.

    Raises
    ------
    UnknownNameError : no such recipe or no such value, naming the nearest. ConfigError : a value of the wrong kind.
    """
    recipes = RECIPES if recipes is None else recipes
    if name not in recipes:
        raise unknown_name("recipe", name, recipes)
    base = recipes[name]
    known = {field.name for field in fields(base)}
    for key in changes:
        if key not in known:
            raise unknown_name(f"option of the recipe {name}", key, known)
    hints = typing.get_type_hints(type(base))
    return replace(base, **{key: _cast(key, value, hints[key]) for key, value in changes.items()})


def as_dict(chosen: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values (tuples become lists)."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(chosen).items()}


def _cast(key: str, value: Any, kind: Any) -> Any:
    try:
        if typing.get_origin(kind) is tuple:
            parts = value.replace("(", "").replace(")", "").split(",") if isinstance(value, str) else value
            inner = typing.get_args(kind)[0]
            return tuple(inner(part.strip() if isinstance(part, str) else part) for part in parts if part != "")
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return kind(value)
    except (TypeError, ValueError, KeyError) as error:
        wanted = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{key}={value!r} cannot be read as {wanted}; give a value of that kind.") from error
