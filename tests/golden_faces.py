"""Three drawn faces, their ruined twins, and what each score of them must be, by routes of their own.

How the committed pictures and values were made, and again can be::

    python tests/golden_faces.py tests/fixtures/golden_faces

The routes share no arithmetic with `refbfr_core.metrics`: NumPy in float64 on the bytes of the PNG files. Where a score
needs a shipped network, the network's own layers are run, and everything around them, crop, range, distance and mean,
is written out here. "niqe-toy" is pyiqa's own function.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FOLDER = Path(__file__).parent / "fixtures" / "golden_faces"
COUNT = 3
SIZE = 128
PRESET = "toy-ldbfr-medium"
SEED = 7
_LUMA = np.array([0.299, 0.587, 0.114])

# Absolute; of distances of sets relative. NIQE's is coarse because lumas halfway between two bytes are rounded as the
# last bit of the arithmetic has it, and its fits look values up in tables.
TOLERANCES = {
    "psnr": 1e-4, "psnr-y": 1e-4, "ssim": 2e-5, "ssim-y": 2e-5, "ids": 1e-4, "deg": 1e-2, "deg-over-1": 1e-2,
    "lmd": 1e-4, "niqe-toy": 1e-2, "detail": 1e-3, "lpips-toy": 1e-5, "flpips-toy": 1e-5, "textures": 1e-4,
    "colour-bias": 1e-3, "bias-red": 1e-3, "bias-green": 1e-3, "bias-blue": 1e-3, "fid-toy": 1e-3, "kid-toy": 1e-3,
}  # fmt: skip


def draw(folder: Path) -> None:
    """Write truth-0.png … ruined-2.png, mask-0.png … and landmarks.json."""
    from refbfr_core.degradation import Degradation
    from refbfr_core.faces import ToyFaces

    faces = ToyFaces(SIZE)
    people = faces.identities(COUNT, SEED, "test")
    drawn = faces.render(people, faces.views(people, 1, SEED))
    truth = drawn.images[:, 0].clone()
    ruined, _ = Degradation.preset(PRESET)(truth, seeds=list(range(COUNT)))
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(COUNT):
        for name, picture in (("truth", truth), ("ruined", ruined)):
            pixels = (picture[index].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{index}.png", optimize=True)
        mask = (drawn.face_mask[index, 0, 0].numpy() * 255).round().astype(np.uint8)
        Image.fromarray(mask).save(folder / f"mask-{index}.png", optimize=True)
    points = [[[round(v, 2) for v in point] for point in face] for face in drawn.landmarks[:, 0].tolist()]
    (folder / "landmarks.json").write_text(json.dumps(points) + "\n", encoding="utf-8")


def read(name: str, folder: Path = FOLDER) -> np.ndarray:
    """(3, H, W, 3) or, of masks, (3, H, W) bytes."""
    return np.stack([np.asarray(Image.open(folder / f"{name}-{index}.png")) for index in range(COUNT)])


def landmarks(folder: Path = FOLDER) -> np.ndarray:
    """(3, K, 2) x, y in pixels of the true pictures."""
    return np.array(json.loads((folder / "landmarks.json").read_text(encoding="utf-8")))


# ---- the routes


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(1 / np.mean((a - b) ** 2))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Window by window from the definition, one channel."""
    offsets = np.arange(11) - 5
    bell = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    views = np.lib.stride_tricks.sliding_window_view
    x, y = views(a, (11, 11)), views(b, (11, 11))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.einsum("ijkl,kl->ij", values, window)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(np.mean((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))))


def detail(a: np.ndarray, b: np.ndarray) -> float:
    """High-pass of the luma by separate 1-D convolutions with mirrored borders, inside the box of the face."""
    sigma = SIZE / 128
    reach = round(3 * sigma + 0.5)
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    bell /= bell.sum()

    def energy(picture: np.ndarray) -> float:
        luma = picture @ _LUMA
        padded = np.pad(luma, reach, mode="reflect")
        rows = np.apply_along_axis(np.convolve, 0, padded, bell, mode="valid")
        low = np.apply_along_axis(np.convolve, 1, rows, bell, mode="valid")
        box = (luma - low)[SIZE // 3 : SIZE * 7 // 8, SIZE // 3 : SIZE * 2 // 3]
        return float(np.mean(box**2)) + 1 / (12 * 255**2)

    return 10 * math.log10(energy(a) / energy(b))


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) * 2 - 1).permute(2, 0, 1)[None]


@torch.no_grad()
def lpips_toy(network: torch.nn.Module, a: np.ndarray, b: np.ndarray) -> float:
    """Zhang et al.'s equation 1 with the network's layers and its weights of channels."""
    total, soft = 0.0, network.config.eps
    for mine, truth, weight in zip(network(_tensor(a)), network(_tensor(b)), network.channel_weights, strict=True):
        x, y = (each[0].double().numpy() for each in (mine, truth))
        x, y = (each / (np.sqrt((each**2).sum(0, keepdims=True)) + soft) for each in (x, y))
        squared = weight.double().numpy().reshape(-1, 1, 1) ** 2
        total += float((squared * (x - y) ** 2).sum(0).mean())
    return total


