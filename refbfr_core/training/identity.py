"""ReF-LDM's training loss (Hsiao et al., NeurIPS 2024, section 3.3): denoising, plus an identity loss scaled by time.

    L = mean((eps_hat - eps)^2) + w * mean_b( s(t_b) * ID_b ),         w = 0.1
    ID_b = 1 - cos(f(decode(x0_hat_b)), f(decode(z0_b)))

x0_hat is the one-step prediction at timestep t, not clipped; `decode` goes through the codebook (straight-through
gradient); f is a frozen face embedder behind the crop and area resize of `refbfr_core.models.crop_and_resize`. The
target is the first stage's reconstruction of the truth, not the truth itself: what the first stage cannot draw is not
the denoiser's fault. s is one of `SCALES`; the paper argues for sqrt(alpha_bar_t), because at large t a one-step
prediction is a blur that the embedder was never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from diffusers import VQModel
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, add_noise, eps_and_x0, predict_v
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.metrics.identity import EmbedderLike
from refbfr_core.models import FaceEmbedder, ReferenceCache, crop_and_resize, decode_latents, denoise, similarity

Scale = Callable[[Tensor, Schedule], Tensor]


def sqrt_alpha_bar(timesteps: Tensor, schedule: Schedule) -> Tensor:
    """The paper's scale s(t) = sqrt(alpha_bar_t) (section 3.3; Table 4, first row).

    The poster prints alpha_t; the paper's text and its released code use the cumulative product alpha_bar_t.

    Args:
        timesteps: (B,) integers. schedule: the diffusion process.

    Returns:
        (B,) float32 weights, for ReF-LDM's schedule from 0.999 (t = 0) down to 0.026 (t = 999).
    """
    return schedule.coefficients(schedule.sqrt_alphas_cumprod, timesteps, timesteps.new_empty(len(timesteps)).float())


def constant(timesteps: Tensor, schedule: Schedule) -> Tensor:
    """No scale: s(t) = 1 (Table 3, "L_LDM + L_ID"). Arguments and result as `sqrt_alpha_bar`."""
    return torch.ones(len(timesteps), device=timesteps.device)


def below_100(timesteps: Tensor, schedule: Schedule) -> Tensor:
    """s(t) = 1[t < 100]: identity counts in the last tenth of the way only (Table 4). As `sqrt_alpha_bar`."""
    return (timesteps < 100).float()


def below_500(timesteps: Tensor, schedule: Schedule) -> Tensor:
    """s(t) = 1[t < 500]: identity counts in the cleaner half (Table 4). Arguments and result as `sqrt_alpha_bar`."""
    return (timesteps < 500).float()


SCALES: Mapping[str, Scale] = MappingProxyType(
    {each.__name__: each for each in (sqrt_alpha_bar, constant, below_100, below_500)}
)
"""The time scales s(t) of the paper's ablation by name; read-only."""


