"""PGDiff (Yang et al., NeurIPS 2023), the method PDGrad grew out of: restoration and reference restoration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from refbfr_core.diffusion import (
    Repeats,
    StepState,
    Trace,
    image_noise,
    make_timesteps,
    sample_learned,
    schedule_from_scheduler,
)
from refbfr_core.images import to_network
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.base import RestorationOutput, check_inputs, evaluating, with_progress
from refbfr_core.pipelines.pgdiff_guidance import PGDiffGuidance, PGDiffSettings, StepRestorer, mean_embedding
from refbfr_core.pipelines.prior import (
    Coarse,
    PriorPipeline,
    check_prior,
    prior_predict,
    recorder_of,
    reference_pictures,
    rows_of,
)


class PGDiffPipeline(PriorPipeline):
    """Restores faces by guiding an unconditional diffusion from pure noise.

    Args:
        unet, scheduler, embedder, coarse: as for `PDGradPipeline`. The authors' embedder is an IResNet-50 whose output
            is not normalised; `reference_weight` belongs to the size of that output.
        num_inference_steps, scale, smooth_weight, reference_weight, timestep_spacing: defaults of the call. The authors
            take 1000 steps, advise at least 100, and s from 0.05 to 0.1.

    Raises:
        ConfigError: components that do not fit each other.
    """

    model_cpu_offload_seq = "coarse->embedder->unet"

    def __init__(
        self,
        unet: ADMUNet,
        scheduler: DDPMScheduler,
        embedder: torch.nn.Module,
        coarse: torch.nn.Module | None = None,
        num_inference_steps: int = 1000,
        scale: float = 0.1,
        smooth_weight: float = 1.0,
        reference_weight: float = 25.0,
        timestep_spacing: str = "adm",
    ) -> None:
        super().__init__()
        check_prior(unet, scheduler)
        self.register_modules(unet=unet, scheduler=scheduler, embedder=embedder, coarse=coarse)
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            scale=scale,
            smooth_weight=smooth_weight,
            reference_weight=reference_weight,
            timestep_spacing=timestep_spacing,
        )
        for network in (unet, embedder):
            network.requires_grad_(False)

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        coarse: Coarse = None,
        step_restorer: StepRestorer | None = None,
        num_inference_steps: int | None = None,
        scale: float | None = None,
        smooth_weight: float | None = None,
        reference_weight: float | None = None,
        scaling: str = "variance",
        scope: str = "image",
        repeats: Repeats | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
        trace: bool | Trace = False,
    ) -> RestorationOutput:
        """Restores a batch of faces.

        Args:
            lq, references, reference_mask, coarse, seed, generator, rows_per_call, callback, trace: as for
                `PDGradPipeline`.
            step_restorer: a restorer of (x_t, y, t) for every step, as in the authors' release, instead of `coarse`.
            num_inference_steps: all of them are taken, from pure noise.
            scale, smooth_weight, reference_weight, scaling, scope: of the guidance, see `PGDiffSettings`.
            repeats: repeated steps, see `refbfr_core.diffusion.Repeats`; None: every step once.

        Raises: as `PDGradPipeline`.
        """
        schedule = schedule_from_scheduler(self.scheduler)
        chosen = self._chosen(
            num_inference_steps=num_inference_steps,
            timestep_spacing=timestep_spacing,
            scale=scale,
            smooth_weight=smooth_weight,
            reference_weight=reference_weight,
        )
        timesteps = make_timesteps(chosen.timestep_spacing, len(schedule), chosen.num_inference_steps)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        settings = PGDiffSettings(
            scale=chosen.scale,
            smooth_weight=chosen.smooth_weight,
            reference_weight=chosen.reference_weight,
            scaling=scaling,
            scope=scope,
        )
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = recorder_of(trace)
        device = self.unet.device
        passes = sum((repeats or Repeats()).passes(len(timesteps)))
        with evaluating(self.unet, self.embedder), self.progress_bar(total=passes) as bar:
            degraded = to_network(lq.to(device))
            if step_restorer is None:
                picture, title = self._coarse_picture(coarse, lq, rows)
            else:
                picture, title = step_restorer, "a restorer of every step"
            reference = None
            if inputs.references is not None:
                reference = mean_embedding(reference_pictures(inputs, device), self.embedder, rows)
            sample = sample_learned(
                prior_predict(self.unet, rows),
                image_noise(inputs.generators, degraded.shape[1:], device=device),
                timesteps,
                schedule,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                guidance=PGDiffGuidance(picture, degraded, self.embedder, reference, settings, rows),
                repeats=repeats,
                callback=with_progress(bar, callback),
                trace=recorder,
            )
        return self._finish(
            sample,
            lq,
            recorder,
            inputs,
            method="PGDiff",
            num_inference_steps=chosen.num_inference_steps,
            timestep_spacing=chosen.timestep_spacing,
            timesteps=tuple(timesteps),
            guidance_scale=settings.scale,
            eta=1.0,
            references=inputs.reference_counts,
            start=len(schedule),
            coarse=title,
            guidance=f"weights {settings.smooth_weight:g} and {settings.reference_weight:g}, {settings.scaling}",
        )
