"""The geometry of face crops: a similarity transform from five points, the crop it cuts out, and the way back.

Points are (x, y) in pixels, with the centre of the top-left pixel at (0, 0). A transform is a (2, 3) float64 matrix
that carries points of the photo to points of the crop: ``crop = matrix[:, :2] @ photo + matrix[:, 2]``. Nothing here
needs a network; finding the five points is `refbfr_core.faces.photos`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from refbfr_core.errors import ImageContractError
from refbfr_core.images import check_images

# Left eye, right eye, nose tip, left and right mouth corner (left and right as seen in the picture) in a 512-pixel crop
# framed like FFHQ: the points a common five-point detector finds on FFHQ-aligned photographs, averaged, mirrored about
# the middle column and rounded.
FFHQ_POINTS_512 = ((194.0, 240.0), (317.0, 240.0), (255.5, 311.0), (202.5, 370.0), (308.5, 370.0))


def template_points(resolution: int) -> np.ndarray:
    """Return where the five points belong in a square FFHQ-framed crop of `resolution` pixels: (5, 2) float64."""
    if resolution < 1:
        raise ImageContractError(f"a crop of {resolution} pixels has no room for a face; ask for 64, 128, 256 or 512.")
    # The half pixels keep pixel centres where they belong when the size changes.
    return (np.asarray(FFHQ_POINTS_512) + 0.5) * (resolution / 512) - 0.5


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the (2, 3) matrix of rotation, scale and shift that carries `source` (N, 2) closest to `target` (N, 2).

    Read a point as a complex number z = x + iy; every similarity without a mirror is z -> a z + b, and least squares
    gives a = sum(conj(z) w) / sum(|z|^2) over the centred points, b from the means. It is Umeyama's solution (1991, eq.
    40-42) in the plane with the mirrored solutions left out, without a singular value decomposition.

    Raises ImageContractError for arrays of another shape, values that are not finite, or `source` points that all
    coincide.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ImageContractError(
            f"points must come as two arrays (N, 2) with the same N >= 2, got {source.shape} and {target.shape}."
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ImageContractError("points must be finite numbers; a detector that returns nan found no face.")
    z, w = source @ (1, 1j), target @ (1, 1j)
    z_mean, w_mean = z.mean(), w.mean()
    spread = (np.abs(z - z_mean) ** 2).sum()
    if spread <= 1e-12:
        raise ImageContractError("all points coincide, so no rotation or scale can be told; check the points.")
    a = (np.conj(z - z_mean) * (w - w_mean)).sum() / spread
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def move_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Carry `points` (N, 2) through the (2, 3) `matrix`."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the (2, 3) matrix of the way back, from the crop to the photo."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def chain(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the (2, 3) matrix that does `inner` first and `outer` afterwards."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def crop_scale(matrix: np.ndarray) -> float:
    """Return how many crop pixels one photo pixel becomes; below 1 the crop is the smaller picture."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def cut_crop(image: torch.Tensor, matrix: np.ndarray, resolution: int) -> torch.Tensor:
    """Cut the square that `matrix` describes out of a photo.

    `image` is (1, 3, H, W) in [0, 1]; returns (1, 3, resolution, resolution) in [0, 1]. What lies outside the photo is
    filled by its mirror image, as FFHQ does. A crop smaller than its source is sampled on a finer grid and averaged, so
    that nothing aliases.
    """
    import cv2

    pixels = _single(image)
    finer = max(1, math.ceil(1 / crop_scale(matrix) - 1e-6))
    # Each crop pixel becomes finer x finer samples centred on it.
    fine_matrix = finer * np.asarray(matrix, np.float64)
    fine_matrix[:, 2] += (finer - 1) / 2
    side = resolution * finer
    flags, border = cv2.INTER_LINEAR if finer > 1 else cv2.INTER_CUBIC, cv2.BORDER_REFLECT_101
    warped = cv2.warpAffine(pixels, fine_matrix, (side, side), flags=flags, borderMode=border)
    if finer > 1:
        warped = warped.reshape(resolution, finer, resolution, finer, 3).mean(axis=(1, 3))
    return _tensor(warped)


def paste_back(photo: torch.Tensor, crop: torch.Tensor, matrix: np.ndarray, feather: float = 0.08) -> torch.Tensor:
    """Put a (restored) crop back where it was cut out.

    `photo` is (1, 3, H, W) and `crop` (1, 3, R, R), both in [0, 1]; `matrix` is the one the crop was cut with. Over the
    outer `feather` share of the crop's side the crop fades into the photo, so no edge shows. Returns a new (1, 3, H,
    W); pixels outside the crop are the photo's own, bit for bit.
    """
    import cv2

    ground, patch = _single(photo), _single(crop)
    side = patch.shape[0]
    if patch.shape[0] != patch.shape[1]:
        raise ImageContractError(f"the crop must be square, got {tuple(crop.shape)}; cut it with `cut_crop`.")
    if not 0 < feather <= 0.5:
        raise ImageContractError(f"feather is a share of the side in (0, 0.5], got {feather}.")
    height, width = ground.shape[:2]
    shrink = int(crop_scale(matrix))
    if shrink > 1:  # A crop much finer than the photo is averaged first, or its detail would alias.
        smaller = max(1, round(side / shrink))
        patch = cv2.resize(patch, (smaller, smaller), interpolation=cv2.INTER_AREA)
        matrix = chain(resize_matrix(side, smaller), matrix)
        side = smaller
    # Distance to the crop's edge in shares of its side; smoothstep has no kink at either end of the fade.
    inward = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / side
    ramp = np.clip(inward / feather, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    weight = np.minimum(ramp[:, None], ramp[None, :]).astype(np.float32)
    back = invert(matrix)
    grown = cv2.warpAffine(patch, back, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(weight, back, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    alpha = alpha[..., None]
    blended = np.where(alpha > 0, alpha * np.clip(grown, 0, 1) + (1 - alpha) * ground, ground)
    return _tensor(blended)


def resize_crop(image: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resize a crop that is aligned already, (1, 3, S, S) in [0, 1], to (1, 3, resolution, resolution); no face is
    looked for.

    Smaller pictures grow by bicubic interpolation, larger ones shrink by averaging areas. The same size comes back
    unchanged.

    Raises ImageContractError for a picture that is not square: stretching it would change the face.
    """
    import cv2

    pixels = _single(image)
    height, width = pixels.shape[:2]
    if height != width:
        raise ImageContractError(
            f"an aligned crop is square, this one is {width}x{height}; align it (`refbfr restore --align`) or crop it."
        )
    if height == resolution:
        return image
    method = cv2.INTER_AREA if resolution < height else cv2.INTER_CUBIC
    return _tensor(cv2.resize(pixels, (resolution, resolution), interpolation=method))


def resize_matrix(size: int, resolution: int) -> np.ndarray:
    """Return the (2, 3) matrix of `resize_crop` from `size` to `resolution` pixels."""
    scale = resolution / size
    shift = 0.5 * scale - 0.5
    return np.array([[scale, 0.0, shift], [0.0, scale, shift]])


def _single(image: torch.Tensor) -> np.ndarray:
    """Check one picture of the image contract and return it as a contiguous (H, W, 3) float32 array."""
    check_images(image, "image")
    if image.shape[0] != 1:
        raise ImageContractError(f"one picture at a time: expected (1, 3, H, W), got {tuple(image.shape)}.")
    return np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """Turn an (H, W, 3) array back into (1, 3, H, W) float32 in [0, 1]; cubic kernels overshoot, so values are
    clipped.
    """
    clipped = np.clip(pixels, 0, 1).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(clipped.transpose(2, 0, 1)))[None]
