"""Do the quality scores see what they should? Unseen drawn faces, distorted in known amounts.

For every distortion and strength: the mean of "niqe-toy" and "detail", how many pictures score worse than they did
clean, and the kernel distance of the whole set to clean pictures of other people. First-stage reconstructions and, if
asked for, restorations of ruined pictures stand in the same table::

    python -m refbfr_core.benchmark.quality --people 64 --restore
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from refbfr_core.benchmark.first_stage import reconstruct
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.rows import fingerprint
from refbfr_core.degradation import stages
from refbfr_core.errors import ConfigError
from refbfr_core.images import check_images
from refbfr_core.metrics import compute, paired_interval
from refbfr_core.metrics.distances import kernel_distance
from refbfr_core.metrics.textures import TextureFeatures, load_textures

PRESETS = ("toy-refldm-moderate", "toy-refldm-severe")
_NAME = "quality-scores"
_BATCH = 8


def _one_by_one(change: Callable[[np.ndarray, int], np.ndarray], images: Tensor) -> Tensor:
    """Apply a change of one (H, W, 3) picture and its number to (B, 3, H, W); the result is clipped to [0, 1]."""
    pictures = images.permute(0, 2, 3, 1).numpy()
    changed = [np.clip(change(picture, number), 0, 1) for number, picture in enumerate(pictures)]
    return torch.from_numpy(np.stack(changed).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    kernel = stages.gaussian_kernel(sigma, sigma)
    return _one_by_one(lambda picture, _: stages.blur(picture, kernel), images)


def noisy(images: Tensor, sigma: float) -> Tensor:
    """White Gaussian noise, sigma in grey levels; picture i has the noise of seed i."""
    height, width = images.shape[-2:]
    return _one_by_one(lambda picture, i: picture + stages.gaussian_noise(height, width, sigma, seed=i), images)


def compressed(images: Tensor, quality: float) -> Tensor:
    """JPEG."""
    return _one_by_one(lambda picture, _: stages.jpeg(picture, int(quality)), images)


def checkered(images: Tensor, amplitude: float) -> Tensor:
    """A checkerboard of single pixels, amplitude in grey levels: the artefact of careless upsampling."""
    rows, columns = (torch.arange(side) for side in images.shape[-2:])
    board = (rows[:, None] + columns) % 2 * 2.0 - 1.0
    return (images + amplitude / 255 * board).clamp(0, 1)


def oversharpened(images: Tensor, amount: float) -> Tensor:
    """Unsharp masking: x + amount (x - blur of one pixel)."""
    return (images + amount * (images - blurred(images, 1.0))).clamp(0, 1)


DISTORTIONS: Mapping[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = MappingProxyType(
    {
        "blur": (blurred, (0.5, 0.8, 1.2, 2.0, 3.0, 5.0)),
        "noise": (noisy, (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)),
        "jpeg": (compressed, (95, 75, 50, 30, 15, 5)),
        "checkerboard": (checkered, (1.0, 2.0, 4.0, 8.0, 16.0)),
        "oversharpening": (oversharpened, (0.5, 1.0, 2.0, 4.0)),
    }
)
"""Every distortion with its strengths, the weakest first."""


def quality_rows(
    clean: Tensor, sets: Mapping[tuple[str, float], Tensor], reference: Tensor, **keywords
) -> pd.DataFrame:
    """One row a set of pictures.

    Args:
        clean: (B, 3, 128, 128), the undistorted pictures.
        sets: (what, strength) to the same B pictures, distorted.
        reference: (M, 3, 128, 128) clean pictures of other people.
        **keywords: for `refbfr_core.metrics.distances.kernel_distance`.

    Returns:
        Columns distortion, strength, n; niqe_toy (mean) with niqe_toy_sd; rise with rise_low and rise_high (mean
        difference to the clean pictures, 95 % interval); worse (share of pictures that score worse than clean);
        detail_db (mean) with detail_db_sd; kid with kid_spread. The first row is the clean pictures.

    Raises:
        ConfigError: a set of another size. ImageContractError: pictures that break the contract.
    """
    extractor = keywords.pop("extractor", None) or load_textures("cpu")
    check_images(clean, "clean")
    before = compute("niqe-toy", clean)
    rows = [_row(("clean", 0.0), clean, clean, before, before, reference, extractor, keywords)]
    for key, pictures in sets.items():
        if pictures.shape != clean.shape:
            raise ConfigError(f"the set {key} is {tuple(pictures.shape)}, the clean pictures {tuple(clean.shape)}.")
        after = compute("niqe-toy", pictures)
        rows.append(_row(key, pictures, clean, after, before, reference, extractor, keywords))
    return pd.DataFrame(rows)


def run_quality_study(people: int = 64, seed: int = 5, restore: bool = False, split: str = "val") -> pd.DataFrame:
    """:func:`quality_rows` of `people` unseen drawn faces under :data:`DISTORTIONS`; as many others are the reference.

    Args:
        people: at least 64 (fewer are refused by the kernel distance).
        seed: of people, views, degradations and noise.
        restore: also restore pictures ruined with :data:`PRESETS` with the shipped ReF-LDM, which takes minutes.
        split: of the people; "train" would score the faces the statistics were fitted to.
    """
    from refbfr_core.faces import ToyFaces
    from refbfr_core.weights import load_network

    faces = ToyFaces(128)
    drawn = faces.identities(2 * people, seed, split)
    images = faces.render(drawn, faces.views(drawn, 1, seed)).images[:, 0].clone()
    clean, reference = images[:people], images[people:]
    sets = {(name, level): change(clean, level) for name, (change, levels) in DISTORTIONS.items() for level in levels}
    sets["first stage", 0.0] = reconstruct(load_network("refldm-vq", device="cpu"), clean)
    if restore:
        sets |= _restorations(
            clean, faces.render(drawn[:people], faces.views(drawn[:people], 3, seed)).images[:, 1:], seed
        )
    return quality_rows(clean, sets, reference)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study, records it and prints its table."""
    from refbfr_core.weights import load_network

    parser = argparse.ArgumentParser(prog="python -m refbfr_core.benchmark.quality", description=__doc__)
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--restore", action="store_true", help="also restore ruined pictures with the shipped ReF-LDM")
    parser.add_argument("--out", type=Path, help="folder to record into; default: the package's")
    chosen = parser.parse_args(arguments)
    rows = run_quality_study(chosen.people, chosen.seed, chosen.restore)
    command = f"{parser.prog} --people {chosen.people} --seed {chosen.seed}" + " --restore" * chosen.restore
    settings = {"people": chosen.people, "seed": chosen.seed, "split": "val", "restore": chosen.restore}
    weights = {name: fingerprint(load_network(name, device="cpu")) for name in ("judge", "refldm-vq", "refldm-unet")}
    record(_NAME, rows, {"command": command, "settings": settings, "weights": weights}, chosen.out)
    sys.stdout.write(rows.to_string(index=False, float_format=lambda value: f"{value:.3f}") + "\n")


