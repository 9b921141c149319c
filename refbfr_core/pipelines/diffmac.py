"""DiffMAC (Gao et al., 2024): a diffusion restores, a bottleneck lets a part pass, a second diffusion restores that.

    x_LQ --Stage I--> X_D1 --E--> R --bottleneck: Z = lambda R + (1 - lambda) eps--> Z --Stage II--> x

What the bottleneck holds back is replaced by a face of the right identity: X_D1's own, or that of other photos of the
person (Fig. 10), which makes the method a reference-based one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import SPACINGS, StepState, Trace, image_noise, make_timesteps, schedule_from_scheduler
from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.images import check_images, check_references, from_network, to_network
from refbfr_core.models import pixels_per_latent
from refbfr_core.models.bottleneck import BottleneckOutput
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.pipelines.base import check_decoded, check_inputs, evaluating, with_progress
from refbfr_core.pipelines.diffmac_checks import check_first, check_identity, check_moments, check_networks, check_share
from refbfr_core.pipelines.diffmac_output import DiffMACOutput, DiffMACSettings, identity_words
from refbfr_core.pipelines.diffmac_stages import (
    child_generators,
    condition_of,
    identity_of_pictures,
    injected_identity,
    mean_identity,
    moments_of_pictures,
    pass_bottleneck,
    pictures_of_latents,
    restore_latents,
)
from refbfr_core.pipelines.prior import recorder_of, rows_of

STREAMS = ("stage one", "compensation", "stage two")
"""Streams of noise of a call, each with its own generator an image, so that none depends on whether another ran."""


class DiffMACPipeline(DiffusionPipeline):
    """Restores faces with DiffMAC, with or without references.

    Args:
        vae: frozen autoencoder; its moments are the manifold. unet: denoiser of its latents, for both stages unless
            `unet_two` comes; its `sample_size` fixes the resolution.
        modulation: Stage I. second: Stage II, bottleneck and modulation.
        prompt: embedding of the empty prompt. scheduler: decides the process (betas, prediction type).
        embedder: F_ID, with ``embed``; only second stages that inject an identity need it.
        unet_two: another denoiser for Stage II (a training with `train_unet`), or None.
        num_inference_steps, timestep_spacing: defaults of the call, for each stage; the paper takes 50.

    Raises:
        ConfigError: components that do not fit each other. UnknownNameError: an unknown spacing.
    """

    # No `model_cpu_offload_seq`: networks are called by their parts, which the library's offloading does not notice.

    _optional_components = ["embedder", "unet_two"]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        modulation: FeatureModulation,
        second: SecondStage,
        prompt: PromptEmbedding,
        scheduler: DDPMScheduler,
        embedder: nn.Module | None = None,
        unet_two: UNet2DConditionModel | None = None,
        num_inference_steps: int = 50,
        timestep_spacing: str = "adm",
    ) -> None:
        super().__init__()
        if timestep_spacing not in SPACINGS:
            raise unknown_name("timestep spacing", timestep_spacing, SPACINGS)
        check_networks(vae, unet, modulation, second, unet_two, embedder, prompt)
        self.register_modules(
            vae=vae, unet=unet, modulation=modulation, second=second, prompt=prompt, scheduler=scheduler,
            embedder=embedder, unet_two=unet_two,
        )  # fmt: skip
        self.register_to_config(num_inference_steps=num_inference_steps, timestep_spacing=timestep_spacing)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures these networks restore."""
        return self.unet.config.sample_size * pixels_per_latent(self.vae)

    @property
    def takes_references(self) -> bool:
        """Whether references can change a result: only where the second stage injects an identity."""
        return self.second.compensation == "identity"

    def with_second(self, second: SecondStage, unet_two: UNet2DConditionModel | None = None) -> DiffMACPipeline:
        """A pipeline with another second stage, and its own denoiser if it has one; the rest is shared with this one.

        New parts are moved to this pipeline's device. Raises ConfigError where they do not fit.
        """
        new: dict[str, nn.Module | None] = {"second": second, "unet_two": unet_two}
        for part in filter(None, new.values()):
            part.to(self.unet.device)
            if part.dtype != self.unet.dtype:
                part.to(self.unet.dtype)
        options = {name: self.config[name] for name in ("num_inference_steps", "timestep_spacing")}
        other = type(self)(**{**self.components, **new}, **options)
        other.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return other

    @torch.no_grad()
    def stage_one(
        self,
        lq: Tensor,
        *,
        num_inference_steps: int | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
    ) -> Tensor:
        """X_D1 (B, 3, H, W) in [0, 1], what Stage I alone restores; the one of a whole call with the same seed.

        Arguments and errors as those of the call.
        """
        timesteps = self._timesteps(num_inference_steps, timestep_spacing)[-1]
        inputs = check_inputs(lq, None, None, seed, generator, self.resolution)
        own = child_generators(inputs.generators, len(STREAMS))[0]
        rows = rows_of(rows_per_call, self.unet.device)
        with evaluating(*self._networks()), self.progress_bar(total=len(timesteps)) as bar:
            return self._run_one(lq, own, timesteps, rows, with_progress(bar, callback)).to(lq.device)

    @torch.no_grad()
    def identity(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """F_ID of faces, (B, D) of unit length, on the embedder's device.

        Args:
            images: (B, 3, H, W), or several of each person (B, R, 3, H, W), whose embeddings are averaged; in [0, 1].
            mask: (B, R) bool, False for padding.

        Raises:
            ConfigError: no embedder. ImageContractError: pictures that break the contract, or a person without any.
        """
        if self.embedder is None:
            raise ConfigError("this pipeline has no embedder; load one that injects an identity.")
        rows = rows_of(None, self.unet.device)
        with evaluating(self.embedder):
            if isinstance(images, Tensor) and images.ndim == 4:
                if mask is not None:
                    raise ImageContractError("a mask came for one picture a person; it belongs to (B, R, 3, H, W).")
                return identity_of_pictures(self.embedder, to_network(check_images(images)), rows)
            images, mask = check_references(images, mask)
            if not bool(mask.any(dim=1).all()):
                raise ImageContractError(
                    "the mask leaves a person without any picture, so without an identity; leave that person out."
                )
            return mean_identity(self.embedder, images, mask, rows)

    @torch.no_grad()
    def bottleneck(
        self,
        first: Tensor,
        *,
        identity: Tensor | None = None,
        share: Tensor | float | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> BottleneckOutput:
        """What the bottleneck makes of pictures, on the networks' device, in float32.

        Args:
            first: X_D1 (B, 3, H, W) in [0, 1]; X_LQ for a second stage that works on the ruined picture.
            identity: (B, D) to inject instead of the pictures' own. share: lambda instead of the network's own.
            seed, generator: of the noise, as in a call; only the noise compensation draws any.

        Raises:
            ConfigError: a second stage without a bottleneck, or as the call.
        """
        if self.second.bottleneck is None:
            raise ConfigError("this second stage has no bottleneck (2AdaIN); Z is R itself.")
        inputs = check_inputs(first, None, None, seed, generator, self.resolution)
        chosen = "auto" if identity is None else identity
        check_identity(self.second, chosen, None, 1.0, len(first))
        check_share(self.second, share, self._moments_shape(len(first)))
        own = child_generators(inputs.generators, len(STREAMS))[1]
        rows = rows_of(None, self.unet.device)
        with evaluating(*self._networks()):
            injected = injected_identity(self.second, self.embedder, first, inputs, chosen, 1.0, rows)
            return self._squeezed(first, injected, share, own, rows)[1]

    @torch.no_grad()
    def decode(self, moments: Tensor) -> Tensor:
        """Moments (B, 2C, h, w), such as Z, as pictures (B, 3, H, W) in [0, 1] on the autoencoder's device.

        Raises ImageContractError for moments of another shape, NonFiniteError for NaN or infinity.
        """
        expected = self._moments_shape(1)[1:]
        if not isinstance(moments, Tensor) or moments.ndim != 4 or tuple(moments.shape[1:]) != expected:
            came = tuple(moments.shape) if isinstance(moments, Tensor) else type(moments).__name__
            raise ImageContractError(f"moments are {came}, expected (B, {', '.join(map(str, expected))}).")
        rows = rows_of(None, self.vae.device)
        with evaluating(self.vae):
            return self._pictures(condition_of(self.vae, moments), rows)

    @torch.no_grad()
    def __call__(
        self,
        lq: Tensor,
        references: Tensor | None = None,
        *,
        reference_mask: Tensor | None = None,
        num_inference_steps: int | None = None,
        timestep_spacing: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        identity: str | Tensor = "auto",
        blend: float = 1.0,
        share: Tensor | float | None = None,
        first: Tensor | None = None,
        rows_per_call: int | None = None,
        callback: Callable[[StepState], object] | None = None,
        trace: bool | Trace = False,
    ) -> DiffMACOutput:
        """Restores a batch of faces.

        Args:
            lq: (B, 3, H, W) degraded faces, float32 RGB in [0, 1], at the pipeline's resolution.
            references, reference_mask: (B, R, 3, H, W) other photos of each person, and (B, R) False for padding; their
                embeddings are averaged. Checked, and then not looked at, where the second stage injects no identity.
            num_inference_steps, timestep_spacing: DDPM steps of each stage, and the rule that picks them.
            seed: an int s gives image i the seed s + i, a list gives one each; default 0.
            generator: instead of `seed`, one CPU `torch.Generator` an image; each is advanced by one draw.
            identity: "auto" (of the references where there are any, else of X_D1), "own", "references", or (B, D)
                embeddings, which are brought to unit length.
            blend: w, unit((1 - w) own + w other) is injected: 0 for X_D1's own identity, 1 for the other (Fig. 10).
            share: lambda in [0, 1] instead of the network's own, a number or a tensor that broadcasts to R.
            first: X_D1 made before, which skips Stage I; Stage II draws the noise of a whole call with that seed.
            rows_per_call: how many pictures a network gets together; None: one on a CPU, see `rows_of`.
            callback: called after every step with its `refbfr_core.diffusion.StepState`, Stage I before Stage II.
            trace: record the trajectory of Stage II into the result.

        Raises:
            ImageContractError: pictures that break the contract or have the wrong size. ConfigError: impossible
                settings. UnknownNameError: an unknown spacing or identity. NonFiniteError: a network returned NaN or
                infinity.
        """
        steps, spacing, timesteps = self._timesteps(num_inference_steps, timestep_spacing)
        inputs = check_inputs(lq, references, reference_mask, seed, generator, self.resolution)
        check_identity(self.second, identity, inputs.references, blend, len(lq))
        check_share(self.second, share, self._moments_shape(len(lq)))
        if first is not None:
            first = check_first(first, self.second, tuple(lq.shape))
        rows = rows_of(rows_per_call, self.unet.device)
        recorder = recorder_of(trace)
        streams = child_generators(inputs.generators, len(STREAMS))
        skipped = "none" if self.second.config.source == "input" else "run" if first is None else "given"
        total = len(timesteps) * (2 if skipped == "run" else 1)
        with evaluating(*self._networks()), self.progress_bar(total=total) as bar:
            done = with_progress(bar, callback)
            if skipped == "run":
                first = self._run_one(lq, streams[0], timesteps, rows, done)
            source = lq if skipped == "none" else first
            injected = injected_identity(self.second, self.embedder, source, inputs, identity, blend, rows)
            moments, made = self._squeezed(source, injected, share, streams[1], rows)
            unet = self.unet if self.unet_two is None else self.unet_two
            condition = condition_of(self.vae, moments)
            latents = restore_latents(
                unet, self.second.modulation, self.prompt(), condition, streams[2], timesteps,
                schedule_from_scheduler(self.scheduler), self.scheduler.config.prediction_type, rows, done, recorder,
            )  # fmt: skip
            images = self._pictures(latents, rows).to(lq.device)
        known, used = identity_words(self.second, identity, inputs)
        settings = DiffMACSettings(
            method="DiffMAC",
            resolution=self.resolution,
            num_inference_steps=steps,
            timestep_spacing=spacing,
            timesteps=tuple(timesteps),
            guidance_scale=0.0,
            eta=1.0,
            seeds=inputs.seeds,
            references=used,
            precision=str(unet.dtype).removeprefix("torch."),
            variant=self.second.config.label,
            compensation=self.second.compensation,
            stage_one=skipped,
            identity=known,
            blend=float(blend),
            share="a tensor" if isinstance(share, Tensor) else None if share is None else float(share),
            kept=() if made is None else tuple(made.share.flatten(1).mean(dim=1).tolist()),
        )
        return DiffMACOutput(
            images, recorder, settings, None if skipped == "none" else first.to(lq.device), made, injected
        )

    def _networks(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    def _moments_shape(self, count: int) -> tuple[int, ...]:
        side = self.unet.config.sample_size
        return (count, 2 * self.vae.config.latent_channels, side, side)

    def _timesteps(self, steps: int | None, spacing: str | None) -> tuple[int, str, list[int]]:
        """Number of steps, rule and timesteps of one stage; None stands for the pipeline's own."""
        steps = self.config.num_inference_steps if steps is None else steps
        spacing = self.config.timestep_spacing if spacing is None else spacing
        return steps, spacing, make_timesteps(spacing, len(schedule_from_scheduler(self.scheduler)), steps)

    def _pictures(self, latents: Tensor, rows: int) -> Tensor:
        return from_network(check_decoded(pictures_of_latents(self.vae, latents, rows)))

    def _run_one(
        self,
        lq: Tensor,
        generators: Sequence[torch.Generator],
        timesteps: Sequence[int],
        rows: int,
        callback: Callable[[StepState], object],
    ) -> Tensor:
        """X_D1 in [0, 1], on the networks' device."""
        degraded = check_moments(moments_of_pictures(self.vae, lq, rows), "lq")
        latents = restore_latents(
            self.unet, self.modulation, self.prompt(), condition_of(self.vae, degraded), generators, timesteps,
            schedule_from_scheduler(self.scheduler), self.scheduler.config.prediction_type, rows, callback,
        )  # fmt: skip
        return self._pictures(latents, rows)

    def _squeezed(
        self,
        first: Tensor,
        identity: Tensor | None,
        share: Tensor | float | None,
        generators: Sequence[torch.Generator],
        rows: int,
    ) -> tuple[Tensor, BottleneckOutput | None]:
        """Z and how it came about, for pictures in [0, 1]."""
        moments = check_moments(moments_of_pictures(self.vae, first, rows), "the pictures that enter Stage II").float()
        noise = None
        if self.second.compensation == "noise":
            noise = image_noise(generators, moments.shape[1:], device=moments.device)
        made = pass_bottleneck(self.second, moments, identity, noise, share, rows)
        return check_moments(moments if made is None else made.moments, "Z"), made
