"""The parts of a restoration by DiffMAC: a stage's modulated diffusion, pictures and moments, identity, bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, StepState, Trace, image_noise, sample_ancestral
from refbfr_core.images import to_network
from refbfr_core.models.bottleneck import BottleneckOutput
from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import decode_latent, encode_moments, latents_of
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.pipelines.base import RestorationInputs


@torch.no_grad()
def restore_latents(
    unet: UNet2DConditionModel,
    modulation: FeatureModulation,
    prompt: Tensor,
    condition: Tensor,
    generators: Sequence[torch.Generator],
    timesteps: Sequence[int],
    schedule: Schedule,
    prediction: str,
    rows: int,
    callback: Callable[[StepState], object] | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """A stage's spaced DDPM sampling from noise with fixed posterior variance (section 4.1), without text guidance.

    Args:
        condition: s, scaled latents (B, C, h, w) of X_LQ in Stage I, of Z in Stage II; on the network's device.
        prompt: (1, tokens, width). generators: one an image; they give z_T and then the noise of every step.
        timesteps: descending. rows: pictures that go through the network together.

    Returns:
        (B, C, h, w) scaled latents.

    Raises:
        NonFiniteError: the network returned NaN or infinity.
    """
    dtype = unet.dtype
    given = condition.to(dtype).split(rows)
    prompt = prompt.to(unet.device, dtype)

    def predict(x_t: Tensor, t: int) -> Tensor:
        # A tensor: a compiled network would be compiled again for every new number.
        timestep = torch.tensor(t, device=x_t.device)
        parts = zip(x_t.to(dtype).split(rows), given, strict=True)
        return torch.cat(
            [denoise_modulated(unet, part, timestep, prompt, modulation, own).float() for part, own in parts]
        )

    start = image_noise(generators, condition.shape[1:], device=unet.device)
    return sample_ancestral(
        predict, start, timesteps, schedule, generators=generators, prediction=prediction, callback=callback,
        trace=trace,
    )  # fmt: skip


@torch.no_grad()
def moments_of_pictures(vae: AutoencoderKL, images: Tensor, rows: int) -> Tensor:
    """E_X (B, 2C, h, w) of pictures in [0, 1], `rows` at a time; on the autoencoder's device."""
    return torch.cat([encode_moments(vae, part) for part in images.split(rows)])


@torch.no_grad()
def condition_of(vae: AutoencoderKL, moments: Tensor) -> Tensor:
    """s of moments (B, 2C, h, w): the mean of the posterior, scaled, as the paper conditions at test time."""
    return latents_of(moments, vae.config.scaling_factor)


@torch.no_grad()
def pictures_of_latents(vae: AutoencoderKL, latents: Tensor, rows: int) -> Tensor:
    """Scaled latents to pictures in network range (B, 3, H, W), not clamped, float32."""
    latents = latents.to(vae.device, vae.dtype)
    return torch.cat([decode_latent(vae, part) for part in latents.split(rows)]).float()


def child_generators(generators: Sequence[torch.Generator], stages: int) -> list[list[torch.Generator]]:
    """For each stage one generator an image, seeded by one draw from the image's own.

    So a stage's noise does not depend on how many numbers the stage before it drew, or whether it ran at all.
    """
    seeds = [torch.randint(0, 2**62, (stages,), generator=own).tolist() for own in generators]
    return [[torch.Generator().manual_seed(row[stage]) for row in seeds] for stage in range(stages)]


@torch.no_grad()
def identity_of_pictures(embedder: nn.Module, images: Tensor, rows: int) -> Tensor:
    """F_ID: embeddings (B, D) of unit length, float32, of aligned faces (B, 3, H, W) in network range."""
    weight = next(embedder.parameters())
    return torch.cat([embedder.embed(part.to(weight.device, weight.dtype)).float() for part in images.split(rows)])


@torch.no_grad()
def mean_identity(embedder: nn.Module, references: Tensor, mask: Tensor, rows: int) -> Tensor:
    """F_ID averaged over the references of each image and brought back to unit length.

    Args:
        references: (B, R, 3, H, W) in [0, 1]. mask: (B, R) bool, False for padding.

    Returns:
        (B, D); a row of zeros where there is no reference.
    """
    embeddings = identity_of_pictures(embedder, to_network(references[mask]), rows)
    total = embeddings.new_zeros(*mask.shape, embeddings.shape[1])
    total[mask.to(total.device)] = embeddings
    return F.normalize(total.sum(dim=1), dim=1)


def _unit(embeddings: Tensor) -> Tensor:
    """Embeddings (B, D) brought to unit length; those that have it already stay as they are, to the last bit."""
    length = embeddings.norm(dim=1, keepdim=True)
    return torch.where((length - 1).abs() < 1e-5, embeddings, embeddings / length)


def blended(own: Tensor, other: Tensor, blend: float) -> Tensor:
    """unit((1 - w) own + w other) of unit embeddings (B, D), the knob of Fig. 10; exactly `own` and `other` at its
    ends."""
    if blend in (0, 1):
        return other if blend else own
    return F.normalize((1 - blend) * own + blend * other, dim=1)


def injected_identity(
    second: SecondStage,
    embedder: nn.Module | None,
    first: Tensor,
    inputs: RestorationInputs,
    identity: str | Tensor,
    blend: float,
    rows: int,
) -> Tensor | None:
    """Embeddings (B, D) that a call injects, None where its second stage takes none.

    Args:
        first: X_D1 (B, 3, H, W) in [0, 1]. identity, blend: checked, see the pipeline's call. rows: pictures at a time.
    """
    if second.compensation != "identity":
        return None
    own = identity_of_pictures(embedder, to_network(first), rows)
    if isinstance(identity, Tensor):
        return blended(own, _unit(identity.to(own)), blend)
    if identity == "own" or inputs.references is None:
        return own
    others = mean_identity(embedder, inputs.references, inputs.mask, rows)
    present = inputs.mask.any(dim=1).to(own.device)
    return torch.where(present[:, None], blended(own, others, blend), own)


@torch.no_grad()
def pass_bottleneck(
    second: SecondStage,
    moments: Tensor,
    identity: Tensor | None,
    noise: Tensor | None,
    share: Tensor | float | None,
    rows: int,
) -> BottleneckOutput | None:
    """The bottleneck on R (B, 2C, h, w), `rows` pictures at a time, float32; None without a bottleneck.

    `identity` (B, D), `noise` and `share` as for `SecondStage`.
    """
    if second.bottleneck is None:
        return None
    device, dtype = second.device, second.dtype

    def parts(given: Tensor | float | None) -> Sequence[Tensor | float | None]:
        if not isinstance(given, Tensor):
            return [given] * -(-len(moments) // rows)
        return given.to(device, dtype).split(rows)

    if isinstance(share, Tensor):
        share = share.expand_as(moments)
    made = [
        second(r, who, eps, kept)
        for r, who, eps, kept in zip(parts(moments), parts(identity), parts(noise), parts(share), strict=True)
    ]
    names = ("moments", "share", "normalised", "compensation", "information")
    return BottleneckOutput(*(torch.cat([getattr(each, name) for each in made]).float() for name in names))
