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

from refbfr_core.devices import pick_dtype
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
    with_progress,
)
from refbfr_core.pipelines.references import ENCODINGS, encode_references
from refbfr_core.pipelines.rows import as_slice, in_groups, row_groups
from refbfr_core.pipelines.rows import rows_per_call as default_rows


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

    def speed_up(
        self,
        dtype: str | torch.dtype | None = None,
        *,
        compiled: bool = False,
        channels_last: bool = False,
        backend: str = "inductor",
    ) -> RefLDMPipeline:
        """Trades a little exactness, or the time of a compilation, for speed; changes this pipeline and returns it.

        Args:
            dtype: of the denoiser, as in `refbfr_core.devices.pick_dtype`; None leaves it. The weights are rounded: to
                go back, load the pipeline again. In a short type the first stage computes under autocast, with weights,
                codebook and look-up in its own type; the steps between, and guidance, are float32 in any case.
            compiled: run the denoiser through `torch.compile` (minutes at its first call; again for another number of
                rows or references). Reference passes are not compiled.
            channels_last: keep the denoiser's weights as (out, h, w, in), which convolutions of short types on GPUs
                like.
            backend: of `torch.compile`.

        Raises:
            UnknownNameError, ConfigError: as in `pick_dtype`.
        """
        if dtype is not None:
            # Not the network's own `to`, which warns that some layers may need float32: this one has none such.
            torch.nn.Module.to(self.unet, pick_dtype(self.unet.device, dtype))
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if compiled:
            self.unet = torch.compile(self.unet, dynamic=False, backend=backend)
        return self

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        timestep_spacing: str | None = None,
        eta: float = 0.0,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        guidance_as_batch: bool | None = None,
        rows_per_call: int | None = None,
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
            timestep_spacing: the rule that picks the timesteps, a key of `refbfr_core.diffusion.SPACINGS`.
            eta: DDIM noise share, 0 is deterministic.
            seed: an int s gives image i the seed s + i, a list gives one each; default 0.
            generator: instead of `seed`, one CPU `torch.Generator` an image; drawing advances them.
            guidance_as_batch: evaluate both branches in one call of the network, or one after the other, which needs
                less memory. None: in one call, which was never slower (docs/speed.md).
            rows_per_call: rows of every network call, where a picture with both branches in one call is two. None: 4
                for small latents, from 64 latents a side one picture at a time. Larger calls suit a GPU. Pictures of
                calls of different size differ by rounding, which now and then flips a code of the first stage.
            callback: called after every step with its `refbfr_core.diffusion.StepState`.
            trace: record the trajectory into the result.

        Raises:
            ImageContractError: pictures that break the contract or have the wrong size. ConfigError: impossible
                settings. UnknownNameError: an unknown spacing. NonFiniteError: a network returned NaN or infinity.
        """
        scale = self.config.guidance_scale if guidance_scale is None else float(guidance_scale)
        if not math.isfinite(scale) or scale < 0:
            raise ConfigError(f"guidance_scale is {scale}; expected a finite number, 0 or more (the paper uses 1.5).")
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        spacing = self.config.timestep_spacing if timestep_spacing is None else timestep_spacing
        schedule = schedule_from_scheduler(self.scheduler)
        timesteps = make_timesteps(spacing, len(schedule), steps)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        if rows_per_call is not None and rows_per_call < 1:
            raise ConfigError(f"rows_per_call is {rows_per_call}; expected 1 or more, or None.")
        rows = rows_per_call or default_rows(self.unet.config.sample_size)
        recorder = Trace() if trace else None

        with evaluating(self.vq, self.unet), self.progress_bar(total=len(timesteps)) as bar:
            patch_size = self.config.patch_size
            with self._first_stage_precision():
                lq_latent = in_groups(lambda pictures: encode_latents(self.vq, pictures, patch_size), lq, rows)
            lq_latent = lq_latent.to(self.vq.dtype)
            predict = self._denoiser(inputs, lq_latent, scale, guidance_as_batch is not False, rows)

            noise = image_noise(inputs.generators, lq_latent.shape[1:], device=lq_latent.device)
            latent = sample(
                predict,
                noise,
                timesteps,
                schedule,
                eta=eta,
                generators=inputs.generators,
                prediction=self.scheduler.config.prediction_type,
                callback=with_progress(bar, callback),
                trace=recorder,
            )
            latent = latent.to(lq_latent.dtype)
            with self._first_stage_precision():
                decoded = in_groups(lambda latents: decode_latents(self.vq, latents, patch_size), latent, rows).float()
        images = from_network(check_decoded(decoded)).to(lq.device)
        settings = RestorationSettings(
            method="ReF-LDM",
            resolution=self.resolution,
            num_inference_steps=steps,
            timestep_spacing=spacing,
            timesteps=tuple(timesteps),
            guidance_scale=scale if inputs.references is not None else 1.0,
            eta=eta,
            seeds=inputs.seeds,
            references=inputs.reference_counts,
            precision=str(self.unet.dtype).removeprefix("torch."),
        )
        return RestorationOutput(images, recorder, settings)

    def _first_stage_precision(self) -> torch.autocast:
        """Autocast to the denoiser's type where the first stage has a longer one. A look-up stays as it is: near-ties
        between two codes are not for a short type to decide."""
        short = self.unet.dtype != torch.float32 and self.vq.dtype == torch.float32
        return torch.autocast(self.vq.device.type, self.unet.dtype if short else torch.bfloat16, enabled=short)

    def _denoiser(
        self, inputs: RestorationInputs, lq_latent: Tensor, scale: float, as_batch: bool, rows: int
    ) -> Predict:
        """The denoiser with the conditions of one call bound to it, guided when there are references."""
        guided = inputs.references is not None and scale != 1.0
        copies = 2 if guided and as_batch else 1
        groups = [group.to(lq_latent.device) for group in row_groups(len(lq_latent), max(1, rows // copies))]
        calls = self._calls(inputs, groups, guided, as_batch, rows)
        dtype = self.unet.dtype

        def predict(x_t: Tensor, t: int) -> Tensor:
            # A tensor: a compiled network would be compiled again for every new number.
            timestep = torch.tensor(t, device=x_t.device)
            outputs = []
            for group, caches in zip(groups, calls, strict=True):
                joined = torch.cat([x_t[group].to(dtype), lq_latent[group].to(dtype)], dim=1)
                joined = torch.cat([joined] * copies)
                # Guidance amplifies the difference of the branches, and with it what a short type rounds away.
                branches = torch.cat([denoise(self.unet, joined, timestep, cache).float() for cache in caches])
                outputs.append(classifier_free_guidance(*branches.chunk(2), scale) if guided else branches)
            return torch.cat(outputs)[: len(x_t)]

        return predict

    def _calls(
        self, inputs: RestorationInputs, groups: list[Tensor], guided: bool, as_batch: bool, rows: int
    ) -> list[tuple[ReferenceCache | tuple[ReferenceCache, ...] | None, ...]]:
        """What each group's calls of the network in a step attend to; references pass once for the whole call.

        Guidance needs [null, references], as in the release: null references are latents of zeros that keep their
        number and their place in the softmax. Both go into one call, or into one each.
        """
        if inputs.references is None:
            return [(None,)] * len(groups)
        with self._first_stage_precision():
            latents = encode_references(
                self.vq,
                inputs.references,
                inputs.mask,
                patch_size=self.config.patch_size,
                encoding=self.config.reference_encoding,
                rows=rows,
            ).to(self.unet.dtype)
        mask = inputs.mask.to(latents.device)
        given = ReferenceCache.build(self.unet, latents, mask, chunk_size=rows)
        null = None
        if guided:
            null = ReferenceCache.null(self.unet, mask.sum(dim=1), given.latent_size, chunk_size=rows)
        calls: list[tuple[ReferenceCache | tuple[ReferenceCache, ...] | None, ...]] = []
        for group in groups:
            people = as_slice(group)
            own = given.select(people).compact()
            if null is None:
                calls.append((own,))
            else:
                branches = (null.select(people), own)
                calls.append((branches,) if as_batch else branches)
        return calls


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
