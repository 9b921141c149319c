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
from refbfr_core.pipelines.rows import ROW_GROUP, in_groups, row_groups


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
            guidance_as_batch: evaluate both branches in one call of the network, or one after the other.
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
            patch_size = self.config.patch_size
            lq_latent = in_groups(lambda rows: encode_latents(self.vq, rows, patch_size), lq)
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
            latent = latent.to(lq_latent.dtype)
            decoded = in_groups(lambda rows: decode_latents(self.vq, rows, patch_size), latent).float()
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
        copies = 2 if guided and as_batch else 1
        groups = [rows.to(lq_latent.device) for rows in row_groups(len(lq_latent), ROW_GROUP // copies)]
        group_caches = self._caches(inputs, groups, guided, as_batch)

        def predict(x_t: Tensor, t: int) -> Tensor:
            outputs = []
            for rows, caches in zip(groups, group_caches, strict=True):
                joined = torch.cat([x_t[rows].to(lq_latent.dtype), lq_latent[rows]], dim=1)
                joined = torch.cat([joined] * copies)
                branches = torch.cat([denoise(self.unet, joined, t, cache) for cache in caches])
                outputs.append(classifier_free_guidance(*branches.chunk(2), scale) if guided else branches)
            return torch.cat(outputs)[: len(x_t)]

        return predict

    def _caches(
        self, inputs: RestorationInputs, groups: list[Tensor], guided: bool, as_batch: bool
    ) -> list[tuple[ReferenceCache | None, ...]]:
        """References of every group, run once for the whole call: one cache for each call of the denoiser in a step.

        Guidance needs [null, references], as in the release: null references are latents of zeros that keep their
        number and their place in the softmax. They share a cache, or have one each.
        """
        if inputs.references is None:
            return [(None,)] * len(groups)
        latents = encode_references(
            self.vq,
            inputs.references,
            inputs.mask,
            patch_size=self.config.patch_size,
            encoding=self.config.reference_encoding,
        )
        mask = inputs.mask.to(latents.device)
        caches: list[tuple[ReferenceCache | None, ...]] = []
        for rows in groups:
            own, used = latents[rows], mask[rows]
            if guided:
                own, used = torch.cat([torch.zeros_like(own), own]), torch.cat([used, used])
            cache = ReferenceCache.build(self.unet, own, used, chunk_size=ROW_GROUP)
            halves = (slice(len(rows)), slice(len(rows), None))
            caches.append((cache,) if as_batch or not guided else tuple(cache.select(half) for half in halves))
        return caches


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
