"""A stock `UNet2DConditionModel` whose encoder tensors are modulated by a condition (DiffMAC, section 3.2)."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.models.modulation import FeatureModulation, encoder_tensors

TRAIN_UNET = ("none", "encoder", "all")
"""Which part of the denoiser a stage trains besides its modulation: nothing (default), its encoder, everything."""


class ModulatedUNet(nn.Module):
    """Denoiser and modulation as one module with one forward, which data-parallel training wants.

    Which of the denoiser's parameters learn is as they come, see `freeze_unet`.
    """

    def __init__(self, unet: UNet2DConditionModel, modulation: FeatureModulation) -> None:
        super().__init__()
        self.unet, self.modulation = unet, modulation

    def forward(self, noisy: Tensor, timesteps: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
        """See `denoise_modulated`."""
        return denoise_modulated(self.unet, noisy, timesteps, prompt, self.modulation, condition)


def freeze_unet(unet: UNet2DConditionModel, train_unet: str) -> UNet2DConditionModel:
    """Freeze what a stage does not train: all for "none", all but `conv_in` and the down blocks for "encoder".

    Raises UnknownNameError for another name.
    """
    if train_unet not in TRAIN_UNET:
        raise unknown_name("trained part of the UNet", train_unet, TRAIN_UNET)
    unet.requires_grad_(train_unet == "all")
    if train_unet == "encoder":
        unet.conv_in.requires_grad_(True)
        unet.down_blocks.requires_grad_(True)
    return unet


def denoise_modulated(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timestep: Tensor | int,
    prompt: Tensor,
    modulation: FeatureModulation | None,
    condition: Tensor | None,
) -> Tensor:
    """One call of the network with its encoder modulated; without modulation and condition the stock forward pass.

    The blocks are the network's own. A modulated tensor feeds the next block *and* the skip connection; the middle and
    the decoder are untouched. (diffusers' `down_block_additional_residuals` adds to the skips only and cannot depend on
    h.)

    Args:
        unet: stock network. sample: (B, C, h, w) noisy latents. timestep: one number or (B,).
        prompt: (1 or B, n, d) embedding of the (empty) prompt.
        modulation: of this network, or None. condition: s (B, C, h, w), a latent, or None.

    Returns:
        (B, C, h, w), the prediction.

    Raises:
        ConfigError: only one of modulation and condition, a modulation of another network, or a UNet with parts that
            Stable Diffusion's does not have. ImageContractError: tensors that do not fit.
    """
    if (modulation is None) != (condition is None):
        raise ConfigError("modulation and condition belong together; pass both, or neither.")
    prompt = _prompt_of(unet, prompt, len(sample))
    if modulation is None:
        return unet(sample, timestep, encoder_hidden_states=prompt).sample
    _check(unet, sample, modulation, condition)
    maps = modulation.conditions(condition)
    skips: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        h = modulation.modulate(len(skips), h, maps)
        skips.append(h)
        return h

    timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
    embedding = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))
    x = keep(unet.conv_in(sample))
    for block in unet.down_blocks:
        for index, resnet in enumerate(block.resnets):
            x = resnet(x, embedding)
            if getattr(block, "attentions", None) is not None:
                x = block.attentions[index](x, encoder_hidden_states=prompt, return_dict=False)[0]
            x = keep(x)
        for downsampler in block.downsamplers or ():
            x = keep(downsampler(x))
    x = unet.mid_block(x, embedding, encoder_hidden_states=prompt)
    for block in unet.up_blocks:
        own = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        given = {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
        x = block(x, own, embedding, **given)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _prompt_of(unet: UNet2DConditionModel, prompt: Tensor, count: int) -> Tensor:
    """The prompt for every row of a batch."""
    width = unet.config.cross_attention_dim
    if prompt.ndim != 3 or prompt.shape[-1] != width or prompt.shape[0] not in (1, count):
        raise ImageContractError(
            f"the prompt embedding is {tuple(prompt.shape)}, expected (1 or {count}, tokens, {width})."
        )
    return prompt.expand(count, -1, -1)


def _check(unet: UNet2DConditionModel, sample: Tensor, modulation: FeatureModulation, condition: Tensor) -> None:
    own = encoder_tensors(unet)
    made_for = list(zip(modulation.config.channels, modulation.config.levels, strict=True))
    if own != made_for:
        raise ConfigError(
            f"this modulation was made for encoder tensors {made_for} (channels, level), the network has {own}; use "
            "FeatureModulation.for_network(unet, ...)."
        )
    extra = [name for name in ("class_embedding", "encoder_hid_proj", "add_embedding") if getattr(unet, name, None)]
    if extra or unet.config.center_input_sample:
        raise ConfigError(
            f"this UNet has {', '.join(extra) or 'centred input'}, which Stable Diffusion 2.1's has not; use one "
            "of its layout."
        )
    if sample.shape != condition.shape:
        raise ImageContractError(
            f"latents are {tuple(sample.shape)} and their condition {tuple(condition.shape)}; both must have one shape."
        )
