"""What all restoration pipelines share: their result, the record of their settings, and the checks of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.diffusion import NonFiniteError, StepState, Trace, image_generators, image_seeds
from refbfr_core.errors import ConfigError, ImageContractError
from refbfr_core.images import check_images, check_references


@dataclass(frozen=True)
class RestorationSettings:
    """Everything that decided a result besides the pictures and the weights; print it under a figure.

    `seeds` has one entry an image, or is None when the caller brought generators. `references` counts those actually
    used for each image, `timesteps` are the ones visited, in order, `precision` is the type the denoiser computed in.
    """

    method: str
    resolution: int
    num_inference_steps: int
    timestep_spacing: str
    timesteps: tuple[int, ...]
    guidance_scale: float
    eta: float
    seeds: tuple[int, ...] | None
    references: tuple[int, ...]
    precision: str = "float32"

    def __str__(self) -> str:
        seeds = "caller's generators" if self.seeds is None else _span(self.seeds)
        rounded = "" if self.precision == "float32" else f", {self.precision}"
        return (
            f"{self.method}, {self.resolution} px, {len(self.timesteps)} {self.timestep_spacing} steps, guidance "
            f"{self.guidance_scale:g}, eta {self.eta:g}, seeds {seeds}, references {_span(self.references)}{rounded}"
        )


@dataclass(frozen=True)
class RestorationOutput:
    """What a pipeline returns.

    `images` are (B, 3, H, W) float32 RGB in [0, 1] on the device of the input; `trace` is the recorded trajectory, or
    None unless it was asked for; `settings` says how the pictures were made.
    """

    images: Tensor
    trace: Trace | None
    settings: RestorationSettings


@dataclass(frozen=True)
class RestorationInputs:
    """Checked inputs of one call: `references` and `mask` are None when nobody has a reference."""

    lq: Tensor
    references: Tensor | None
    mask: Tensor | None
    generators: list[torch.Generator]
    seeds: tuple[int, ...] | None

    @property
    def reference_counts(self) -> tuple[int, ...]:
        """How many references each image has."""
        return (0,) * len(self.lq) if self.mask is None else tuple(self.mask.sum(dim=1).tolist())


def check_inputs(
    lq: Tensor,
    references: Tensor | None,
    reference_mask: Tensor | None,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    resolution: int,
) -> RestorationInputs:
    """Checks the common arguments of a pipeline call.

    `lq` is (B, 3, resolution, resolution), `references` (B, R, 3, resolution, resolution), both in [0, 1]; see
    `refbfr_core.images` for the contract. Either `seed` (an int s gives image i the seed s + i, a list gives one each;
    None stands for 0) or `generator` (one an image).

    Raises `ImageContractError` for pictures that break the contract or have another size than the network's, and
    `ConfigError` for seeds or generators that do not fit, or for both at once.
    """
    check_images(lq, "lq")
    if lq.shape[-2:] != (resolution, resolution):
        height, width = lq.shape[-2:]
        raise ImageContractError(
            f"lq is {height}×{width}, but these networks restore {resolution}×{resolution}: align and resize it first, "
            f"e.g. torch.nn.functional.interpolate(lq, ({resolution}, {resolution}), mode='bicubic').clamp(0, 1)."
        )
    if references is None and reference_mask is not None:
        raise ConfigError("a reference_mask came without references; pass both, or neither.")
    mask = None
    if references is not None:
        references, mask = check_references(references, reference_mask, lq)
        if not bool(mask.any()):
            references, mask = None, None
    if seed is not None and generator is not None:
        raise ConfigError(
            "both seed and generator came; the noise of an image can have one source only. Pass one of them."
        )
    if generator is not None:
        return RestorationInputs(lq, references, mask, image_generators(generator, len(lq)), None)
    seeds = image_seeds(0 if seed is None else seed, len(lq))
    return RestorationInputs(lq, references, mask, image_generators(seeds, len(lq)), tuple(seeds))


def check_decoded(pictures: Tensor) -> Tensor:
    """Returns what a decoder made; raises `NonFiniteError` for NaN or infinity, so that no picture is invented."""
    finite = torch.isfinite(pictures).flatten(1).all(dim=1)
    if bool(finite.all()):
        return pictures
    raise NonFiniteError(
        f"the decoder returned NaN or infinity for image(s) {(~finite).nonzero().flatten().tolist()} of the batch: its "
        "weights are damaged or overflow in this precision. Reload them with load_pipeline(...), or run in float32."
    )


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Runs a block with `networks` in evaluation mode and gives each its own mode back afterwards."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def with_progress(bar: Any, callback: Callable[[StepState], object] | None) -> Callable[[StepState], None]:
    """A callback for the samplers that moves a progress bar and then calls the caller's, if there is one."""

    def step_done(state: StepState) -> None:
        bar.update()
        if callback is not None:
            callback(state)

    return step_done


def _span(values: Sequence[int]) -> str:
    """`[5, 6, 7]` -> "5-7", equal values -> one value, anything else -> the list."""
    first, last = values[0], values[-1]
    if all(value == first for value in values):
        return str(first)
    if list(values) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ", ".join(map(str, values))