def scale_function(name: str) -> Scale:
    """The scale called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in SCALES:
        raise unknown_name("scale of the identity loss", name, SCALES)
    return SCALES[name]


@dataclass(frozen=True)
class RefLDMLoss:
    """The loss of a batch and its parts.

    Attributes:
        total: scalar with gradient, `denoising` + weight * `identity`.
        denoising: scalar, L_LDM. identity: scalar, mean_b(s(t_b) * ID_b), before the weight.
        denoising_each: (B,) mean squared error of each sample, detached.
        identity_each: (B,) ID_b, detached; NaN where s(t_b) is 0, because nothing is decoded there.
        output, x0: what the network returned, and the one-step prediction, both detached.
        decoded: (M, 3, H, W) pictures of the M samples with s(t_b) > 0 in [-1, 1], not clamped, detached; None without
            identity loss.
    """

    total: Tensor
    denoising: Tensor
    identity: Tensor
    denoising_each: Tensor
    identity_each: Tensor
    output: Tensor
    x0: Tensor
    decoded: Tensor | None


def embed_faces(pictures: Tensor, embedder: EmbedderLike) -> Tensor:
    """Embeddings (B, D) of pictures (B, 3, H, W) in [-1, 1], float32, with gradient.

    Pictures are cropped by 1/16 on every side and area-resized to 112 x 112 (32:480 of 512), inside `embedder.embed`
    or here before `embedder(crops)`.
    """
    if isinstance(embedder, FaceEmbedder) or hasattr(embedder, "embed"):
        return embedder.embed(pictures).float()
    return embedder(crop_and_resize(pictures, 112)).float()


def identity_loss(pictures: Tensor, targets: Tensor, embedder: EmbedderLike) -> Tensor:
    """ID = 1 - cosine of face embeddings, for each sample (paper, section 3.3).

    Args:
        pictures: (B, 3, H, W) RGB in [-1, 1]; gradients flow through them.
        targets: (B, 3, H, W) in [-1, 1], the first stage's reconstruction of the truth; or its embeddings (B, D), so
            that constant targets are embedded once.
        embedder: frozen; an object with `embed(images in [-1, 1])` or a function of (B, 3, 112, 112) crops.

    Returns:
        (B,) float32 in [0, 2]; 0 for the same direction.

    Raises:
        ConfigError: the embedder is in training mode, or the numbers of pictures and targets differ.
    """
    if isinstance(embedder, nn.Module) and embedder.training:
        raise ConfigError(
            "the embedder is in training mode, so losses would depend on the batch; call embedder.eval()."
        )
    if len(pictures) != len(targets) or targets.ndim not in (2, 4):
        raise ConfigError(
            f"{tuple(pictures.shape)} pictures and targets {tuple(targets.shape)}; expected as many pictures "
            "(B, 3, H, W) or embeddings (B, D)."
        )
    if targets.ndim == 4:
        with torch.no_grad():
            targets = embed_faces(targets, embedder)
    return 1 - similarity(embed_faces(pictures, embedder), targets.to(pictures.device).float())


@torch.no_grad()
def identity_targets(vq: VQModel, clean: Tensor, embedder: EmbedderLike, patch_size: int = 1) -> Tensor:
    """Embeddings (B, D) of decode(z0), the targets of the identity loss.

    Args:
        clean: (B, C, h, w) latents of the truth, not quantised. patch_size: as in `decode_latents`.
    """
    return embed_faces(decode_latents(vq, clean, patch_size), embedder)


def drop_conditions(
    lq: Tensor, references: Tensor | None, probability: float | tuple[float, float] = 0.1, *, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Condition dropout on latents, for each sample and each condition by itself, as the release does it in training.

    A sample keeps a condition if U(0, 1) > probability, else the latent is multiplied by 0. A sample's references are
    dropped all at once, and keep their number and their place in the softmax.

    Args:
        lq: (B, C, h, w). references: (P, R, C, h, w), R may be 0, or None.
        probability: of dropping, for both, or (lq, references).
        generator: on the CPU; draws B numbers for `lq`, then P for `references`, whatever the probabilities are.

    Returns:
        New tensors of the same shapes.
    """
    chances = probability if isinstance(probability, tuple) else (probability, probability)
    if not all(0 <= chance <= 1 for chance in chances):
        raise ConfigError(f"probability is {probability}; expected numbers from 0 to 1 (the paper's is 0.1).")
    kept_lq = torch.rand(len(lq), generator=generator) > chances[0]
    lq = lq * kept_lq.to(lq.device, lq.dtype).view(-1, 1, 1, 1)
    if references is None:
        return lq, None
    kept = torch.rand(len(references), generator=generator) > chances[1]
    return lq, references * kept.to(references.device, references.dtype).view(-1, 1, 1, 1, 1)


