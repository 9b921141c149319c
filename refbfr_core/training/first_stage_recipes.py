"""Recipes of first stages: ReF-LDM's, and the two VQGANs of LD-BFR (Du et al., ACM MM 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from refbfr_core.errors import ConfigError
from refbfr_core.training.base_recipe import Recipe


@dataclass(frozen=True)
class FirstStageRecipe(Recipe):
    """VQGAN first stage without a discriminator: unquantised with noisy latents, then k-means codes, then quantised.

    `unquantised` is the share of the steps before the codebook is made; `latent_noise` the noise in units of the
    latents'
    own spread meanwhile; `pixel_fold` pixels a side go into channels at the door; `crop` the side of the training
    crops; `lq_share` the share of degraded pictures among them. `attention` puts self-attention on the deepest level;
    `tail_layers` is the `OutputVQModel`'s; `perceptual_weight` weighs the distance in the shipped perceptual network;
    `unit_latents` saves the scale that gives latents unit spread, which a diffusion on them wants.
    """

    network: str = "refldm-vq"
    steps: int = 4000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.0
    ema: float = 0.995
    widths: tuple[int, ...] = (64, 96)
    pixel_fold: int = 2
    layers: int = 1
    latent_channels: int = 4
    groups: int = 8
    codes: int = 4096
    crop: int = 64
    unquantised: float = 0.5
    latent_noise: float = 0.1
    mse_weight: float = 5.0
    edge_weight: float = 0.1
    spread_weight: float = 0.01
    lq_share: float = 0.1
    degradation: str = "toy-refldm-train"
    restart_every: int = 100
    attention: bool = False
    tail_layers: int = 0
    perceptual_weight: float = 0.0
    unit_latents: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perceptual_weight < 0 or self.tail_layers < 0:
            raise ConfigError(
                f"perceptual_weight={self.perceptual_weight} and tail_layers={self.tail_layers} must be 0 or more."
            )


@dataclass(frozen=True)
class ConditionVQRecipe(FirstStageRecipe):
    """LD-BFR's condition VQGAN, an ordinary VQGAN on clean faces: 128 px to 64 x 8 x 8, 256 codes.

    A sixteenth of the side, as the published 256 x 16 x 16 is of 256 px. It trains on whole faces, because its codes
    and its attention are about where in a face they are.
    """

    network: str = "ldbfr-vqc"
    steps: int = 2400
    batch: int = 16
    lr: float = 1.5e-3
    widths: tuple[int, ...] = (24, 32, 48, 48)
    latent_channels: int = 64
    codes: int = 256
    crop: int = 128
    unquantised: float = 0.35
    latent_noise: float = 0.1
    lq_share: float = 0.0
    attention: bool = True
    perceptual_weight: float = 0.2
    unit_latents: bool = False


@dataclass(frozen=True)
class OutputVQRecipe(FirstStageRecipe):
    """LD-BFR's output VQGAN: read at 64 px, latents 3 x 32 x 32, 512 codes, rendered at 128 px through the tail."""

    network: str = "ldbfr-vqo"
    steps: int = 3600
    batch: int = 16
    lr: float = 1.5e-3
    widths: tuple[int, ...] = (32, 64)
    pixel_fold: int = 1
    latent_channels: int = 3
    codes: int = 512
    crop: int = 64
    unquantised: float = 0.4
    lq_share: float = 0.0
    tail_layers: int = 1
    perceptual_weight: float = 0.1
