"""DifFace (Yue and Loy, TPAMI 2024): diffuse a coarse restoration part of the way, and denoise it. No guidance at all.

PDGrad starts the same way (eq. 8); this pipeline shows what its guidance adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from refbfr_core.diffusion import StepState, Trace, sample, schedule_from_scheduler, split_learned
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.base import RestorationOutput, check_inputs, evaluating, with_progress
from refbfr_core.pipelines.prior import (
    Coarse,
    PriorPipeline,
    check_prior,
    diffused,
    prior_predict,
    prior_timesteps,
    recorder_of,
    rows_of,
)


class DifFacePipeline(PriorPipeline):
    """Restores faces by an unguided diffusion that starts part-way, from a diffused coarse picture.

    Args:
        unet, scheduler, coarse: as for `PDGradPipeline`.
        num_inference_steps, start, eta, timestep_spacing: defaults of the call. The authors respace to 250 steps
            ("ddim250"), begin at the hundredth of these, which is timestep 400 (start 401), and take eta = 0.5.

    Raises:
        ConfigError: components that do not fit each other.
    """

    model_cpu_offload_seq = "coarse->unet"

    takes_references = False

    def __init__(
        self,
        unet: ADMUNet,
        scheduler: DDPMScheduler,
        coarse: torch.nn.Module | None = None,
        num_inference_steps: int = 250,
        start: int = 401,
        eta: float = 0.5,
        timestep_spacing: str = "adm-ddim",
    ) -> None:
        super().__init__()
        check_prior(unet, scheduler)
        self.register_modules(unet=unet, scheduler=scheduler, coarse=coarse)
        self.register_to_config(
            num_inference_steps=num_inference_steps, start=start, eta=eta, timestep_spacing=timestep_spacing
        )

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
        eta: float | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
        trace: bool | Trace = False,
    ) -> RestorationOutput:
        """Restores a batch of faces. References are checked, and then not looked at: the method knows none.

        Args:
            lq, coarse, seed, generator, rows_per_call, callback, trace: as for `PDGradPipeline`.
            num_inference_steps, start: steps of the whole process, and how far the coarse picture is diffused.
            eta: share of fresh noise in a DDIM step, 0 ... 1.

        Raises: as `PDGradPipeline`.
        """
        schedule = schedule_from_scheduler(self.scheduler)
        chosen = self._chosen(
            num_inference_steps=num_inference_steps, timestep_spacing=timestep_spacing, start=start, eta=eta
        )
        timesteps = prior_timesteps(schedule, chosen.timestep_spacing, chosen.num_inference_steps, chosen.start)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = recorder_of(trace)
        both = prior_predict(self.unet, rows)
        with evaluating(self.unet), self.progress_bar(total=len(timesteps)) as bar:
            y_c, title = self._coarse_picture(coarse, lq, rows)
            last = sample(
                lambda x_t, t: split_learned(both(x_t, t))[0],
                diffused(y_c, timesteps[0], schedule, inputs),
                timesteps,
                schedule,
                eta=chosen.eta,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                clip_x0=1.0,
                callback=with_progress(bar, callback),
                trace=recorder,
            )
        return self._finish(
            last,
            lq,
            recorder,
            inputs,
            method="DifFace",
            num_inference_steps=chosen.num_inference_steps,
            timestep_spacing=chosen.timestep_spacing,
            timesteps=tuple(timesteps),
            guidance_scale=0.0,
            eta=chosen.eta,
            references=(0,) * len(lq),
            start=chosen.start,
            coarse=title,
        )
