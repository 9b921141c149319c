"""What an image tensor looks like at every public door, and the conversions to and from bytes and networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from refbfr_core.errors import ImageContractError

MAX_REFERENCES = 16
"""Most references one person may bring: memory grows with each, and the method's authors train and test with five."""

# Resizing and colour arithmetic in float32 overshoot by a few units in the last place; that is not a range mistake.
_SLACK = 1e-5


def check_images(x: Any, name: str = "images") -> torch.Tensor:
    """Return `x` unchanged if it keeps the contract: `torch.float32`, RGB, `(B, 3, H, W)`, B ≥ 1, finite, in [0, 1].

    Parameters
    ----------
    x : what the caller passed.
    name : how the caller calls it, for the message.

    Raises
    ------
    ImageContractError : says what came (type, shape, smallest and largest value), what is expected, and the one-line
        cure.
    """
    _check_float_tensor(x, name)
    if x.ndim != 4:
        raise _broken(name, x, _cure_for_rank(x))
    if x.shape[1] != 3:
        raise _broken(name, x, _cure_for_channels(x))
    if x.numel() == 0:
        raise _broken(name, x, "an empty batch or picture cannot be processed: pass at least one image.")
    _check_range(x, name)
    return x


def check_references(
    references: Any, mask: Any = None, lq: torch.Tensor | None = None, *, max_references: int = MAX_REFERENCES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(references, mask)` if they keep the contract; a missing mask becomes one that uses every reference.

    Parameters
    ----------
    references : `(B, R, 3, H, W)`, float32 RGB in [0, 1], 1 ≤ R ≤ `max_references`.
    mask : None, or `(B, R)` bool; False marks a slot that is only padding (people with fewer photos than R). A person
        without any reference is a row of False.
    lq : the images to restore, `(B, 3, H, W)`; when given, batch, height, width and device must agree with the
        references.
    max_references : most references accepted for one person.

    Raises
    ------
    ImageContractError : says what came, what is expected, and the one-line cure.
    """
    _check_float_tensor(references, "references", shape="(B, R, 3, H, W)")
    if references.ndim != 5 or references.shape[2] != 3:
        cure = "the axes are person, photo, channel, row, column."
        if references.ndim == 4:
            cure = "one person's photos (R, 3, H, W) become references[None]."
        raise _broken("references", references, cure, shape="(B, R, 3, H, W)")
    people, count = references.shape[:2]
    if count == 0:
        cure = "to restore without references pass references=None."
        raise _broken("references", references, cure, shape="(B, R, 3, H, W)")
    if references.numel() == 0:
        raise _broken("references", references, "an empty batch cannot be processed.", shape="(B, R, 3, H, W)")
    if count > max_references:
        raise ImageContractError(
            f"{count} references for one person came, at most {max_references} are used: keep the sharpest, "
            f"references[:, :{max_references}]."
        )
    if lq is not None:
        _check_fits(references, lq)
    _check_range(references, "references")
    return references, _checked_mask(mask, people, count, references.device)


def stack_references(people: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the photos of several people, who may have different numbers of them, into one tensor and its mask.

    Parameters
    ----------
    people : for each person a sequence of `(1, 3, H, W)` or `(3, H, W)` images, all of one size; a person may have
        none.

    Returns
    -------
    references : `(B, R, 3, H, W)`, R the largest number of photos; padding is black.
    mask : `(B, R)` bool, False where a slot is padding.

    Raises
    ------
    ImageContractError : nobody has a photo, the photos differ in size, or one of them breaks the image contract.
    """
    photos = [
        [_one_photo(photo, f"reference {j} of person {i}") for j, photo in enumerate(own)]
        for i, own in enumerate(people)
    ]
    sizes = {tuple(photo.shape) for own in photos for photo in own}
    if not sizes:
        raise ImageContractError("no references came for anybody: to restore without references pass references=None.")
    if len(sizes) > 1:
        listing = ", ".join(f"{height}×{width}" for _, height, width in sorted(sizes))
        raise ImageContractError(
            f"references of different sizes came ({listing}), one size is expected: align or resize them first."
        )
    most = max(len(own) for own in photos)
    blank = torch.zeros(sizes.pop())
    references = torch.stack([torch.stack([*own, *[blank] * (most - len(own))]) for own in photos])
    mask = torch.tensor([[j < len(own) for j in range(most)] for own in photos])
    return references, mask


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Turn images `(B, 3, H, W)` in [0, 1] into bytes `(B, H, W, 3)` in 0…255, rounding halves to the even neighbour.

    Raises `ImageContractError` when `images` breaks the contract.
    """
    levels = check_images(images).detach() * 255.0
    return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Turn RGB bytes `(B, H, W, 3)` in 0…255, tensor or array, into images `(B, 3, H, W)` float32 in [0, 1].

    Raises `ImageContractError` for another type or shape.
    """
    expected = "uint8 RGB of shape (B, H, W, 3)"
    if isinstance(pixels, np.ndarray):
        # A copy, because arrays that are memory-mapped read-only cannot back a tensor safely.
        pixels = torch.from_numpy(np.array(pixels, order="C"))
    if not isinstance(pixels, torch.Tensor):
        raise ImageContractError(
            f"pixels is a {type(pixels).__name__}, expected {expected}: pass a tensor or a numpy array."
        )
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.numel() == 0:
        raise ImageContractError(
            f"pixels has dtype {pixels.dtype} and shape {tuple(pixels.shape)}, expected {expected}: a single picture "
            "becomes pixels[None]."
        )
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0


def to_network(x: torch.Tensor) -> torch.Tensor:
    """Map images from the contract's [0, 1] to the [-1, 1] networks work in: 2x − 1. Any shape; differentiable."""
    return 2.0 * x - 1.0


def from_network(x: torch.Tensor) -> torch.Tensor:
    """Map network images from [-1, 1] back to [0, 1], clamping what a network overshoots: clamp((x + 1) / 2, 0, 1).

    Any shape.
    """
    return ((x + 1.0) / 2.0).clamp(0.0, 1.0)


def _check_float_tensor(x: Any, name: str, shape: str = "(B, 3, H, W)") -> None:
    """Refuse everything that is not a float32 tensor."""
    expected = f"a float32 tensor of shape {shape} in [0, 1]"
    if not isinstance(x, torch.Tensor):
        cure = "convert bytes with refbfr_core.images.from_uint8, floats with torch.from_numpy(...).permute(0, 3, 1, 2)"
        raise ImageContractError(f"{name} is a {type(x).__module__}.{type(x).__name__}, expected {expected}: {cure}.")
    if x.dtype == torch.uint8:
        raise _broken(name, x, "convert bytes with refbfr_core.images.from_uint8.", shape=shape)
    if x.dtype != torch.float32:
        raise _broken(name, x, f"convert with {name}.float().", shape=shape)


def _check_range(x: torch.Tensor, name: str) -> None:
    """Refuse values outside [0, 1] and values that are not numbers."""
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    if low >= -_SLACK and high <= 1.0 + _SLACK:
        return
    if not bool(torch.isfinite(x).all()):
        cure = "it holds NaN or infinity: look for a division by zero or an overflow where it was made."
    elif low >= -1.0 - 1e-3 and low < 0 and high <= 1.0 + 1e-3:
        cure = "this looks like the [-1, 1] networks use: convert with refbfr_core.images.from_network."
    elif low >= 0 and high > 2.0 and high <= 255.0:
        cure = "this looks like 0…255: divide by 255."
    else:
        cure = "if the overshoot is small and meant, clamp it with .clamp(0, 1)."
    raise ImageContractError(f"{name} lies in [{low:.4g}, {high:.4g}], expected [0, 1]: {cure}")


def _check_fits(references: torch.Tensor, lq: torch.Tensor) -> None:
    """Refuse references whose batch, size or device differ from those of the images to restore."""
    if references.shape[0] != lq.shape[0]:
        raise ImageContractError(
            f"references are for {references.shape[0]} people but {lq.shape[0]} images are to be restored: both need "
            "the same batch size; "
            "to share one person's photos use references.expand(B, -1, -1, -1, -1)."
        )
    if references.shape[-2:] != lq.shape[-2:]:
        (height, width), (lq_height, lq_width) = references.shape[-2:], lq.shape[-2:]
        raise ImageContractError(
            f"references are {height}×{width} but the images to restore are {lq_height}×{lq_width}: both need the same "
            "size; align the "
            "references to the same frame, or resize them with torch.nn.functional.interpolate(..., mode='area')."
        )
    if references.device != lq.device:
        raise ImageContractError(
            f"references are on {references.device} but the images on {lq.device}: move them with "
            f"references.to({str(lq.device)!r})."
        )


def _checked_mask(mask: Any, people: int, count: int, device: torch.device) -> torch.Tensor:
    """Return the mask on the references' device, all True when None came."""
    if mask is None:
        return torch.ones(people, count, dtype=torch.bool, device=device)
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (people, count):
        came = f"a {type(mask).__name__}"
        if isinstance(mask, torch.Tensor):
            came = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ImageContractError(
            f"mask is {came}, expected a bool tensor of shape ({people}, {count}), True for each reference to use: "
            "convert with mask.bool()."
        )
    return mask.to(device)


def _one_photo(photo: Any, name: str) -> torch.Tensor:
    """Return one checked photo as `(3, H, W)`."""
    batched = photo[None] if isinstance(photo, torch.Tensor) and photo.ndim == 3 else photo
    if check_images(batched, name).shape[0] != 1:
        raise ImageContractError(f"{name} holds {batched.shape[0]} images, one is expected: split it with .unbind(0).")
    return batched[0]


def _cure_for_rank(x: torch.Tensor) -> str:
    """Say how to get from another number of axes to four."""
    if x.ndim == 3:
        return "a single picture (3, H, W) becomes x[None]."
    if x.ndim == 5:
        return "references go in the argument `references`; several images per person become x.flatten(0, 1)."
    return "images are (image, channel, row, column)."


def _cure_for_channels(x: torch.Tensor) -> str:
    """Say how to get from another number of channels to three."""
    if x.shape[-1] == 3:
        return "the channels come last: use x.permute(0, 3, 1, 2)."
    if x.shape[1] == 1:
        return "grey pictures become x.expand(-1, 3, -1, -1)."
    if x.shape[1] == 4:
        return "drop the alpha channel: x[:, :3]."
    return "three channels, red, green and blue, are expected."


def _broken(name: str, x: torch.Tensor, cure: str, shape: str = "(B, 3, H, W)") -> ImageContractError:
    """Build the error for a tensor `x`: what came, what is expected, the cure."""
    seen = ""
    if x.numel() and not x.is_complex():
        low, high = torch.aminmax(x.detach())
        seen = f", values in [{low.item():.4g}, {high.item():.4g}]"
    return ImageContractError(
        f"{name} has dtype {x.dtype} and shape {tuple(x.shape)}{seen}; expected float32 RGB of shape {shape} in [0, "
        f"1]: {cure}"
    )
