"""The embedding of the empty prompt, computed once, so that no text encoder is needed at run time."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from refbfr_core.errors import ImageContractError


class PromptEmbedding(ModelMixin, ConfigMixin):
    """Holds c of DiffMAC (Gao et al., 2024, section 3.1): (1, tokens, width), 77 x 1024 for Stable Diffusion 2.1.

    It starts at zero, which is what the toy networks were trained with.
    """

    @register_to_config
    def __init__(self, tokens: int = 77, width: int = 1024) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.zeros(1, tokens, width))
        # A ModelMixin without a parameter does not know its device or dtype.
        self.anchor = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    @classmethod
    def of(cls, embedding: Tensor) -> PromptEmbedding:
        """Hold a text encoder's output (1, tokens, width). Raises ImageContractError for another shape."""
        if embedding.ndim != 3 or embedding.shape[0] != 1:
            raise ImageContractError(f"a prompt embedding is (1, tokens, width), got {tuple(embedding.shape)}.")
        held = cls(*embedding.shape[1:])
        held.embedding.copy_(embedding)
        return held.to(embedding.dtype)

    def forward(self) -> Tensor:
        """(1, tokens, width)."""
        return self.embedding
