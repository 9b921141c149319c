"""Augmentation of reference photos in ReF-LDM's training (release; paper, supplement): colour, pose and perspective
change a little, so that the network cannot copy pixels from a reference that happens to look like the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from refbfr_core.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ReferenceAugmentation:
    """What happens to one reference, in this order; every draw depends on the picture's own seed only.

    Attributes
    ----------
    brightness, contrast, saturation : factors from 1 - x to 1 + x. hue : shift up to x of the colour circle.
    degrees, shift, scale : rotation up to so many degrees, translation up to a share of the side, range of the size;
        bilinear, black where nothing moves in.
    perspective : probability of a perspective distortion of strength `distortion`; always in the released code, half of
        the time in the paper.
    flip : probability of mirroring.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    degrees: float = 2.0
    shift: float = 0.05
    scale: tuple[float, float] = (0.95, 1.05)
    distortion: float = 0.2
    perspective: float = 1.0
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.perspective <= 1 and 0 <= self.flip <= 1 and 0 <= self.distortion <= 1):
            raise ConfigError(
                f"perspective={self.perspective}, flip={self.flip} and distortion={self.distortion} must lie in [0, 1]."
            )

    def __call__(self, picture: Image.Image, seed: int) -> Image.Image:
        """The augmented copy of an 8-bit RGB picture, of the same size; the same seed gives the same copy.

        Raises
        ------
        MissingExtraError : torchvision is not installed.
        """
        steps = self._steps()
        # torchvision draws from torch's stream; nobody outside may notice.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in steps:
                picture = step(picture)
        return picture

    def _steps(self) -> list[Callable[[Any], Any]]:
        try:
            from torchvision import transforms
        except ImportError as error:
            raise missing_extra("torchvision", "metrics", "the augmentation of references") from error
        bilinear = transforms.InterpolationMode.BILINEAR
        return [
            transforms.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue),
            transforms.RandomAffine(self.degrees, (self.shift, self.shift), self.scale, interpolation=bilinear, fill=0),
            transforms.RandomPerspective(self.distortion, self.perspective, interpolation=bilinear, fill=0),
            transforms.RandomHorizontalFlip(self.flip),
        ]
