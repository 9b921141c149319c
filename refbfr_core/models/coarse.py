"""The toy profile's coarse restorer: PDGrad's f in y_c = f(y) (eq. 7), a feed-forward network without any reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from torch import Tensor

from refbfr_core.models.adm_unet import ADMUNet

__all__ = ["CoarseNet", "ModelMixin"]  # diffusers looks a component's base class up in its module


class CoarseNet(ADMUNet):
    """An `ADMUNet` of three output channels that is asked at timestep 0 for what is missing in a degraded face.

    Trained to regress the clean face, it answers a severe degradation with the mean of the faces that fit: colour and
    shape are right, the person is nobody in particular. Arguments as for `ADMUNet`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        channels: Sequence[int] = (32, 48, 64),
        layers_per_level: Sequence[int] = (1, 1, 1),
        attention_levels: Sequence[int] = (2,),
        head_width: int = 16,
        patch_size: int = 4,
        groups: int = 16,
        bounded_code: bool = False,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        class_embed_type: str | None = None,
    ) -> None:
        own = dict(self.config)
        super().__init__(
            sample_size=sample_size,
            channels=channels,
            layers_per_level=layers_per_level,
            attention_levels=attention_levels,
            head_width=head_width,
            out_channels=3,
            patch_size=patch_size,
            groups=groups,
            bounded_code=bounded_code,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            class_embed_type=class_embed_type,
        )
        self._internal_dict = FrozenDict(own)

    def residual(self, images: Tensor) -> Tensor:
        """Clean minus degraded, as the network sees it: (B, 3, H, W) in [-1, 1] to the same shape; differentiable."""
        return self(images, 0).sample

    @torch.no_grad()
    def restore(self, images: Tensor) -> Tensor:
        """Coarsely restored faces: (B, 3, H, W) in [-1, 1] to the same shape and range."""
        return (images + self.residual(images)).clamp(-1, 1)