def refldm_loss(
    unet: nn.Module,
    clean: Tensor,
    lq: Tensor,
    references: Tensor | None,
    noise: Tensor,
    timesteps: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "epsilon",
    scale: str | Scale | None = "sqrt_alpha_bar",
    weight: float = 0.1,
    vq: VQModel | None = None,
    embedder: EmbedderLike | None = None,
    targets: Tensor | None = None,
    patch_size: int = 1,
    denoising_weights: Tensor | None = None,
) -> RefLDMLoss:
    """ReF-LDM's training loss: mean((eps_hat - eps)^2) + weight * mean_b(s(t_b) * ID_b).

    Gradients flow through the cached keys and values of the references, the codebook (straight through) and the frozen
    decoder. Samples whose s(t) is 0 are not decoded: they would add nothing.

    Args:
        unet: the denoiser; a wrapper of accelerate is fine.
        clean: (B, C, h, w) latents z0 of the truth, not quantised. lq: likewise, of the degraded picture.
        references: (P, R, C, h, w) with B a multiple of P: consecutive samples share a person's references, which run
            once. None or R = 0: no references.
        noise, timesteps: (B, C, h, w) standard normal; (B,) integers.
        schedule: the diffusion process.
        prediction: "epsilon" (the paper) or "v_prediction", where L_LDM compares velocities.
        scale: a name of `SCALES`, a function, or None for L_LDM alone.
        weight: of the identity term; 0 is L_LDM alone.
        vq, embedder: the frozen first stage and embedder; needed with an identity term.
        targets: (B, D) embeddings from `identity_targets`, or (B, 3, H, W) reconstructions in [-1, 1]; None computes
            them from `clean`.
        patch_size: of the latents, see `decode_latents`.
        denoising_weights: (B,) factors of each sample's squared error; None is the paper's plain mean.

    Raises:
        ConfigError: no first stage or embedder although identity counts; shapes that do not belong together.
        UnknownNameError: an unknown scale or prediction type. CacheError: references that do not fit the network.
    """
    scale = scale_function(scale) if isinstance(scale, str) else scale
    if scale is not None and weight and (vq is None or embedder is None):
        raise ConfigError("the identity loss needs vq= and embedder=; pass them, or scale=None for L_LDM alone.")
    noisy = add_noise(clean, noise, timesteps, schedule)
    cache = _reference_cache(unet, references, len(clean))
    output = denoise(unet, torch.cat([noisy, lq], 1), timesteps, cache).float()
    x0 = eps_and_x0(output, noisy, timesteps, schedule, prediction)[1]
    aim = predict_v(clean, noise, timesteps, schedule) if prediction == "v_prediction" else noise
    squared = (output - aim).square().mean((1, 2, 3))
    total = denoising = (squared if denoising_weights is None else squared * denoising_weights.to(x0.device)).mean()
    identity, each, decoded = total.new_zeros(()), torch.full_like(squared.detach(), torch.nan), None
    weights = scale(timesteps, schedule).to(x0.device) if scale is not None and weight else torch.zeros_like(each)
    rows = weights.nonzero().squeeze(1)
    if len(rows):
        if targets is None:
            targets = identity_targets(vq, clean[rows], embedder, patch_size)
        else:
            targets = targets.to(x0.device)[rows]
        decoded = decode_latents(vq, x0[rows], patch_size)
        losses = identity_loss(decoded, targets, embedder)
        each[rows] = losses.detach()
        identity = (weights[rows] * losses).sum() / len(x0)
        total = denoising + weight * identity
        decoded = decoded.detach()
    kept = (part.detach() for part in (denoising, identity, squared, each, output, x0))
    return RefLDMLoss(total, *kept, decoded)


def _reference_cache(unet: nn.Module, references: Tensor | None, samples: int) -> ReferenceCache | None:
    if references is None or not references.shape[1]:
        return None
    if samples % len(references):
        raise ConfigError(f"{samples} samples cannot share {len(references)} people's references evenly.")
    return ReferenceCache.build(unet, references).repeat_interleave(samples // len(references))
