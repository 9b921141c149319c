"""The picture and all its references in one pass, with an explicit rule for who may look at whom.

This is what CacheKV (ReF-LDM, section 3.2) saves: with references that see only themselves the result is the same, but
here they are computed again at every step. Written out by itself, as the thing to compare with; nothing fast uses it.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from refbfr_core.errors import CacheError, unknown_name
from refbfr_core.models.cachekv import attention_layers, processors
from refbfr_core.models.reference_cache import REFERENCE_TIMESTEP

VIEWS = ("themselves", "each other", "everything")


def who_sees_whom(references: int, view: str = "themselves") -> Tensor:
    """(1+R, 1+R) bool: may the tokens of picture i (0 is the one being restored) look at those of picture j?

    `view` says what references see: only "themselves", "each other" but not the picture being restored, or
    "everything". The picture being restored sees everything.

    Raises
    ------
    UnknownNameError : another view.
    """
    if view not in VIEWS:
        raise unknown_name("view of the references", view, VIEWS)
    allowed = torch.eye(1 + references, dtype=torch.bool)
    allowed[0] = True
    if view != "themselves":
        allowed[1:, 1:] = True
    if view == "everything":
        allowed[:] = True
    return allowed


def joint_denoise(
    unet: nn.Module, sample: Tensor, timestep: int, reference_latents: Tensor, *, view: str = "themselves"
) -> Tensor:
    """One call of the network over the noisy pictures and their references together.

    Parameters
    ----------
    unet : a diffusers `UNet2DModel` from 2C to C channels.
    sample : (B, 2C, h, w), noisy and low-quality latents, as for `denoise`.
    timestep : of the sample; references run at `REFERENCE_TIMESTEP`.
    reference_latents : (B, R, C, h, w).
    view : what the references see, as in `who_sees_whom`.

    Returns
    -------
    (B, C, h, w): the prediction for the noisy pictures; what comes out for the references is dropped.

    Raises
    ------
    UnknownNameError : another view. CacheError : latents that do not fit the sample.
    """
    rows, channels = len(sample), sample.shape[1] // 2
    if reference_latents.ndim != 5 or reference_latents[:, 0].shape != sample[:, :channels].shape:
        raise CacheError(
            f"reference latents {tuple(reference_latents.shape)} do not fit a sample {tuple(sample.shape)}; "
            f"expected ({rows}, R, {channels}, {sample.shape[2]}, {sample.shape[3]})."
        )
    count = reference_latents.shape[1]
    padded = torch.cat([reference_latents, torch.zeros_like(reference_latents)], dim=2)
    together = torch.cat([sample[:, None], padded], dim=1)
    times = torch.tensor([int(timestep), *[REFERENCE_TIMESTEP] * count], device=sample.device).repeat(rows)
    layers = attention_layers(unet)
    allowed = who_sees_whom(count, view).to(sample.device)
    with processors(layers, dict.fromkeys(layers, _JointProcessor(allowed))):
        prediction = unet(together.flatten(0, 1), times, return_dict=False)[0]
    return prediction.unflatten(0, (rows, 1 + count))[:, 0]


class _JointProcessor:
    """Attention over the tokens of a whole group of pictures; `allowed` as from `who_sees_whom`."""

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        group, tokens = len(self.allowed), hidden_states.shape[-2] * hidden_states.shape[-1]
        normed = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        query, key, value = (
            project(normed).unflatten(0, (-1, group)).flatten(1, 2).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        blocks = self.allowed.repeat_interleave(tokens, dim=0).repeat_interleave(tokens, dim=1)
        scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        mixed = scores.masked_fill(~blocks, float("-inf")).softmax(dim=-1) @ value
        mixed = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        mixed = mixed.unflatten(1, (group, tokens)).flatten(0, 1).transpose(1, 2).reshape(hidden_states.shape)
        return (mixed + hidden_states if attn.residual_connection else mixed) / attn.rescale_output_factor
