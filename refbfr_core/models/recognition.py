"""What every ArcFace-style recogniser shares: how a face reaches its 112-pixel door, its taps and its unit vectors.

The published recognisers were trained on crops in which five points lie at fixed places. Guidance has no detector in
its loop, so a fixed rule has to bring an aligned picture to that door; three are in use, see `ALIGNMENTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.faces.alignment import crop_scale, fit_similarity, invert, template_points
from refbfr_core.models.embedder import crop_and_resize

SIDE = 112
"""Side in pixels of the square that ArcFace networks take."""

ARCFACE_POINTS_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Left eye, right eye, nose tip, left and right mouth corner (as seen in the picture) in ArcFace's 112-pixel crop: the
template that InsightFace publishes, pixel centres at whole numbers."""

ALIGNMENTS: Mapping[str, str] = MappingProxyType(
    {
        "resize": "the whole picture resized to 112 px, bilinear with antialiasing (PGDiff's guidance)",
        "ffhq": "one fixed similarity from the FFHQ layout to ArcFace's five points, for pictures aligned like FFHQ",
        "crop": "1/16 cut off every side, areas averaged to 112 px (ReF-LDM's identity loss and the metrics)",
    }
)
"""The rules that bring a picture to 112 pixels, and what each does; read-only."""


def align_faces(images: Tensor, alignment: str = "resize") -> Tensor:
    """Bring aligned pictures to a recogniser's input by one of `ALIGNMENTS`.

    Args:
        images: (B, 3, H, W) RGB in [-1, 1].
        alignment: "resize", "ffhq" or "crop".

    Returns:
        (B, 3, 112, 112) in [-1, 1], same dtype; differentiable.

    Raises:
        ImageContractError: not a batch of RGB images, or one that is not square for "ffhq".
        UnknownNameError: no such rule.
    """
    check_alignment(alignment)
    if alignment == "crop":
        return crop_and_resize(images, SIDE)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ImageContractError(
            f"faces must be (B, 3, H, W), got {tuple(images.shape)}; a single image needs images[None]."
        )
    return warp_to_template(images) if alignment == "ffhq" else _resized(images, SIDE)


def warp_to_template(images: Tensor) -> Tensor:
    """Move the five points of the FFHQ layout onto `ARCFACE_POINTS_112`, the same way for every picture.

    Where the points lie in the FFHQ layout is `refbfr_core.faces.alignment.FFHQ_POINTS_512`, measured with a detector
    on photographs; one person's own points lie a few pixels off. At 512 px ArcFace's crop is a square of 391 px in the
    middle of the picture. Pictures larger than the crop are first shrunk with antialiasing to its scale: bilinear
    sampling alone would read, and so send gradients to, only every third or fourth pixel.

    Args:
        images: (B, 3, S, S) in [-1, 1], aligned like FFHQ, any S.

    Returns:
        (B, 3, 112, 112) in [-1, 1]; differentiable.

    Raises:
        ImageContractError: the pictures are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ImageContractError(
            f"pictures aligned like FFHQ are square, these are {width}x{height}; align them first "
            "(refbfr_core.faces.PhotoAligner), or use alignment='resize'."
        )
    scale = crop_scale(fit_similarity(template_points(width), ARCFACE_POINTS_112))
    side = min(width, round(width * scale))
    images = _resized(images, side)
    back = torch.from_numpy(invert(fit_similarity(template_points(side), ARCFACE_POINTS_112)))
    steps = torch.arange(SIDE, dtype=torch.float64)
    target = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    source = target @ back[:, :2].T + back[:, 2]
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    grid = ((2 * source + 1) / side - 1).to(images.device, images.dtype)
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def check_alignment(alignment: str) -> None:
    """Raise UnknownNameError unless `alignment` is one of `ALIGNMENTS`."""
    if alignment not in ALIGNMENTS:
        raise unknown_name("alignment of a recogniser", alignment, ALIGNMENTS)


class RecogniserMixin:
    """The doors of a recogniser, for a module that has `alignment` and `tapped(crops) -> ([u1, u2, u3], embedding)`.

    `forward` of such a module takes crops and returns raw vectors; the doors here take pictures of any size.
    """

    alignment: str

    def tapped(self, crops: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tapped feature maps and the raw embedding of (B, 3, 112, 112) crops."""
        raise NotImplementedError(f"{type(self).__name__} lacks tapped(crops).")

    def preprocess(self, images: Tensor) -> Tensor:
        """Bring (B, 3, H, W) in [-1, 1] to (B, 3, 112, 112) by the rule `alignment`; see `align_faces`."""
        return align_faces(images, self.alignment)

    def embed(self, images: Tensor) -> Tensor:
        """`preprocess`, the network, and unit length: (B, 3, H, W) in [-1, 1] to (B, D), as `FaceEmbedder.embed`."""
        return F.normalize(self(self.preprocess(images)), dim=1)

    def guidance_features(self, images: Tensor) -> list[Tensor]:
        """PDGrad's u_1 to u_4 (eq. 12, 17): three feature maps (B, C, h, w), and last the raw embedding (B, D).

        Args:
            images: (B, 3, H, W) RGB in [-1, 1], any size; gradients flow through `preprocess`.

        Raises:
            ConfigError: the network is in training mode, where a picture's features depend on its batch.
            ImageContractError: not a batch of RGB images.
        """
        if self.training:
            raise ConfigError(
                "the recogniser is in training mode, so features would depend on the batch; call network.eval()."
            )
        taps, embedding = self.tapped(self.preprocess(images))
        return [*taps, embedding]


def check_crops(crops: Tensor) -> None:
    """Raise ImageContractError unless `crops` is (B, 3, 112, 112)."""
    if crops.ndim != 4 or tuple(crops.shape[1:]) != (3, SIDE, SIDE):
        raise ImageContractError(
            f"the recogniser takes (B, 3, {SIDE}, {SIDE}), got {tuple(crops.shape)}; call network.preprocess(images) "
            "first, or network.embed(images) for both."
        )


def _resized(images: Tensor, side: int) -> Tensor:
    if tuple(images.shape[-2:]) == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
