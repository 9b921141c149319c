"""Ways to raise a score without restoring anything, for notebook 10: blurring, averaging, sharpening, pasting, tuning.

Each takes pictures (B, 3, H, W) in [0, 1] and a strength, and gives as many back; strength 0 is the picture itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.errors import ConfigError, missing_extra
from refbfr_core.images import check_images, to_network
from refbfr_core.metrics import Interval, paired_interval
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refbfr_core.models import Embedder

    Score = Callable[[Tensor], Tensor]


def blurred(pictures: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels; raises MissingExtraError without torchvision, ConfigError below 0."""
    check_images(pictures, "pictures")
    if sigma < 0:
        raise ConfigError(f"sigma={sigma}; a blur has a width of 0 pixels or more.")
    if sigma == 0:
        return pictures.clone()
    try:
        from torchvision.transforms.functional import gaussian_blur
    except ImportError as error:
        raise missing_extra("torchvision", "metrics", "a Gaussian blur") from error
    return gaussian_blur(pictures, kernel_size=2 * round(3 * sigma + 0.5) + 1, sigma=sigma)


def sharpened(pictures: Tensor, amount: float, sigma: float = 1.0) -> Tensor:
    """An unsharp mask: `amount` times what a blur of `sigma` pixels takes away is added, and clamped to [0, 1]."""
    if amount < 0:
        raise ConfigError(f"amount={amount}; sharpening adds 0 or more, see blurred() for the other direction.")
    return (pictures + amount * (pictures - blurred(pictures, sigma))).clamp(0.0, 1.0)


def running_means(samples: Tensor) -> Tensor:
    """Means of the first 1, 2, ... K of several restorations (K, B, 3, H, W) of the same pictures: the same shape."""
    if samples.ndim != 5:
        raise ConfigError(f"samples have shape {tuple(samples.shape)}; expected (K, B, 3, H, W).")
    counts = torch.arange(1, len(samples) + 1, device=samples.device).view(-1, 1, 1, 1, 1)
    return (samples.cumsum(dim=0) / counts).clamp(0.0, 1.0)


def face_window(height: int, width: int) -> Tensor:
    """Where an aligned face is, (1, 1, height, width) in [0, 1]: an ellipse around its middle with a soft edge."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    distance = (((rows - 0.55) / 0.34).square()[:, None] + ((columns - 0.5) / 0.27).square()[None]).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0.0, 1.0)[None, None]


def pasted(pictures: Tensor, photos: Tensor, share: float) -> Tensor:
    """The face of another photo laid over each picture.

    Args:
        pictures, photos: (B, 3, H, W); photo i is laid over picture i.
        share: opacity, 0 (the picture) to 1 (the photo's face wherever `face_window` is 1).

    Raises:
        ConfigError: a share outside [0, 1], or shapes that differ.
    """
    if not 0 <= share <= 1 or pictures.shape != photos.shape:
        raise ConfigError(
            f"share={share} of photos {tuple(photos.shape)} over {tuple(pictures.shape)}; expected a share in [0, 1] "
            "and one photo of the same size for each picture."
        )
    window = share * face_window(*pictures.shape[-2:]).to(pictures)
    return pictures + window * (photos - pictures)


def tuned(
    pictures: Tensor, photos: Tensor, embedder: Embedder, levels: float, steps: int = 10
) -> Tensor:
    """Pictures changed by at most `levels` grey levels so that `embedder` sees the person of `photos` in them.

    Signed gradient steps on the cosine between the embedding of the picture and the mean embedding of the photos, as in
    attacks on recognition networks. No picture of the truth is needed.

    Args:
        pictures: (B, 3, H, W). photos: (B, R, 3, H, W) of each person.
        embedder: a network with ``embed(images in [-1, 1])``.
        levels: most any value may change, of 255. steps: number of gradient steps.

    Raises:
        ConfigError: a negative bound, or no step.
    """
    if levels < 0 or steps < 1:
        raise ConfigError(f"levels={levels} in {steps} steps; expected a bound of 0 or more and at least one step.")
    if levels == 0:
        return pictures.clone()
    reach = levels / 255
    with torch.no_grad():
        known = embedder.embed(to_network(photos.flatten(0, 1)))
        goal = F.normalize(known.unflatten(0, photos.shape[:2]).mean(dim=1), dim=1)
    change = torch.zeros_like(pictures)
    for _ in range(steps):
        change.requires_grad_(True)
        likeness = (F.normalize(embedder.embed(to_network(pictures + change)), dim=1) * goal).sum()
        (gradient,) = torch.autograd.grad(likeness, change)
        change = (change.detach() + 2.5 * reach / steps * gradient.sign()).clamp(-reach, reach)
        change = (pictures + change).clamp(0.0, 1.0) - pictures
    return pictures + change.detach()


def turned(
    change: Callable[[float], Tensor], strengths: Sequence[float], scores: Mapping[str, Score]
) -> dict[str, dict[float, Tensor]]:
    """Scores of pictures at every strength of a change: score -> strength -> (B,).

    Args:
        change: strength -> pictures (B, 3, H, W).
        scores: name -> function of pictures.

    Raises:
        ConfigError: no strength 0 to compare with, or one twice.
    """
    if 0 not in strengths or len(set(strengths)) < len(strengths):
        raise ConfigError(f"strengths {list(strengths)}; give each once, and 0, the untouched picture, among them.")
    found: dict[str, dict[float, Tensor]] = {name: {} for name in scores}
    for strength in strengths:
        pictures = change(strength)
        for name, score in scores.items():
            found[name][strength] = score(pictures)
    return found


def gains(values: Mapping[float, Tensor]) -> dict[float, Interval]:
    """Paired differences to strength 0 with their intervals: strength -> interval. `values`: strength -> (B,)."""
    return {strength: paired_interval(own, values[0]) for strength, own in values.items() if strength != 0}


def knob_figure(
    knobs: Mapping[str, Mapping[str, Mapping[float, Tensor]]],
    titles: Mapping[str, str],
    lower_is_better: Sequence[str] = (),
) -> Figure:
    """What each knob does to each score: a row a knob, a panel a score, difference to the untouched with its interval.

    The half-plane in which the score calls the picture better is shaded.

    Args:
        knobs: name of a knob with its unit -> what `turned` returned, the same scores for all.
        titles: score -> what stands above its panels.
        lower_is_better: scores that are better when lower.
    """
    columns = list(titles)
    figure, axes = blank_figure(len(knobs), len(columns), cell_width=2.15, cell_height=1.6)
    for line, (knob, found) in zip(axes, knobs.items(), strict=True):
        for ax, name, colour in zip(line, columns, COLOURS, strict=False):
            intervals = gains(found[name])
            at = [0.0, *intervals]
            middle = [0.0, *(interval.mean for interval in intervals.values())]
            low = [0.0, *(interval.low for interval in intervals.values())]
            high = [0.0, *(interval.high for interval in intervals.values())]
            ax.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
            ax.plot(at, middle, color=colour, linestyle="-", marker="o")
            reach = 1.08 * max(max(map(abs, low)), max(map(abs, high)), 1e-6)
            better = (-reach, 0) if name in lower_is_better else (0, reach)
            ax.axhspan(*better, color="#009E73", alpha=0.09, linewidth=0)
            ax.axhline(0, color="black", linewidth=0.8, linestyle=":")
            ax.set(ylim=(-reach, reach), xlabel=knob)
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(titles[name])
    return figure
