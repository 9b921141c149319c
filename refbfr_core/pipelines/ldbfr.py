"""LD-BFR (Du et al., ACM MM 2024): codes of clean faces restore the features, a latent diffusion renders them.

    x_LQ --stage 1, DC-VQR--> f_HQ --condition of every step--> z_0 --codes, decoder--> x

Noise alone starts the diffusion; all it learns of the picture is f_HQ. There is no reference photo: the paper's
"reference" is f_HQ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from torch import Tensor

from refbfr_core.diffusion import (
    SPACINGS,
    Predict,
    StepState,
    Trace,
    image_noise,
    make_timesteps,
    sample,
    schedule_from_scheduler,
)
from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.images import check_images, from_network, to_network
from refbfr_core.models import decode_latents, pixels_per_latent
from refbfr_core.models.dual_cross_attention import BRANCHES
from refbfr_core.models.injected_unet import HQInjection, denoise_injected
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.models.vq_restorer import CodeFeatures, VQRestorer
from refbfr_core.pipelines.base import (
    RestorationOutput,
    RestorationSettings,
    check_decoded,
    check_inputs,
    evaluating,
    with_progress,
)
from refbfr_core.pipelines.dcvqr import (
    check_branches,
    check_stage_one,
    replaced_codes,
    stage_one_features,
    stage_one_pictures,
)
from refbfr_core.pipelines.prior import recorder_of, rows_of


@dataclass(frozen=True)
class LDBFRSettings(RestorationSettings):
    """Settings of a restoration by LD-BFR.

    `branches` of DCAM that made the condition, empty for none, or None where the caller brought features; `injection`
    is the variant of Fig. 9; `codes_replaced` counts, for each image, the places with another code than the nearest.
    """

    branches: tuple[str, ...] | None = BRANCHES
    injection: str = "D"
    codes_replaced: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.branches is None:
            condition = "features of the caller"
        else:
            condition = f"DCAM {' and '.join(self.branches) or 'off'}"
        replaced = f", {sum(self.codes_replaced)} codes replaced" if any(self.codes_replaced) else ""
        return f"{super().__str__()}, {condition}, injection {self.injection}{replaced}"


@dataclass(frozen=True)
class LDBFROutput(RestorationOutput):
    """What LD-BFR returns: besides `images` also `stage_one`, D'_HQ(f_HQ) (B, 3, H, W) in [0, 1] on the device of the
    input, and `features`, the condition: what stage 1 made, or what the caller brought."""

    stage_one: Tensor
    features: CodeFeatures | Tensor


class LDBFRPipeline(DiffusionPipeline):
    """Restores faces with LD-BFR; without references, it knows none.

    Args:
        vqc: condition VQGAN, codebook L_HQ and decoder D'_HQ.
        restorer: stage 1, E_LQ and DCAM, trained for `vqc`.
        vqo: output VQGAN; the diffusion works on its latents and its decoder renders them.
        unet: denoiser of these latents without condition, theta_1; its `sample_size` fixes the resolution.
        injection: theta_2, brings f_HQ into the denoiser.
        scheduler: decides the diffusion process (betas, prediction type, where DDIM ends).
        num_inference_steps, eta, timestep_spacing: defaults of the call. The paper states no sampler; the authors'
            code logs pictures with DDIM, 200 steps, eta = 1.

    Raises:
        ConfigError: components that do not fit each other. UnknownNameError: an unknown spacing.
    """

    # No `model_cpu_offload_seq`: stages are called by their parts, which the library's offloading does not notice.

    takes_references = False

    def __init__(
        self,
        vqc: VQModel,
        restorer: VQRestorer,
        vqo: OutputVQModel,
        unet: UNet2DModel,
        injection: HQInjection,
        scheduler: DDIMScheduler,
        num_inference_steps: int = 200,
        eta: float = 1.0,
        timestep_spacing: str = "uniform",
    ) -> None:
        super().__init__()
        if timestep_spacing not in SPACINGS:
            raise unknown_name("timestep spacing", timestep_spacing, SPACINGS)
        check_stage_one(vqc, restorer)
        check_denoiser(vqo, unet, injection)
        check_condition(vqc, vqo, unet, injection)
        self.register_modules(
            vqc=vqc, restorer=restorer, vqo=vqo, unet=unet, injection=injection, scheduler=scheduler
        )
        self.register_to_config(num_inference_steps=num_inference_steps, eta=eta, timestep_spacing=timestep_spacing)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures these networks restore."""
        return self.unet.config.sample_size * pixels_per_latent(self.vqo)

    def with_parts(
        self, restorer: VQRestorer | None = None, injection: HQInjection | None = None
    ) -> LDBFRPipeline:
        """A pipeline with another restorer or other injectors; everything else is shared with this one.

        The new parts are moved to this pipeline's device. Raises ConfigError where they do not fit.
        """
        new = {"restorer": restorer, "injection": injection}
        new = {name: part.to(self.unet.device) for name, part in new.items() if part is not None}
        options = {name: self.config[name] for name in ("num_inference_steps", "eta", "timestep_spacing")}
        other = type(self)(**{**self.components, **new}, **options)
        other.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return other

    @torch.no_grad()
    def features(
        self,
        lq: Tensor,
        *,
        use: Sequence[str] = BRANCHES,
        codes: Tensor | None = None,
        rows_per_call: int | None = None,
    ) -> CodeFeatures:
        """Stage 1's features of degraded faces; deterministic.

        Args:
            lq: (B, 3, H, W) float32 RGB in [0, 1], at the pipeline's resolution.
            use: branches of DCAM that take part; () leaves it out.
            codes: (B, h, w) indices to take instead of the nearest codes.
            rows_per_call: as in a call of the pipeline.

        Returns:
            features on the networks' device.

        Raises:
            ImageContractError: pictures that break the contract or have the wrong size. UnknownNameError: another
                branch. ConfigError: codes that do not fit.
        """
        check_images(lq, "lq")
        if lq.shape[-2:] != (self.resolution, self.resolution):
            raise ImageContractError(
                f"lq is {lq.shape[-2]}×{lq.shape[-1]}, but these networks restore {self.resolution}×{self.resolution}: "
                "align and resize it first."
            )
        rows = rows_of(rows_per_call, self.unet.device)
        with evaluating(self.vqc, self.restorer):
            return stage_one_features(self.vqc, self.restorer, to_network(lq), check_branches(use), codes, rows=rows)

    @torch.no_grad()
    def stage_one(self, features: CodeFeatures | Tensor, *, rows_per_call: int | None = None) -> Tensor:
        """D'_HQ(f_HQ), what stage 1 alone restores: (B, 3, H, W) in [0, 1] on the networks' device.

        `features` may be any (B, C, h, w) of the codes' width. Raises ImageContractError for another shape,
        NonFiniteError when the decoder returns NaN or infinity.
        """
        rows = rows_of(rows_per_call, self.unet.device)
        with evaluating(self.vqc):
            return from_network(stage_one_pictures(self.vqc, self._condition(features), rows=rows))

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        use: Sequence[str] = BRANCHES,
        codes: Tensor | None = None,
        features: CodeFeatures | Tensor | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
        trace: bool | Trace = False,
    ) -> LDBFROutput:
        """Restores a batch of faces. References are checked, and then not looked at: the method knows none.

        Args:
            lq: (B, 3, H, W) degraded faces, float32 RGB in [0, 1], at the pipeline's resolution.
            num_inference_steps, timestep_spacing: DDIM steps, and the rule that picks them.
            eta: share of fresh noise in a DDIM step, 0 ... 1; with 0 everything after z_T is deterministic.
            seed: an int s gives image i the seed s + i, a list gives one each; default 0.
            generator: instead of `seed`, one CPU `torch.Generator` an image; drawing advances them.
            use, codes: as in `features`.
            features: a condition made before, which skips stage 1: what `features` returned, or any (B, C, h, w).
            rows_per_call: how many pictures a network gets together; None: one on a CPU, see `rows_of`.
            callback: called after every step with its `refbfr_core.diffusion.StepState`.
            trace: record the trajectory into the result.

        Raises:
            ImageContractError: pictures or features that break the contract or have the wrong size. ConfigError:
                impossible settings. UnknownNameError: an unknown spacing or branch. NonFiniteError: a network returned
                NaN or infinity.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        spacing = self.config.timestep_spacing if timestep_spacing is None else timestep_spacing
        eta = self.config.eta if eta is None else float(eta)
        schedule = schedule_from_scheduler(self.scheduler)
        timesteps = make_timesteps(spacing, len(schedule), steps)
        branches = check_branches(use)
        if features is not None and (codes is not None or branches != BRANCHES):
            raise ConfigError("features skip stage 1, to which use and codes belong; pass features, or these.")
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = recorder_of(trace)

        made = self.features(lq, use=branches, codes=codes, rows_per_call=rows) if features is None else features
        condition = self._condition(made)
        if len(condition) != len(lq):
            raise ConfigError(f"features of {len(condition)} pictures came for {len(lq)}; pass one each.")
        first = self.stage_one(condition, rows_per_call=rows)
        with evaluating(self.vqo, self.unet, self.injection), self.progress_bar(total=len(timesteps)) as bar:
            shape = (self.unet.config.in_channels, *(self.unet.config.sample_size,) * 2)
            latent = sample(
                self._denoiser(condition, rows),
                image_noise(inputs.generators, shape, device=self.unet.device),
                timesteps,
                schedule,
                eta=eta,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                callback=with_progress(bar, callback),
                trace=recorder,
            )
            latent = latent.to(self.vqo.device, self.vqo.dtype)
            decoded = torch.cat([decode_latents(self.vqo, part) for part in latent.split(rows)]).float()
        known = features is None and self.restorer.dcam is not None
        settings = LDBFRSettings(
            method="LD-BFR",
            resolution=self.resolution,
            num_inference_steps=steps,
            timestep_spacing=spacing,
            timesteps=tuple(timesteps),
            guidance_scale=0.0,
            eta=eta,
            seeds=inputs.seeds,
            references=(0,) * len(lq),
            precision=str(self.unet.dtype).removeprefix("torch."),
            branches=branches if known else () if features is None else None,
            injection=self.injection.variant,
            codes_replaced=replaced_codes(self.vqc, made) if isinstance(made, CodeFeatures) else (),
        )
        images = from_network(check_decoded(decoded)).to(lq.device)
        return LDBFROutput(images, recorder, settings, first.to(lq.device), made)

    def _condition(self, features: CodeFeatures | Tensor) -> Tensor:
        """f_HQ (B, C, h, w) of what stage 1 made, or as it came; raises ImageContractError for another shape."""
        condition = features.restored if isinstance(features, CodeFeatures) else features
        side = self.injection.config.condition_side
        expected = (self.injection.config.condition, side, side)
        if not isinstance(condition, Tensor) or condition.ndim != 4 or condition.shape[1:] != expected:
            came = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
            raise ImageContractError(
                f"features are {came}, expected (B, {expected[0]}, {side}, {side}): take those of features(lq), or of "
                "encode_feature(pipe.vqc, ...)."
            )
        return condition.to(self.unet.device)

    def _denoiser(self, condition: Tensor, rows: int) -> Predict:
        """The denoiser with the condition of one call bound to it, `rows` pictures at a time."""
        dtype = self.unet.dtype
        given = condition.to(dtype).split(rows)

        def predict(x_t: Tensor, t: int) -> Tensor:
            # A tensor: a compiled network would be compiled again for every new number.
            timestep = torch.tensor(t, device=x_t.device)
            parts = zip(x_t.to(dtype).split(rows), given, strict=True)
            return torch.cat(
                [denoise_injected(self.unet, part, timestep, self.injection, own).float() for part, own in parts]
            )

        return predict


def check_denoiser(vqo: OutputVQModel, unet: UNet2DModel, injection: HQInjection) -> None:
    """Raises ConfigError unless the denoiser works on the output VQGAN's latents and has a place for every injector."""
    width, channels = vqo.config.latent_channels, (unet.config.in_channels, unet.config.out_channels)
    if channels != (width, width):
        raise ConfigError(
            f"the unet maps {channels[0]} to {channels[1]} channels, latents of vqo have {width}; use networks that "
            "were trained together."
        )
    if not isinstance(unet.config.sample_size, int):
        raise ConfigError(
            f"the unet's sample_size is {unet.config.sample_size!r}; an int says how large pictures are. "
            "Create the UNet2DModel with sample_size=<side of its latents>."
        )
    made_for = injection.config
    own = (tuple(unet.config.block_out_channels), unet.config.layers_per_block, unet.config.sample_size)
    theirs = (tuple(made_for.channels), made_for.layers_per_block, made_for.sample_side)
    if own != theirs:
        raise ConfigError(
            f"the injectors were made for a unet of (channels, blocks a level, side) = {theirs}, this one has {own}; "
            "use HQInjection.for_network(unet, ...)."
        )
    for factor in made_for.levels:
        level = factor.bit_length() - 1
        for block in (unet.down_blocks[level], unet.up_blocks[-1 - level]):
            if getattr(block, "attentions", None) is None:
                raise ConfigError(
                    f"injectors of level {factor} stand behind attention layers, but the unet's {type(block).__name__} "
                    "has none there; choose other levels of HQInjection."
                )


def check_condition(vqc: VQModel, vqo: OutputVQModel, unet: UNet2DModel, injection: HQInjection) -> None:
    """Raises ConfigError unless pictures of the denoiser's size have features that the injectors were made for."""
    resolution = unet.config.sample_size * pixels_per_latent(vqo)
    cell, made_for = pixels_per_latent(vqc), injection.config
    own = (vqc.quantize.embedding.weight.shape[1], resolution / cell)
    theirs = (made_for.condition, float(made_for.condition_side))
    if own != theirs:
        raise ConfigError(
            f"the injectors take a condition of {theirs[0]} channels and side {theirs[1]:g}; pictures of {resolution} "
            f"px have {own[0]} and {own[1]:g} in this vqc. Use HQInjection.for_network with these numbers."
        )
