"""ReF-LDM (Hsiao et al., NeurIPS 2024): latent diffusion that restores a face with the help of other photos of it.

The low-quality latent is concatenated to the noisy latent; references enter through the keys and values of every
self-attention layer (CacheKV, section 3.2), computed once for a whole sampling run; classifier-free guidance compares
them with *null references*, latents of zeros, which are still attended to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel, VQModel
from torch import Tensor

from refbfr_core.diffusion import (
    SPACINGS,
    Predict,
    StepState,
    Trace,
    classifier_free_guidance,
    image_noise,
    make_timesteps,
    sample,
    schedule_from_scheduler,
)
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.images import from_network
from refbfr_core.models import ReferenceCache, decode_latents, denoise, encode_latents, pixels_per_latent
from refbfr_core.pipelines.base import (
    RestorationInputs,
    RestorationOutput,
    RestorationSettings,
    check_decoded,
    check_inputs,
    evaluating,
)
from refbfr_core.pipelines.references import ENCODINGS, encode_references

ROW_GROUP = 4
"""Rows of the denoiser's batch are filled up to a multiple of this, see `_filled_rows`."""


class RefLDMPipeline(DiffusionPipeline):
    """Restores faces with ReF-LDM, with references or without.

    Args:
        vq: first stage; pictures are encoded un-quantised and decoded through the codebook.
        unet: denoiser from 2C to C channels; its `sample_size` fixes the resolution.
        scheduler: decides the diffusion process (betas, prediction type, where DDIM ends).
        patch_size: p; p × p neighbouring first-stage latents form one token of the denoiser.
        reference_encoding: "separate", or "strip" as in the authors' release, see `encode_references`.
        num_inference_steps, guidance_scale, timestep_spacing: defaults of the call (the paper: 50, 1.5, "trailing").

    Raises:
        ConfigError: components that do not fit each other. UnknownNameError: an unknown encoding or spacing.
    """

    model_cpu_offload_seq = "vq->unet->vq"

    def __init__(
        self,
        vq: VQModel,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        patch_size: int = 1,
        reference_encoding: str = "separate",
        num_inference_steps: int = 50,
        guidance_scale: float = 1.5,
        timestep_spacing: str = "trailing",
    ) -> None:
        super().__init__()
        if reference_encoding not in ENCODINGS:
            raise unknown_name("reference encoding", reference_encoding, ENCODINGS)
        if timestep_spacing not in SPACINGS:
            raise unknown_name("timestep spacing", timestep_spacing, SPACINGS)
        if patch_size != patch_size_between(vq, unet):
            raise ConfigError(
                f"patch_size={patch_size} does not fit these networks; they need {patch_size_between(vq, unet)}."
            )
        if not isinstance(unet.config.sample_size, int):
            raise ConfigError(
                f"the unet's sample_size is {unet.config.sample_size!r}; an int says how large pictures are. "
                "Create the UNet2DModel with sample_size=<side of its latents>."
            )
        self.register_modules(vq=vq, unet=unet, scheduler=scheduler)
        self.register_to_config(
            patch_size=patch_size,
            reference_encoding=reference_encoding,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            timestep_spacing=timestep_spacing,
        )

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures these networks restore."""
        return self.unet.config.sample_size * self.config.patch_size * pixels_per_latent(self.vq)

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        guidance_as_batch: bool = True,
        callback: Callable[[StepState], object] | None = None,
        trace: bool = False,
    ) -> RestorationOutput:
        """Restores a batch of faces.

        Args:
            lq: (B, 3, H, W) degraded faces, float32 RGB in [0, 1], at the pipeline's resolution.
            references: (B, R, 3, H, W) other photos of the same people, or None for a restoration without references
                (no cache, no guidance).
            reference_mask: (B, R) bool, False for padding; a person without references is a row of False.
            num_inference_steps: DDIM steps S; the authors' spacing takes a few more when S does not divide 1000.
            guidance_scale: s in eps_null + s (eps_ref - eps_null); 1 evaluates the branch with references only.
            eta: DDIM noise share, 0 is deterministic.
            seed: an int s gives image i the seed s + i, a list gives one each; default 0.
            generator: instead of `seed`, one CPU `torch.Generator` an image; drawing advances them.
            guidance_as_batch: evaluate both branches as one batch of 2B, or one after the other with half the memory.
            callback: called after every step with its `refbfr_core.diffusion.StepState`.
            trace: record the trajectory into the result.

        Raises:
            ImageContractError: pictures that break the contract or have the wrong size. ConfigError: impossible
                settings. NonFiniteError: a network returned NaN or infinity.
        """
        scale = self.config.guidance_scale if guidance_scale is None else float(guidance_scale)
        if not math.isfinite(scale) or scale < 0:
            raise ConfigError(f"guidance_scale is {scale}; expected a finite number, 0 or more (the paper uses 1.5).")
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        schedule = schedule_from_scheduler(self.scheduler)
        timesteps = make_timesteps(self.config.timestep_spacing, len(schedule), steps)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        recorder = Trace() if trace else None

        with evaluating(self.vq, self.unet), self.progress_bar(total=len(timesteps)) as bar:
            lq_latent = encode_latents(self.vq, lq, self.config.patch_size)
            predict = self._denoiser(inputs, lq_latent, scale, guidance_as_batch)

            def step_done(state: StepState) -> None:
                bar.update()
                if callback is not None:
                    callback(state)

            noise = image_noise(inputs.generators, lq_latent.shape[1:], device=lq_latent.device)
            latent = sample(
                predict,
                noise,
                timesteps,
                schedule,
                eta=eta,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                callback=step_done,
                trace=recorder,
            )
            decoded = decode_latents(self.vq, latent.to(lq_latent.dtype), self.config.patch_size).float()
        images = from_network(check_decoded(decoded)).to(lq.device)
        settings = RestorationSettings(
            method="ReF-LDM",
            resolution=self.resolution,
            num_inference_steps=steps,
            timestep_spacing=self.config.timestep_spacing,
            timesteps=tuple(timesteps),
            guidance_scale=scale if inputs.references is not None else 1.0,
            eta=eta,
            seeds=inputs.seeds,
            references=inputs.reference_counts,
        )
        return RestorationOutput(images, recorder, settings)

    def _denoiser(self, inputs: RestorationInputs, lq_latent: Tensor, scale: float, as_batch: bool) -> Predict:
        """The denoiser with the conditions of one call bound to it, guided when there are references."""
        guided = inputs.references is not None and scale != 1.0
        rows = _filled_rows(len(lq_latent), branches=2 if guided and as_batch else 1).to(lq_latent.device)
        lq_latent = lq_latent[rows]

        def run(x_t: Tensor, t: int, cache: ReferenceCache | None, branches: int = 1) -> list[Tensor]:
            joined = torch.cat([x_t[rows].to(lq_latent.dtype), lq_latent], dim=1)
            output = denoise(self.unet, torch.cat([joined] * branches), t, cache)
            return [branch[: len(x_t)] for branch in output.chunk(branches)]

        if inputs.references is None:
            return lambda x_t, t: run(x_t, t, None)[0]
        latents = encode_references(
            self.vq,
            inputs.references,
            inputs.mask,
            patch_size=self.config.patch_size,
            encoding=self.config.reference_encoding,
        )[rows]
        mask = inputs.mask.to(rows.device)[rows]
        if not guided:
            cache = ReferenceCache.build(self.unet, latents, mask)
            return lambda x_t, t: run(x_t, t, cache)[0]
        # Rows [null, references], as in the release; null references keep their number and their place in the softmax.
        both = ReferenceCache.build(self.unet, torch.cat([torch.zeros_like(latents), latents]), torch.cat([mask, mask]))
        if as_batch:
            return lambda x_t, t: classifier_free_guidance(*run(x_t, t, both, branches=2), scale)
        null, given = both.select(slice(len(rows))), both.select(slice(len(rows), None))
        return lambda x_t, t: classifier_free_guidance(run(x_t, t, null)[0], run(x_t, t, given)[0], scale)


def _filled_rows(count: int, branches: int) -> Tensor:
    """Indices of `count` images, repeated until the network sees a multiple of four rows.

    Matrix libraries on a CPU take other kernels for one, two or three rows, with other last bits. That is far below a
    grey level, but the codebook turns a near-tie between two codes into a visible patch, and a picture restored alone
    would now and then differ from the same picture in a batch. With full groups of four both get the same kernels.
    """
    group = ROW_GROUP // branches
    return torch.arange(-(-count // group) * group) % count


def patch_size_between(vq: VQModel, unet: UNet2DModel) -> int:
    """How many first-stage latents a side form one token of the denoiser, from the numbers of channels.

    Raises:
        ConfigError: no whole patch size fits, or the denoiser does not map 2C to C channels.
    """
    taken, returned, latent = unet.config.in_channels, unet.config.out_channels, vq.config.latent_channels
    patch_size = math.isqrt(returned // latent)
    if patch_size < 1 or latent * patch_size**2 != returned or taken != 2 * returned:
        raise ConfigError(
            f"the unet takes {taken} and returns {returned} channels, the first stage has {latent}; expected 2C to C "
            f"channels with C = {latent}·p². Use networks that were trained together."
        )
    return patch_size
