"""Colour bias: by how much a whole restoration is too red, too green or too blue.

LD-BFR reports for one of its ablations a shift of colours, without a number (Du et al., ACM MM 2024, Fig. 10). A shift
is what is left when the errors of all places are averaged: detail and noise cancel, a cast does not. The length over
the three channels says how strong it is in one picture; the signed channels, averaged over people, say whether a method
shifts every picture the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from refbfr_core.errors import ImageContractError
from refbfr_core.images import check_images

CHANNELS = ("red", "green", "blue")
GREY_LEVELS = 255.0


def channel_bias(restored: Tensor, target: Tensor) -> Tensor:
    """Mean of restored - target over all places, for every channel, in grey levels.

    Args:
        restored, target: (B, 3, H, W) float32 RGB in [0, 1].

    Returns:
        (B, 3) float64 in [-255, 255] in the order of `CHANNELS`; positive where the restoration is too bright.

    Raises:
        ImageContractError: pictures that break the contract or differ in shape.
    """
    check_images(restored, "restored")
    check_images(target, "target")
    if restored.shape != target.shape:
        raise ImageContractError(
            f"a colour bias compares pictures of one shape, got {tuple(restored.shape)} and {tuple(target.shape)}; "
            "resize one of them first."
        )
    return GREY_LEVELS * (restored.double() - target.double()).mean(dim=(2, 3))


def colour_bias(restored: Tensor, target: Tensor) -> Tensor:
    """Length over R, G and B of `channel_bias`: (B,) float64 in grey levels, 0 when no channel is shifted as a whole.

    A picture that is too bright in all channels has a bias, too.
    """
    return channel_bias(restored, target).norm(dim=1)


def bias_of(channel: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The signed bias of one of `CHANNELS` as a score of its own: (B,) float64 in grey levels."""
    index = CHANNELS.index(channel)

    def bias(restored: Tensor, target: Tensor) -> Tensor:
        return channel_bias(restored, target)[:, index]

    return bias
