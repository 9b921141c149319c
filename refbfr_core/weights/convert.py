"""From the authors' own checkpoint layouts to ready diffusers networks: strict, never partial.

Each converter takes a state dictionary in the authors' names and their own configuration keywords, and either returns
the finished network or raises `WeightsError` naming what does not fit.
"""

from refbfr_core.weights.convert_adm import convert_adm_unet
from refbfr_core.weights.convert_arcface import convert_arcface_iresnet
from refbfr_core.weights.convert_ldm import convert_ldm_unet, convert_ldm_vq

__all__ = ["convert_adm_unet", "convert_arcface_iresnet", "convert_ldm_unet", "convert_ldm_vq"]