@torch.no_grad()
def embedding(judge: torch.nn.Module, picture: np.ndarray) -> np.ndarray:
    """1/16 off every side of 128 pixels leaves the 112 the judge takes; no resizing is left to do."""
    edge = SIZE // 16
    vector = judge(_tensor(picture[edge:-edge, edge:-edge]))[0].double().numpy()
    return vector / np.linalg.norm(vector)


@torch.no_grad()
def textures(judge: torch.nn.Module, whitening: dict[str, torch.Tensor], picture: np.ndarray) -> np.ndarray:
    edge = SIZE // 16
    stem = judge.stem(_tensor(picture[edge:-edge, edge:-edge]))
    parts = []
    for layer in (stem, judge.stages[0](stem)):
        rows = layer[0].flatten(1).double().numpy()
        parts += [rows.mean(1), np.log(rows.std(1, ddof=1) + 1e-4)]
    return (np.concatenate(parts) - whitening["mean"].numpy()) @ whitening["projection"].numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½) by symmetric eigenvalues, unlike torchmetrics, which takes those of S1 S2."""
    first, second = np.cov(a.T), np.cov(b.T)
    values, axes = np.linalg.eigh(first)
    root = axes * np.sqrt(values.clip(0)) @ axes.T
    middle = np.linalg.eigvalsh(root @ second @ root).clip(0)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.sqrt(middle).sum())


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD with the kernel (x.y / D + 1)^3, of all pictures at once."""
    n, m, width = len(a), len(b), a.shape[1]
    xx, yy, xy = (((p @ q.T) / width + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def niqe_toy(picture: np.ndarray) -> float:
    from pyiqa.archs.niqe_arch import niqe
    from safetensors.torch import load_file

    import refbfr_core.metrics

    shipped = load_file(Path(refbfr_core.metrics.__file__).parent / "statistics" / "drawn-faces-128.safetensors")
    luma = torch.from_numpy(np.round(picture @ (_LUMA * 255)))[None, None]
    return float(niqe(luma, shipped["mean"][None], shipped["covariance"][None], 32, 32))


def values(folder: Path = FOLDER) -> dict[str, list[float]]:
    """Every score of the three ruined pictures by its own route; of the two distances of sets one value."""
    from safetensors.torch import load_file

    import refbfr_core.metrics
    from refbfr_core.weights import load_network

    judge, perceptual = load_network("judge", device="cpu"), load_network("perceptual", device="cpu")
    statistics = Path(refbfr_core.metrics.__file__).parent / "statistics"
    whitening = load_file(statistics / "judge-textures-128.safetensors")
    truth, ruined, masks = read("truth", folder) / 255, read("ruined", folder) / 255, read("mask", folder)
    points = landmarks(folder)
    found: dict[str, list[float]] = {name: [] for name in TOLERANCES}
    spaces = [np.stack([textures(judge, whitening, each) for each in pictures]) for pictures in (ruined, truth)]
    for index, (a, b) in enumerate(zip(ruined, truth, strict=True)):
        grey_a, grey_b = a @ _LUMA, b @ _LUMA
        face = (masks[index] >= 127.5)[..., None]
        u, v = embedding(judge, a), embedding(judge, b)
        angle = math.degrees(math.acos(float(np.clip(u @ v, -1, 1))))
        bias = 255 * (a - b).mean(axis=(0, 1))
        own = {
            "psnr": psnr(a, b),
            "psnr-y": psnr(grey_a, grey_b),
            "ssim": float(np.mean([ssim(a[..., c], b[..., c]) for c in range(3)])),
            "ssim-y": ssim(np.round(grey_a * 255) / 255, np.round(grey_b * 255) / 255),
            "ids": float(u @ v),
            "deg": angle,
            "deg-over-1": angle,
            # The points of the next face stand in for points found in the ruined one.
            "lmd": float(np.linalg.norm(points[(index + 1) % COUNT] - points[index], axis=1).mean()),
            "niqe-toy": niqe_toy(a),
            "detail": detail(a, b),
            "lpips-toy": lpips_toy(perceptual, a, b),
            "flpips-toy": lpips_toy(perceptual, a * face, b * face),
            "textures": float(np.sqrt(np.mean((spaces[0][index] - spaces[1][index]) ** 2))),
            "colour-bias": float(np.linalg.norm(bias)),
            **{f"bias-{name}": float(bias[c]) for c, name in enumerate(("red", "green", "blue"))},
        }
        for name, value in own.items():
            found[name].append(value)
    found["fid-toy"], found["kid-toy"] = [frechet(*spaces)], [kernel(*spaces)]
    return found


def main(folder: Path) -> None:
    draw(folder)
    text = json.dumps({name: [round(v, 7) for v in numbers] for name, numbers in values(folder).items()}, indent=1)
    (folder / "values.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
