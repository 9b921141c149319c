"""Classes of the networks in the registry, each imported when it is asked for: reading the registry costs nothing."""

from __future__ import annotations


def face_embedder() -> type:
    """`FaceEmbedder`."""
    from refbfr_core.models import FaceEmbedder

    return FaceEmbedder


def perceptual_features() -> type:
    """`PerceptualFeatures`."""
    from refbfr_core.models import PerceptualFeatures

    return PerceptualFeatures


def vq_model() -> type:
    """`VQModel`."""
    from diffusers import VQModel

    return VQModel


def unet_2d() -> type:
    """`UNet2DModel`."""
    from diffusers import UNet2DModel

    return UNet2DModel


def coarse_net() -> type:
    """`CoarseNet`."""
    from refbfr_core.models.coarse import CoarseNet

    return CoarseNet


def adm_unet() -> type:
    """`ADMUNet`."""
    from refbfr_core.models.adm_unet import ADMUNet

    return ADMUNet


def iresnet() -> type:
    """`IResNet`."""
    from refbfr_core.models import IResNet

    return IResNet


def vq_restorer() -> type:
    """`VQRestorer`."""
    from refbfr_core.models.vq_restorer import VQRestorer

    return VQRestorer


def hq_injection() -> type:
    """`HQInjection`."""
    from refbfr_core.models.injected_unet import HQInjection

    return HQInjection


def output_vq_model() -> type:
    """`OutputVQModel`."""
    from refbfr_core.models.output_vq import OutputVQModel

    return OutputVQModel


def unet_2d_condition() -> type:
    """`UNet2DConditionModel`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def feature_modulation() -> type:
    """`FeatureModulation`."""
    from refbfr_core.models.modulation import FeatureModulation

    return FeatureModulation


def second_stage() -> type:
    """`SecondStage`."""
    from refbfr_core.models.second_stage import SecondStage

    return SecondStage


def prompt_embedding() -> type:
    """`PromptEmbedding`."""
    from refbfr_core.models.prompt import PromptEmbedding

    return PromptEmbedding


def autoencoder_kl() -> type:
    """`AutoencoderKL`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL
