"""A feature space for comparing sets of drawn faces: what the first layers of the judge see, whitened.

Inception features, which FID and KID are usually measured on, have to be downloaded. The judge is here, and it takes
part in no training and no guidance. Its embedding is trained to forget what a picture looks like and keep who is in it,
and so are its later layers; the stem and the first stage still see texture. Raw, their statistics mostly say how bright
a face is and how large; whitened by clean drawn faces, a small change of texture counts as much as a large one of
light. How the whitening was made, and again can be::

    python -m refbfr_core.metrics.textures --people 256 --views 2 --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.metrics.pristine import SEED
from refbfr_core.metrics.shipped import drawn_training_faces, read_statistics, shipped_folder, write_statistics

COMPONENTS = 32
"""Principal components that are kept. The rest has below 3 % of the first one's deviation on clean faces; whitened, it
would blow single pictures up until they drown all others."""

NAME = "judge-textures-128"
_COMMAND = "python -m refbfr_core.metrics.textures"
_CURE = f"Reinstall the package, or fit it again with {_COMMAND}."
_CHUNK = 16
# Channels that never fire have a deviation of zero; its logarithm must be finite.
_LEAST = 1e-4


class TextureFeatures(nn.Module):
    """Pictures in [0, 1] to whitened texture statistics.

    Of every channel behind the embedder's stem and first stage the mean and the logarithm of the standard deviation are
    taken, D numbers; `mean` (D,) is subtracted and `projection` (D, K) leads to K components, uncorrelated and of unit
    variance on the pictures the whitening was fitted to.
    """

    def __init__(self, embedder: nn.Module, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.embedder = embedder
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, K) float64."""
        return (texture_statistics(self.embedder, images) - self.mean) @ self.projection


@torch.no_grad()
def texture_statistics(embedder: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, D) float64: mean and log deviation of the channels of the first two stages."""
    parts = []
    for chunk in images.split(_CHUNK):
        stem = embedder.stem(embedder.preprocess(chunk * 2 - 1))
        maps = [layer.double().flatten(2) for layer in (stem, embedder.stages[0](stem))]
        parts.append(torch.cat([part for each in maps for part in (each.mean(2), (each.std(2) + _LEAST).log())], dim=1))
    return torch.cat(parts)


def fit_textures(images: Tensor, embedder: nn.Module, components: int = COMPONENTS) -> TextureFeatures:
    """The whitening of the texture statistics of clean pictures (principal components of the standardised numbers).

    Args:
        images: (B, 3, H, W) in [0, 1], at least three times as many as there are statistics.
        embedder: a `FaceEmbedder` in evaluation mode.
        components: K, at most D.

    Raises:
        ConfigError: too few pictures, or more components than statistics.
    """
    rows = texture_statistics(embedder, images)
    if len(rows) < 3 * rows.shape[1] or not 1 <= components <= rows.shape[1]:
        raise ConfigError(
            f"{components} components of {rows.shape[1]} statistics of {len(rows)} pictures; expected 1 to "
            f"{rows.shape[1]} components and at least {3 * rows.shape[1]} pictures."
        )
    mean, deviation = rows.mean(0), rows.std(0).clamp_min(_LEAST)
    _, singular, axes = torch.linalg.svd((rows - mean) / deviation, full_matrices=False)
    scale = singular[:components] / (len(rows) - 1) ** 0.5
    return TextureFeatures(embedder, mean, axes[:components].T / deviation[:, None] / scale).eval()


def load_textures(device: torch.device | str | None = None, folder: str | Path | None = None) -> TextureFeatures:
    """The shipped judge with the shipped whitening, in evaluation mode.

    Raises:
        WeightsError: the judge or the whitening is missing or altered, or they do not belong together.
    """
    from refbfr_core.weights import load_network, weights_digest

    tensors, about = read_statistics(folder, NAME, ("mean", "projection"), _CURE)
    if about["judge"] != weights_digest("judge"):
        raise WeightsError(f"{NAME} was fitted to another judge ({about['judge'][:12]}…). {_CURE}")
    judge = load_network("judge", device=device)
    return TextureFeatures(judge, **tensors).to(next(judge.parameters()).device).eval()


def main(arguments: list[str] | None = None) -> Path:
    """The command: draw, fit, write; returns the path that was written."""
    from refbfr_core.weights import load_network, weights_digest

    parser = argparse.ArgumentParser(prog=_COMMAND, description="Fit the whitening of the judge's textures.")
    parser.add_argument("--people", type=int, default=256, help="people of the split 'train'")
    parser.add_argument("--views", type=int, default=2, help="pictures of each")
    parser.add_argument("--seed", type=int, default=SEED, help="of people and views")
    parser.add_argument("--out", type=Path, default=shipped_folder(), help="folder to write to; default: the package's")
    options = parser.parse_args(arguments)
    images, made_from = drawn_training_faces(options.people, options.views, options.seed)
    fitted = fit_textures(images, load_network("judge", device="cpu"))
    about = {
        "summary": "Whitening of texture statistics behind the judge's stem and first stage, on clean drawn faces.",
        "limits": "Knows drawn faces of 128 pixels, through the shipped judge only; hardly sees weak noise and JPEG.",
        "command": f"{_COMMAND} --people {options.people} --views {options.views} --seed {options.seed}",
        "judge": weights_digest("judge"),
        "components": COMPONENTS,
        "pictures": len(images),
    }
    return write_statistics(
        options.out, NAME, {"mean": fitted.mean, "projection": fitted.projection}, about | made_from
    )