def _restorations(clean: Tensor, references: Tensor, seed: int) -> dict[tuple[str, float], Tensor]:
    from refbfr_core.degradation import Degradation
    from refbfr_core.pipelines import load_pipeline

    pipeline = load_pipeline("refldm", device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    sets: dict[tuple[str, float], Tensor] = {}
    for preset in PRESETS:
        lq, _ = Degradation.preset(preset)(clean, seed=seed)
        restore = partial(pipeline, seed=seed)
        pairs = zip(lq.split(_BATCH), references.split(_BATCH), strict=True)
        sets[f"ruined: {preset}", 0.0] = lq
        sets[f"restored: {preset}", 0.0] = torch.cat([restore(some, photos).images for some, photos in pairs])
    return sets


def _row(
    key: tuple[str, float], pictures: Tensor, clean: Tensor, after: Tensor, before: Tensor, reference: Tensor,
    extractor: TextureFeatures, keywords: Mapping[str, object],
) -> dict[str, object]:  # fmt: skip
    rise = paired_interval(after, before)
    detail = compute("detail", pictures, clean)
    kid = kernel_distance(pictures, reference, "clean pictures of other people", extractor=extractor, **keywords)
    return {
        "distortion": key[0],
        "strength": key[1],
        "n": len(pictures),
        "niqe_toy": after.mean().item(),
        "niqe_toy_sd": after.std().item(),
        "rise": rise.mean,
        "rise_low": rise.low,
        "rise_high": rise.high,
        "worse": (after > before).float().mean().item(),
        "detail_db": detail.mean().item(),
        "detail_db_sd": detail.std().item(),
        "kid": kid.value,
        "kid_spread": kid.spread,
    }


if __name__ == "__main__":
    main()
