"""Trainings for the comparison of reference mechanisms (ReF-LDM, Hsiao et al., NeurIPS 2024, Table 2).

First a small latent diffusion model without references (:class:`PlainTask`), then one short fine-tuning of it for each
mechanism (:class:`MechanismTask`): as in the paper, every arm starts from the same network and sees the same batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from refbfr_core.errors import ConfigError
from refbfr_core.models.cachekv import _attend, _attention_block, attention_layers
from refbfr_core.models.mechanisms import ReferenceMechanism, make_mechanism, save_mechanism
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.loop import Batch, Metrics
from refbfr_core.training.recipes import MechanismRecipe, PlainRecipe, Recipe, as_dict
from refbfr_core.training.refldm import RefLDMTask
from refbfr_core.weights import load_network, weights_digest

LIMITS = "Knows procedurally drawn faces only. A restored face is a guess."


class PlainTask(RefLDMTask):
    """Train the denoiser without any reference; its report still shows what untrained references would do to it."""

    def __init__(self, recipe: PlainRecipe, train: LatentCache, val: LatentCache) -> None:
        super().__init__(recipe, train, val)
        if recipe.precision == "bf16":
            plain_attention(self.network)

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Denoiser without references: stock UNet2DModel on patchified first-stage latents, the starting "
            "point of the comparison of reference mechanisms.",
            "limits": LIMITS,
        }


class MechanismTask(RefLDMTask):
    """Fine-tune the plain network with references entering through one mechanism.

    Raises
    ------
    ConfigError : no `start`, or a network of another size there. WeightsError : its files are missing or damaged.
    """

    def __init__(self, recipe: MechanismRecipe, train: LatentCache, val: LatentCache) -> None:
        super().__init__(recipe, train, val)
        if not recipe.start:
            raise ConfigError("start is empty; pass start=FOLDER, the export folder of `refbfr train refldm-plain`.")
        plain = load_network("refldm-unet", device="cpu", root=recipe.start)
        if tuple(plain.config.block_out_channels) != recipe.widths:
            raise ConfigError(
                f"the network in {recipe.start} has widths {tuple(plain.config.block_out_channels)}, the recipe "
                f"{recipe.widths}; pass its widths, so that the record says what was trained."
            )
        self.facts["start"] = weights_digest("refldm-unet", recipe.start)[:12]
        slots = len(recipe.reference_counts) - 1
        self.network: ReferenceMechanism = make_mechanism(recipe.mechanism, plain, slots, recipe.seed)
        self.network.requires_grad_(True)
        if recipe.precision == "bf16":
            plain_attention(self.network.unet)
        self.module = self.network

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """See `RefLDMTask.loss`; every weight takes part, also those that only references use."""
        loss, metrics = super().loss(module, batch, step)
        if not batch["references"].shape[1]:
            # Data-parallel copies wait for a gradient of every weight, and momentum should not skip a step.
            loss = loss + sum(0.0 * weight.sum() for weight in module.parameters())
        return loss, metrics

    def about(self) -> dict[str, Any]:
        """Words for the record."""
        return {"summary": f"Denoiser with references through {self.network.name!r}.", "limits": LIMITS}


def export_mechanism(
    network: ReferenceMechanism,
    recipe: Recipe,
    name: str,
    summary: dict[str, Any],
    facts: dict[str, Any],
    about: dict[str, Any],
    out: Path,
) -> Path:
    """Like `export_network`, for networks that are no stock `UNet2DModel` any more and never ship."""
    made = {
        **about,
        "recipe": {"name": name, **as_dict(recipe), "steps": summary["steps"], "steps_planned": recipe.steps},
        "facts": facts,
        "samples": summary["samples"],
        "seconds": summary["seconds"],
        "hardware": summary["hardware"],
        "results": summary["results"],
        "parameters": sum(weight.numel() for weight in network.parameters()),
    }
    return save_mechanism(network, out / recipe.network, made)


class _SelfAttention:
    """Stock self-attention through the arithmetic of CacheKV, which knows the fast way for bf16 on a CPU."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        return _attention_block(attn, hidden_states, lambda *projected: _attend(attn, *projected))


def plain_attention(network: nn.Module) -> None:
    """Give every attention layer plain matrix products: in bf16 on a CPU they are faster than the fused kernel."""
    for layer in attention_layers(network).values():
        layer.set_processor(_SelfAttention())
