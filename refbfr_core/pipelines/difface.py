"""DifFace (Yue and Loy, TPAMI 2024): diffuse a coarse restoration part of the way, and denoise it. No guidance at all.

PDGrad starts the same way (eq. 8); this pipeline shows what its guidance adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from refbfr_core.diffusion import StepState, Trace, sample, split_learned
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.base import RestorationOutput, check_inputs, evaluating
from refbfr_core.pipelines.coarse import NetworkRestorer
from refbfr_core.pipelines.prior import (
    Coarse,
    PriorSettings,
    check_prior,
    coarse_of,
    diffused,
    finished,
    prior_predict,
    prior_schedule,
    prior_timesteps,
    rows_of,
    with_progress,
)


class DifFacePipeline(DiffusionPipeline):
    """Restores faces by an unguided diffusion that starts part-way, from a diffused coarse picture.

    Args:
        unet, scheduler, coarse: as for `PDGradPipeline`.
        num_inference_steps, start, eta, timestep_spacing: defaults of the call. The authors respace to 250 steps
            ("ddim250"), begin at the hundredth of these, which is timestep 400 (start 401), and take eta = 0.5.

    Raises:
        ConfigError: components that do not fit each other.
    """

    model_cpu_offload_seq = "coarse->unet"
    _optional_components = ["coarse"]

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

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures this prior makes."""
        return self.unet.config.sample_size

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
        schedule, config = prior_schedule(self.scheduler), self.config
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        spacing = config.timestep_spacing if timestep_spacing is None else timestep_spacing
        start = config.start if start is None else start
        eta = config.eta if eta is None else eta
        timesteps = prior_timesteps(schedule, spacing, steps, start)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = trace if isinstance(trace, Trace) else Trace() if trace else None
        both = prior_predict(self.unet, rows)
        with evaluating(self.unet), self.progress_bar(total=len(timesteps)) as bar:
            own = None if self.coarse is None else NetworkRestorer(self.coarse)
            y_c, title = coarse_of(coarse, own, lq.to(self.unet.device), rows)
            last = sample(
                lambda x_t, t: split_learned(both(x_t, t))[0],
                diffused(y_c, timesteps[0], schedule, inputs),
                timesteps,
                schedule,
                eta=eta,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                clip_x0=1.0,
                callback=with_progress(bar, callback),
                trace=recorder,
            )
        made = PriorSettings(
            method="DifFace",
            resolution=self.resolution,
            num_inference_steps=steps,
            timestep_spacing=spacing,
            timesteps=tuple(timesteps),
            guidance_scale=0.0,
            eta=eta,
            seeds=inputs.seeds,
            references=(0,) * len(lq),
            precision=str(self.unet.dtype).removeprefix("torch."),
            start=start,
            coarse=title,
        )
        return RestorationOutput(finished(last, lq), recorder, made)
