"""What PDGrad, PGDiff and DifFace share: an unconditional pixel diffusion as prior, and the pictures that steer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from refbfr_core.diffusion import (
    Predict,
    Schedule,
    Trace,
    add_noise,
    image_noise,
    make_timesteps,
    start_from,
)
from refbfr_core.errors import ConfigError
from refbfr_core.images import check_images, from_network, to_network
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.base import RestorationInputs, RestorationOutput, RestorationSettings
from refbfr_core.pipelines.coarse import NetworkRestorer, coarse_picture, coarse_title, named_coarse

Coarse = Callable[[Tensor], Tensor] | Tensor | str | None
"""What a call may say about y_c: a restorer, the pictures in [0, 1], a name, or None for the pipeline's own."""

GPU_ROWS = 8


@dataclass(frozen=True)
class PriorSettings(RestorationSettings):
    """Settings of a restoration by a guided or partly diffused prior.

    `start` is tau, how many of the T training steps the coarse picture was diffused (T or more: pure noise); `coarse`
    names the restorer behind y_c; `guidance` is everything about the guidance, as the method prints it.
    """

    start: int = 0
    coarse: str = ""
    guidance: str = ""

    def __str__(self) -> str:
        extra = f", {self.guidance}" if self.guidance else ""
        return f"{super().__str__()}, start {self.start}, coarse picture by {self.coarse}{extra}"


def check_prior(unet: ADMUNet, scheduler: DDPMScheduler) -> None:
    """Raises ConfigError unless the network has a learned variance and a scheduler that says so."""
    if unet.config.out_channels != 2 * unet.config.in_channels:
        raise ConfigError(
            f"the unet maps {unet.config.in_channels} to {unet.config.out_channels} channels; a learned variance needs "
            "twice as many as it takes. Use a network trained with learn_sigma."
        )
    if scheduler.config.get("variance_type") != "learned_range":
        raise ConfigError(
            f"the scheduler's variance_type is {scheduler.config.get('variance_type')!r}; create it with "
            "to_ddpm_scheduler(make_schedule('pdgrad'), variance_type='learned_range', clip_sample=True)."
        )


def prior_timesteps(schedule: Schedule, spacing: str, steps: int, start: int) -> list[int]:
    """The timesteps a restoration visits: those of `steps` over the whole process that lie below tau.

    PDGrad's tau = 700 counts steps from 1, so sampling begins at the zero-based index 699, or at the nearest one below
    that a spaced list visits.

    Raises
    ------
    ConfigError : tau outside 1 ... T, or so low that no visited timestep lies below.
    """
    if not 1 <= start <= len(schedule):
        raise ConfigError(f"start is {start}; expected 1 ... {len(schedule)}, how many steps the picture is diffused.")
    return start_from(make_timesteps(spacing, len(schedule), steps), start - 1)


def rows_of(rows_per_call: int | None, device: torch.device) -> int:
    """How many pictures go through a network together; None: one on a CPU, `GPU_ROWS` elsewhere.

    Matrix kernels differ in their last bits with the size of the batch, and a guided sampler with its kinks (ReLU,
    clamps, conflict or none) can grow these into something visible. One at a time a picture is the same to the last
    bit in any company, and a CPU loses little; a GPU has to be filled.

    Raises
    ------
    ConfigError : fewer than one.
    """
    if rows_per_call is None:
        return 1 if device.type == "cpu" else GPU_ROWS
    if rows_per_call < 1:
        raise ConfigError(f"rows_per_call is {rows_per_call}; expected 1 or more, or None.")
    return rows_per_call


def prior_predict(unet: ADMUNet, rows: int) -> Predict:
    """The network as the samplers call it: (x_t (B, 3, H, W), t) to (B, 6, H, W), `rows` pictures at a time."""

    def predict(x_t: Tensor, t: int) -> Tensor:
        # A tensor: a compiled network would be compiled again for every new number.
        timestep = torch.tensor(t, device=x_t.device)
        return torch.cat([unet(part.to(unet.dtype), timestep).sample.float() for part in x_t.split(rows)])

    return predict


def coarse_of(
    coarse: Coarse, own: Callable[[Tensor], Tensor] | None, lq: Tensor, rows: int = 1
) -> tuple[Tensor, str]:
    """y_c (B, 3, H, W) in [-1, 1] for degraded pictures `lq` in [0, 1], and what to call its restorer.

    The restorer gets `rows` pictures at a time.

    Raises
    ------
    ConfigError : neither the call nor the pipeline has a restorer. ImageContractError : pictures that do not fit.
    """
    if isinstance(coarse, Tensor):
        check_images(coarse, "coarse")
        if coarse.shape != lq.shape:
            raise ConfigError(f"coarse is {tuple(coarse.shape)} for lq of {tuple(lq.shape)}; pass one picture each.")
        return to_network(coarse), "pictures of the caller"
    restorer = own if coarse is None else named_coarse(coarse)
    if restorer is None:
        raise ConfigError(
            "this pipeline has no coarse restorer; pass coarse=..., a function of pictures in [-1, 1], a restorer's "
            "file, or 'none' for the degraded picture itself."
        )
    parts = [coarse_picture(restorer, part) for part in to_network(lq).split(rows)]
    return torch.cat(parts), coarse_title(restorer)


def diffused(y_c: Tensor, timestep: int, schedule: Schedule, inputs: RestorationInputs) -> Tensor:
    """x_tau of eq. 8, every picture with noise of its own seed."""
    noise = image_noise(inputs.generators, y_c.shape[1:], device=y_c.device)
    return add_noise(y_c, noise, timestep, schedule)


def reference_pictures(inputs: RestorationInputs, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The references one by one: pictures (B, 3, H, W) in [-1, 1] and whether each image has that one."""
    for index in range(inputs.references.shape[1]):
        present = inputs.mask[:, index]
        # Padding may hold anything; a grey picture keeps its features finite.
        pictures = torch.where(present.view(-1, 1, 1, 1), inputs.references[:, index], 0.5)
        yield to_network(pictures).to(device), present.to(device)


class PriorPipeline(DiffusionPipeline):
    """What the pipelines on this prior have in common; each registers `unet`, `scheduler` and an optional `coarse`."""

    _optional_components = ["coarse"]

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures this prior makes."""
        return self.unet.config.sample_size

    def _chosen(self, **given: Any) -> SimpleNamespace:
        """Every option with the value of the call, or the pipeline's own where that is None."""
        return SimpleNamespace(**{key: self.config[key] if value is None else value for key, value in given.items()})

    def _coarse_picture(self, coarse: Coarse, lq: Tensor, rows: int) -> tuple[Tensor, str]:
        """`coarse_of` with the pipeline's own restorer, on its device."""
        own = None if self.coarse is None else NetworkRestorer(self.coarse)
        return coarse_of(coarse, own, lq.to(self.unet.device), rows)

    def _finish(
        self, sample: Tensor, lq: Tensor, trace: Trace | None, inputs: RestorationInputs, **settings: Any
    ) -> RestorationOutput:
        """The last sample, which the sampler has found finite, as pictures where the input was; with its settings."""
        made = PriorSettings(
            resolution=self.resolution,
            seeds=inputs.seeds,
            precision=str(self.unet.dtype).removeprefix("torch."),
            **settings,
        )
        return RestorationOutput(from_network(sample).to(lq.device), trace, made)


def recorder_of(trace: bool | Trace) -> Trace | None:
    """The caller's `Trace`, a new one for True, None for False."""
    if isinstance(trace, Trace):
        return trace
    return Trace() if trace else None
