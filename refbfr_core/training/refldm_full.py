"""Training ReF-LDM's denoiser at full size on photographs (Hsiao et al., NeurIPS 2024, sections 3.2 to 4.1).

Pictures are read, ruined and augmented on the fly, and encoded by the frozen first stage on the device that trains:
target and degraded picture one by one, the references of a target side by side as one strip, as the release does.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor, nn

from refbfr_core.diffusion import make_schedule
from refbfr_core.errors import ConfigError
from refbfr_core.faces.reference_check import identity_groups
from refbfr_core.faces.reference_dataset import ReferenceDataset
from refbfr_core.faces.reference_rows import picture_key
from refbfr_core.metrics.identity import EmbedderLike
from refbfr_core.models import encode_latents, pixels_per_latent
from refbfr_core.training.augment import ReferenceAugmentation
from refbfr_core.training.identity import drop_conditions, refldm_loss
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.paper_recipes import RefLDMFullRecipe
from refbfr_core.training.randomness import generator, numbers
from refbfr_core.training.reference_batches import PieceLoader, SampleMaker, Share
from refbfr_core.weights.published_files import tensors_digest

BANDS = 5
_PICTURES = ("truth", "lq", "references")


class RefLDMFullTask:
    """Train a `UNet2DModel` with `refldm_loss` on a `ReferenceDataset`.

    Parameters
    ----------
    recipe : what and how.
    train, val : the splits; both at the recipe's resolution.
    vq : the first stage; frozen, never trained here.
    embedder : network behind the identity loss, from (B, 3, 112, 112) in [-1, 1] to (B, D), or one with `embed`; None
        where the recipe has no identity loss.
    initial : weights to begin with, as a state dictionary of the denoiser; None draws them from the recipe's seed.
    micro_batch : samples that go through the networks at once; changes memory and speed only.
    workers : processes of this process that make samples. pin : page-locked memory, for a GPU.

    Raises
    ------
    ConfigError : networks, pictures and recipe that do not fit together.
    """

    def __init__(
        self,
        recipe: RefLDMFullRecipe,
        train: ReferenceDataset,
        val: ReferenceDataset,
        vq: VQModel,
        embedder: EmbedderLike | None,
        initial: dict[str, Tensor] | None = None,
        *,
        micro_batch: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        if recipe.needs_identity and embedder is None:
            raise ConfigError("the recipe has an identity loss but no embedder came; pass one, or identity_weight=0.")
        if {train.resolution, val.resolution} != {recipe.resolution} or recipe.resolution % pixels_per_latent(vq):
            raise ConfigError(
                f"pictures of {train.resolution} and {val.resolution} px, a recipe for {recipe.resolution} px and a "
                f"first stage with {pixels_per_latent(vq)} px a latent do not fit; use one resolution, a multiple."
            )
        self.recipe, self.micro_batch = recipe, micro_batch
        self.vq, self.embedder = _frozen(vq), _frozen(embedder)
        self.schedule = make_schedule(recipe.schedule)
        self.latent_shape = (vq.config.latent_channels, *(2 * (recipe.resolution // pixels_per_latent(vq),)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = make_full_denoiser(recipe, self.latent_shape[0], self.latent_shape[1])
        if initial is not None:
            _load_initial(self.network, initial)
        self.module: nn.Module = self.network
        augmentation = ReferenceAugmentation(perspective=recipe.perspective)
        options = (recipe.references, recipe.degradation, augmentation, recipe.flip, recipe.seed)
        self.loader = PieceLoader(SampleMaker(train, *options), recipe.weighted, workers, pin)
        self.val_maker = SampleMaker(val, *options)
        self.val_rows = one_row_a_person(val)[: recipe.val_people]
        self._val_latents: list[dict[str, Tensor]] = []
        self.facts: dict[str, Any] = {
            "dataset": train.layout.name,
            "rows": len(train),
            "list": train.digest,
            "first_stage": tensors_digest(vq.state_dict())[:12],
            "identity": _digest(embedder) if recipe.needs_identity else "none",
        }
        self.memory: dict[str, Tensor] = {}

    def batch(self, step: int, rank: int, world: int) -> list[Batch]:
        """The pieces of this process, each with n <= micro_batch samples.

        ``truth``, ``lq`` (n, 3, H, W) and ``references`` (n, R, 3, H, W) uint8; ``noise`` (n, C, h, w); ``timesteps``
        (n,), uniform; ``keep`` (n, 2) 0 or 1 for degraded picture and references; ``weight``, see `Share.weight`.
        """
        recipe = self.recipe
        share = Share(recipe.batch, rank, world, self.micro_batch)
        pieces = []
        for slots, pictures in zip(share.pieces(), self.loader.step_pieces(step, share), strict=True):
            drawn = [self._draw(step, slot) for slot in slots or [0]]
            noise, timesteps, keep = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            weight = torch.tensor(share.weight(slots))
            pieces.append({**pictures, "noise": noise, "timesteps": timesteps, "keep": keep, "weight": weight})
        return pieces

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """The piece's share of the batch's loss, and ``denoising``, ``identity`` and the squared error by timestep
        band."""
        recipe, timesteps, weight = self.recipe, batch["timesteps"], batch["weight"]
        clean, lq, references = self.encode({key: batch[key] for key in _PICTURES})
        keep = batch["keep"].to(clean.dtype)
        parts = refldm_loss(
            module,
            clean,
            lq * keep[:, :1, None, None],
            references * keep[:, 1:, None, None, None],
            batch["noise"],
            timesteps,
            self.schedule,
            scale=recipe.identity_scale if recipe.needs_identity else None,
            weight=recipe.identity_weight,
            vq=self.vq,
            embedder=self.embedder,
        )
        counts = len(timesteps) * (weight > 0).float()
        metrics = {key: torch.stack([getattr(parts, key) * counts, counts]) for key in ("denoising", "identity")}
        band = timesteps * BANDS // len(self.schedule)
        for index in range(BANDS):
            inside = (band == index).float() * (weight > 0).float()
            metrics[f"band{index}"] = torch.stack([(parts.denoising_each * inside).sum(), inside.sum()])
        return parts.total * weight, metrics

    @torch.no_grad()
    def encode(self, pictures: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Un-quantised float32 latents of uint8 pictures: truth and degraded (n, C, h, w), references (n, R, C, h, w).

        Always in float32: a latent is a target, and the rounding of half precision would be noise on it.
        """
        device = pictures["truth"].device
        vq = self.vq.to(device)
        truth, lq, references = (pictures[key].float() / 255 for key in _PICTURES)
        with torch.autocast(device.type, enabled=False):
            clean, ruined = encode_latents(vq, truth), encode_latents(vq, lq)
            if not references.shape[1]:
                return clean, ruined, clean.new_zeros(len(clean), 0, *clean.shape[1:])
            strips = torch.cat(list(references.unbind(1)), dim=-1)
            latents = encode_latents(vq, strips).chunk(references.shape[1], dim=-1)
        return clean, ruined, torch.stack(latents, 1)

    def before_step(self, step: int, state: TrainingState) -> None:
        """Moves the frozen networks to the device; nothing else changes between steps."""
        if isinstance(self.embedder, nn.Module):
            self.embedder.to(state.accelerator.device)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Squared noise error on one picture each of unseen people: without references (``val_none``), with their own
        (``val_right``), with the next person's (``val_wrong``); ``gain`` = none - right, ``harm`` = wrong - right."""
        device = next(network.parameters()).device
        if not self._val_latents:
            self._val_latents = [self._val_sample(row, device) for row in self.val_rows]
        samples, count = self._val_latents, len(self._val_latents)
        arms = ("none", "right", "wrong") if self.recipe.references else ("none",)
        totals = dict.fromkeys(arms, 0.0)
        for index, sample in enumerate(samples):
            others = {"right": sample, "wrong": samples[(index + 1) % count]}
            noise = torch.randn(1, *self.latent_shape, generator=generator(0, 29, index)).to(device)
            timesteps = torch.tensor([(2 * index + 1) * len(self.schedule) // (2 * count)], device=device)
            for arm in arms:
                references = others[arm]["references"].to(device) if arm in others else None
                clean, lq = sample["clean"].to(device), sample["lq"].to(device)
                parts = refldm_loss(network, clean, lq, references, noise, timesteps, self.schedule, scale=None)
                totals[arm] += float(parts.denoising) / count
        report = {f"val_{arm}": total for arm, total in totals.items()}
        if self.recipe.references:
            report["gain"] = totals["none"] - totals["right"]
            report["harm"] = totals["wrong"] - totals["right"]
        return report

    def finish(self, network: nn.Module) -> None:
        """The averaged network is saved as it is."""

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        layout = self.val_maker.dataset.layout
        licences = "; ".join(f"{source.what}: {source.licence}" for source in layout.sources)
        return {
            "summary": "Denoiser of ReF-LDM at full size: a stock UNet2DModel on first-stage latents, references "
            "through CacheKV." if self.recipe.references else "Denoiser of a latent diffusion model without references "
            "(stage 1 of ReF-LDM): a stock UNet2DModel on first-stage latents.",
            "limits": "Trained on photographs of people, with their biases. A restored face is a guess: never use it "
            "as evidence or to identify anybody.",
            "licence": f"The data it was trained on decides what may be done with it. {licences}.",
        }  # fmt: skip

    def _draw(self, step: int, slot: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (C, h, w), timestep and kept conditions (2,) of a slot."""
        recipe = self.recipe
        noise = torch.randn(self.latent_shape, generator=generator(recipe.seed, 23, step, slot))
        timestep = torch.tensor(int(numbers(recipe.seed, 29, step, slot).integers(len(self.schedule))))
        chances = (recipe.drop_lq, recipe.drop_references)
        ones = torch.ones(1, 1, 1, 1)
        kept = drop_conditions(ones, ones[None], chances, generator=generator(recipe.seed, 31, step, slot))
        return noise, timestep, torch.stack([part.flatten()[0] for part in kept])

    def _val_sample(self, row: int, device: torch.device) -> dict[str, Tensor]:
        pictures = {key: value[None].to(device) for key, value in self.val_maker.fixed(row).items()}
        latents = self.encode(pictures)
        return {key: part.cpu() for key, part in zip(("clean", "lq", "references"), latents, strict=True)}


def make_full_denoiser(recipe: RefLDMFullRecipe, channels: int, size: int) -> UNet2DModel:
    """The denoiser of a recipe, from 2 ``channels`` to ``channels``, for latents of ``size`` x ``size``.

    As in the authors' construction, the second convolution of every residual block, the output projection of every
    attention layer and the last convolution start at zero: the untrained network predicts zero noise.
    """
    attends = [2**level in recipe.attention for level in range(len(recipe.multipliers))]
    network = UNet2DModel(
        sample_size=size,
        in_channels=2 * channels,
        out_channels=channels,
        block_out_channels=tuple(recipe.width * factor for factor in recipe.multipliers),
        layers_per_block=recipe.layers,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        attention_head_dim=recipe.head_width,
        norm_num_groups=recipe.groups,
        norm_eps=1e-5,
        downsample_padding=1,
        freq_shift=0,
        flip_sin_to_cos=True,
    )
    for name, module in network.named_modules():
        if name.endswith((".conv2", ".to_out.0")) or name == "conv_out":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def one_row_a_person(dataset: ReferenceDataset) -> list[int]:
    """The first row of every identity group of a split, so that neighbours in the result are different people."""
    groups = identity_groups({dataset.split: dataset.rows})
    first: dict[str, int] = {}
    for index, row in enumerate(dataset.rows):
        first.setdefault(groups[picture_key(row.target)], index)
    return list(first.values())


def _frozen(network: Any) -> Any:
    return network.eval().requires_grad_(False) if isinstance(network, nn.Module) else network


def _digest(embedder: EmbedderLike | None) -> str:
    if isinstance(embedder, nn.Module):
        return tensors_digest(embedder.state_dict())[:12]
    return f"a {type(embedder).__name__}"


def _load_initial(network: nn.Module, initial: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(initial, strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights to start from do not fit the recipe's network: {error} Use a stage trained by the same "
            "recipe (width, multipliers, attention, layers)."
        ) from error
