"""The full-size training in miniature: the same code with tiny networks, and drawn faces instead of photographs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel

from refbfr_core.models import FaceEmbedder
from refbfr_core.weights import save_network

CARD = {"summary": "a test", "training_data": "none", "recipe": {"steps": 0}}

TINY = {
    "resolution": 32, "steps": 4, "batch": 3, "warmup": 2, "lr": 1e-3, "references": 2, "precision": "no",
    "degradation": "toy-refldm-train", "width": 16, "multipliers": (1, 2), "attention": (2,), "layers": 1,
    "head_width": 8, "groups": 8, "log_every": 1, "eval_every": 100, "checkpoint_every": 2, "val_people": 2,
    "identity_weight": 0.5,
}  # fmt: skip


def tiny_first_stage() -> VQModel:
    """A random first stage: 32 px to 16 x 16 latents of 4 channels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vq = VQModel(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4, sample_size=32,
            num_vq_embeddings=64, vq_embed_dim=4, norm_num_groups=4, scaling_factor=1.0,
        )  # fmt: skip
        torch.nn.init.normal_(vq.quantize.embedding.weight)
    return vq.eval()


class TinyEmbedder(torch.nn.Module):
    """Any module from (B, 3, 112, 112) crops in [-1, 1] to embeddings will do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Flatten(), torch.nn.Linear(392, 16)
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        assert crops.shape[1:] == (3, 112, 112)
        return self.layers(crops)


def save_networks(root: Path) -> Path:
    """A first stage and a face embedder in folders, as the command line takes them."""
    save_network(tiny_first_stage(), "refldm-vq", root, CARD, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        embedder = FaceEmbedder(widths=(8, 8, 8), blocks=(1, 1, 1), embedding_dim=16, input_size=112)
    save_network(embedder, "guide", root, CARD, torch.float32)
    return root


def as_arguments(changes: dict) -> list[str]:
    """Recipe changes for a command line."""
    texts = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in changes.items()}
    return [part for key, text in texts.items() for part in ("--set", f"{key}={text}")]
