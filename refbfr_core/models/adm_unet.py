"""The denoiser of guided diffusion (ADM; Dhariwal and Nichol, NeurIPS 2021), a thin subclass of `UNet2DModel`.

PDGrad, PGDiff and DifFace sample with such a network, trained on FFHQ without any condition. Three things of it the
stock class cannot say: a different number of residual blocks at each level (DifFace), a width of the timestep's
sinusoid that is not the first level's (ADM's 512-px networks), and pixels folded into channels, which the toy twin
needs to be quick on a CPU. The forward pass is the library's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import get_down_block, get_up_block
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError

__all__ = ["ADMUNet", "ModelMixin", "zero_output"]  # diffusers looks a component's base class up in its module

GROUPS, EPS = 32, 1e-5


class ADMUNet(UNet2DModel):
    """Predicts from a noisy picture its noise and, when it was trained so, a code of the step's variance.

    Args:
        sample_size: side of the pictures in pixels.
        channels: width of every level, the finest first (model channels x multiplier).
        layers_per_level: residual blocks of every level going down; going up each has one more.
        attention_levels: indices of the levels with self-attention; the middle always has it.
        head_width: channels of one attention head.
        in_channels, out_channels: of the picture, and of the output: 6 with a learned variance, the prediction first.
        patch_size: p; p x p neighbouring pixels enter as channels of one. 1 for the published networks.
        time_width: width of the timestep's sinusoid, even; None for the first level's. Its embedding is 4 times as
            wide.
        resample: "conv" (strided convolution, nearest neighbour and convolution) or "resnet" (`resblock_updown`).
        groups: groups of every group norm, 32 in all published networks.
        bounded_code: squash the second half of the output, the variance code, into [-1, 1]. Published networks leave it
            free; a small one whose errors at little noise are larger than the noise drives it far out of the range in
            which the variance makes sense.
        center_input_sample, time_embedding_type, class_embed_type: what the library's forward pass looks up in a
            configuration; ADM has only these values.

    Raises:
        ConfigError: lists of different lengths, a level that does not exist, sides that cannot be halved so often,
            widths that do not divide into groups or heads, or a bounded code where the output has none.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        channels: Sequence[int] = (64, 128),
        layers_per_level: Sequence[int] = (1, 1),
        attention_levels: Sequence[int] = (1,),
        head_width: int = 64,
        in_channels: int = 3,
        out_channels: int = 6,
        patch_size: int = 1,
        time_width: int | None = None,
        resample: str = "conv",
        groups: int = GROUPS,
        bounded_code: bool = False,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        class_embed_type: str | None = None,
    ) -> None:
        if (center_input_sample, time_embedding_type, class_embed_type) != (False, "positional", None):
            raise ConfigError("an ADM network has no centring, no class labels and a sinusoid of the timestep.")
        own = dict(self.config)
        _check(sample_size, channels, layers_per_level, attention_levels, patch_size, resample)
        _check_widths(channels, attention_levels, head_width, groups, time_width)
        if bounded_code and out_channels != 2 * in_channels:
            raise ConfigError(
                f"bounded_code with {out_channels} output channels for {in_channels} of the picture; a variance code "
                f"needs {2 * in_channels}."
            )
        levels, fold = len(channels), patch_size**2
        attention = [level in set(attention_levels) for level in range(levels)]
        # ADM's residual resampling is diffusers' "resnet" type; its plain levels are then blocks of another name.
        plain_down, plain_up = (
            ("DownBlock2D", "UpBlock2D") if resample == "conv" else ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        )
        down = tuple("AttnDownBlock2D" if each else plain_down for each in attention)
        up = tuple("AttnUpBlock2D" if each else plain_up for each in reversed(attention))
        super().__init__(
            sample_size=sample_size // patch_size,
            in_channels=in_channels * fold,
            out_channels=out_channels * fold,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=down,
            up_block_types=up,
            downsample_type=resample,
            upsample_type=resample,
            attention_head_dim=head_width,
            norm_num_groups=groups,
            # Without it the middle's attention has no group norm at all when the time enters as scale and shift.
            attn_norm_num_groups=groups,
            norm_eps=EPS,
            resnet_time_scale_shift="scale_shift",
            time_embedding_dim=4 * (time_width or channels[0]),
            flip_sin_to_cos=True,
            freq_shift=0,
        )
        # The library's constructor has noted its own arguments; a saved network shall name those of this class only.
        self._internal_dict = FrozenDict(own)
        if time_width is not None:
            self.time_proj = Timesteps(time_width, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.time_embedding = TimestepEmbedding(time_width, 4 * time_width)
        self._rebuild_levels(tuple(layers_per_level), down, up)

    def _rebuild_levels(self, counts: Sequence[int], down: Sequence[str], up: Sequence[str]) -> None:
        """Levels of ``counts[i]`` residual blocks going down and one more going up, made by the library."""
        channels, config = self.config.channels, self.config
        last = len(channels) - 1
        shared = {
            "temb_channels": 4 * (config.time_width or channels[0]),
            "resnet_eps": EPS,
            "resnet_act_fn": "silu",
            "resnet_groups": config.groups,
            "attention_head_dim": config.head_width,
            "resnet_time_scale_shift": "scale_shift",
        }
        self.down_blocks = nn.ModuleList(
            get_down_block(
                kind,
                num_layers=counts[level],
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                add_downsample=level < last,
                downsample_padding=1,
                downsample_type=config.resample,
                **shared,
            )
            for level, kind in enumerate(down)
        )
        self.up_blocks = nn.ModuleList(
            get_up_block(
                kind,
                num_layers=counts[level] + 1,
                in_channels=channels[max(level - 1, 0)],
                out_channels=channels[level],
                prev_output_channel=channels[min(level + 1, last)],
                add_upsample=level > 0,
                upsample_type=config.resample,
                **shared,
            )
            for level, kind in zip(range(last, -1, -1), up, strict=True)
        )

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, class_labels: None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """The network's output for noisy pictures.

        Args:
            sample: (B, in_channels, H, W), the picture part in [-1, 1] before noise was added.
            timestep: of the full process: one number, or (B,) integers.
            class_labels: must be None; the argument is the library's.

        Returns:
            `UNet2DOutput` with `sample` (B, out_channels, H, W), or a tuple of it.

        Raises:
            ImageContractError: sides that cannot be folded and halved as often as this network does.
        """
        patch = self.config.patch_size
        least = patch * 2 ** (len(self.config.channels) - 1)
        if sample.ndim != 4 or any(side % least for side in sample.shape[-2:]):
            raise ImageContractError(
                f"this network takes (B, {self.conv_in.in_channels // patch**2}, H, W) with sides divisible by "
                f"{least}, got {tuple(sample.shape)}; pad or resize the pictures."
            )
        # With patches of one pixel folding changes nothing: the published networks take pictures as they are.
        folded = super().forward(F.pixel_unshuffle(sample, patch), timestep, class_labels).sample
        output = F.pixel_shuffle(folded, patch)
        if self.config.bounded_code:
            prediction, code = output.chunk(2, dim=1)
            output = torch.cat([prediction, code.tanh()], dim=1)
        return UNet2DOutput(sample=output) if return_dict else (output,)


def zero_output(network: ADMUNet) -> ADMUNet:
    """Set the output convolution and the last convolution of every residual block to zero, as ADM starts its training.

    Every block then passes its input on unchanged, and the first prediction is zero. Returns the network.
    """
    for name, module in network.named_modules():
        if name.endswith((".conv2", "conv_out")) and isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.zero_()
                module.bias.zero_()
    return network


def _check(
    sample_size: int,
    channels: Sequence[int],
    layers_per_level: Sequence[int],
    attention_levels: Sequence[int],
    patch_size: int,
    resample: str,
) -> None:
    if not channels or len(channels) != len(layers_per_level) or min(layers_per_level) < 1:
        raise ConfigError(
            f"channels {tuple(channels)} and layers_per_level {tuple(layers_per_level)} must name the same levels, "
            "each with a block."
        )
    if any(not 0 <= level < len(channels) for level in attention_levels):
        raise ConfigError(
            f"attention_levels {tuple(attention_levels)} name a level that is not there; levels are 0 (finest) to "
            f"{len(channels) - 1}."
        )
    if resample not in ("conv", "resnet"):
        raise ConfigError(f"resample is {resample!r}; expected 'conv' or 'resnet' (resblock_updown).")
    if patch_size < 1 or sample_size % (patch_size * 2 ** (len(channels) - 1)):
        raise ConfigError(
            f"pictures of {sample_size} px cannot be folded by {patch_size} and halved {len(channels) - 1} times."
        )


def _check_widths(
    channels: Sequence[int], attention_levels: Sequence[int], head_width: int, groups: int, time_width: int | None
) -> None:
    if groups < 1 or any(width % groups for width in channels):
        raise ConfigError(f"channels {tuple(channels)} cannot be split into {groups} groups each.")
    attending = {*attention_levels, len(channels) - 1}  # the middle is as wide as the coarsest level
    if head_width < 1 or any(channels[level] % head_width for level in attending):
        widths = tuple(channels[level] for level in sorted(attending))
        raise ConfigError(f"attention over {widths} channels cannot be split into heads of {head_width}.")
    if time_width is not None and (time_width < 2 or time_width % 2):
        raise ConfigError(f"time_width is {time_width}; expected an even number, sines and cosines in pairs.")
