"""PDGrad (Sensors 2024, 24(22), 7112): an unconditional diffusion, guided towards a coarse restoration and a reference.

Nothing is trained for the task. The coarse picture y_c = f(y) is diffused tau steps (eq. 8); on the way back the mean
of every step is moved against the gradient of feature distances to y_c and to the references (eq. 9). Where the two
disagree, the one that knows better is the pivot: y_c for what is low-level, the reference for who it is (eq. 20, 23).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from refbfr_core.diffusion import StepState, Trace, sample_learned, schedule_from_scheduler
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.base import RestorationOutput, check_inputs, evaluating, with_progress
from refbfr_core.pipelines.pivot_guidance import PivotGuidance, PivotSettings
from refbfr_core.pipelines.pivot_losses import LossWeights, mean_target
from refbfr_core.pipelines.prior import (
    Coarse,
    PriorPipeline,
    check_prior,
    diffused,
    prior_predict,
    prior_timesteps,
    recorder_of,
    reference_pictures,
    rows_of,
)


class PDGradPipeline(PriorPipeline):
    """Restores faces with PDGrad, with references or without.

    Args:
        unet: the unconditional prior with a learned variance; its `sample_size` is the resolution.
        scheduler: its process: betas and prediction type.
        embedder: gives u_1 ... u_4 (`guidance_features`): an `IResNet`, a recogniser from ONNX, or a `FaceEmbedder`.
        perceptual: gives v_1 ... v_5: `LPIPSFeatures`, or the toy profile's `PerceptualFeatures`.
        coarse: network with `restore(images)`, the f of eq. 7; None when every call brings its own.
        num_inference_steps, start, scale, gain, timestep_spacing: defaults of the call; the paper has 1000, tau = 700
            and s = 0.1. `gain` None stands for the number of pixels, see `PivotSettings`.

    Raises:
        ConfigError: components that do not fit each other.
    """

    model_cpu_offload_seq = "coarse->embedder->perceptual->unet"

    def __init__(
        self,
        unet: ADMUNet,
        scheduler: DDPMScheduler,
        embedder: torch.nn.Module,
        perceptual: torch.nn.Module,
        coarse: torch.nn.Module | None = None,
        num_inference_steps: int = 1000,
        start: int = 700,
        scale: float = 0.1,
        gain: float | None = None,
        timestep_spacing: str = "adm",
    ) -> None:
        super().__init__()
        check_prior(unet, scheduler)
        self.register_modules(unet=unet, scheduler=scheduler, embedder=embedder, perceptual=perceptual, coarse=coarse)
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            start=start,
            scale=scale,
            gain=gain,
            timestep_spacing=timestep_spacing,
        )
        for network in (unet, embedder, perceptual):
            # Their weights never get a gradient; only the estimate of x_0 does.
            network.requires_grad_(False)

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        coarse: Coarse = None,
        num_inference_steps: int | None = None,
        start: int | None = None,
        scale: float | None = None,
        gain: float | None = None,
        mode: str = "full",
        cap: float = 1.0,
        scaling: str = "variance",
        weights: LossWeights | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
        trace: bool | Trace = False,
    ) -> RestorationOutput:
        """Restores a batch of faces.

        Args:
            lq: (B, 3, H, W) degraded faces, float32 RGB in [0, 1], at the pipeline's resolution.
            references: (B, R, 3, H, W) other photos of the same people; the losses are means over them. None: y_c alone
                guides (A5).
            reference_mask: (B, R) bool, False for padding.
            coarse: y_c as pictures (B, 3, H, W) in [0, 1], a restorer (a callable on [-1, 1]), its file or name (see
                `named_coarse`); None: the pipeline's own.
            num_inference_steps: steps the *whole* process would take; only those below tau are taken.
            start: tau.
            scale, gain, mode, cap, scaling, weights: of the guidance, see `PivotSettings`. scale 0 is DifFace's idea
                without guidance.
            timestep_spacing: the rule that picks the timesteps, a key of `refbfr_core.diffusion.SPACINGS`.
            seed, generator: noise, as for every pipeline: an int s gives image i the seed s + i.
            rows_per_call: pictures in one call of a network, see `refbfr_core.pipelines.prior.rows_of`.
            callback: called after every step with its `StepState`.
            trace: True, or a `Trace` of your own: the trajectory with every step's losses, angles, conflicts and caps.

        Raises:
            ImageContractError: pictures that break the contract or have the wrong size. ConfigError,
            UnknownNameError: impossible settings. NonFiniteError: a network or a gradient is NaN or infinite.
        """
        schedule = schedule_from_scheduler(self.scheduler)
        chosen = self._chosen(
            num_inference_steps=num_inference_steps, timestep_spacing=timestep_spacing, start=start, scale=scale
        )
        timesteps = prior_timesteps(schedule, chosen.timestep_spacing, chosen.num_inference_steps, chosen.start)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        gain = self.config.gain if gain is None else gain
        settings = PivotSettings(
            scale=chosen.scale,
            gain=float(self.resolution**2) if gain is None else gain,
            mode=mode,
            cap=cap,
            scaling=scaling,
            weights=weights or LossWeights(),
        )
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = recorder_of(trace)
        with (
            evaluating(self.unet, self.embedder, self.perceptual),
            self.progress_bar(total=len(timesteps)) as bar,
        ):
            y_c, title = self._coarse_picture(coarse, lq, rows)
            sample = sample_learned(
                prior_predict(self.unet, rows),
                diffused(y_c, timesteps[0], schedule, inputs),
                timesteps,
                schedule,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                guidance=self._guidance(y_c, inputs, settings, rows),
                callback=with_progress(bar, callback),
                trace=recorder,
            )
        return self._finish(
            sample,
            lq,
            recorder,
            inputs,
            method="PDGrad",
            num_inference_steps=chosen.num_inference_steps,
            timestep_spacing=chosen.timestep_spacing,
            timesteps=tuple(timesteps),
            guidance_scale=settings.scale,
            eta=1.0,
            references=inputs.reference_counts,
            start=chosen.start,
            coarse=title,
            guidance=f"mode {settings.mode}, gain {settings.gain:g}, cap {settings.cap:g}, {settings.scaling}",
        )

    def _guidance(self, y_c: Tensor, inputs: Any, settings: PivotSettings, rows: int) -> PivotGuidance | None:
        """The hook with the features of y_c and of the references, computed once for the whole run."""
        if settings.scale == 0 or (settings.gain == 0 and settings.scaling == "variance"):
            return None
        perceptual = self.perceptual if "vgg" in settings.weights.terms else None
        everyone = torch.ones(len(y_c), dtype=torch.bool, device=y_c.device)
        coarse = mean_target([(y_c, everyone)], self.embedder, perceptual, rows)
        reference = None
        if inputs.references is not None:
            reference = mean_target(reference_pictures(inputs, y_c.device), self.embedder, perceptual, rows)
        return PivotGuidance(self.embedder, perceptual, coarse, reference, settings, rows)
