"""Networks: reference attention (CacheKV), the first stage, and the face embedder."""

from refbfr_core.models.embedder import FaceEmbedder, crop_and_resize, similarity
from refbfr_core.models.first_stage import decode_latents, encode_latents, pixels_per_latent
from refbfr_core.models.reference_cache import ReferenceCache, denoise

__all__ = [
    "FaceEmbedder",
    "ReferenceCache",
    "crop_and_resize",
    "decode_latents",
    "denoise",
    "encode_latents",
    "pixels_per_latent",
    "similarity",
]
