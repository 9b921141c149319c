"""Networks: reference attention (CacheKV), the first stage, pixel denoisers, face embedders, perceptual features."""

from refbfr_core.models.attention_maps import AttentionMaps, attention_lift, mass_near, record_attention
from refbfr_core.models.embedder import FaceEmbedder, crop_and_resize, similarity
from refbfr_core.models.first_stage import decode_latents, encode_latents, pixels_per_latent
from refbfr_core.models.iresnet import IResNet
from refbfr_core.models.joint_attention import joint_denoise, who_sees_whom
from refbfr_core.models.mechanisms import MECHANISMS, ReferenceMechanism, load_mechanism, make_mechanism
from refbfr_core.models.perceptual import PerceptualFeatures, feature_distances
from refbfr_core.models.perceptual_lpips import LPIPS_TAPS, PDGRAD_TAPS, LPIPSFeatures
from refbfr_core.models.reference_cache import ReferenceCache, denoise

__all__ = [
    "LPIPS_TAPS",
    "MECHANISMS",
    "PDGRAD_TAPS",
    "AttentionMaps",
    "FaceEmbedder",
    "IResNet",
    "LPIPSFeatures",
    "PerceptualFeatures",
    "ReferenceCache",
    "ReferenceMechanism",
    "attention_lift",
    "crop_and_resize",
    "decode_latents",
    "denoise",
    "encode_latents",
    "feature_distances",
    "joint_denoise",
    "load_mechanism",
    "make_mechanism",
    "mass_near",
    "pixels_per_latent",
    "record_attention",
    "similarity",
    "who_sees_whom",
]
