"""Landmark distance: has the restored face its eyes, nose, mouth and outline where the true face has them?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from refbfr_core.errors import ConfigError, unknown_name

Detector = Callable[[Tensor], Tensor]

NORMALISATIONS = ("pixels", "frame512", "interocular")
# Outer corners of the eyes among the 98 WFLW points.
_OUTER_EYE_CORNERS = (60, 72)

NEEDS = (
    "lmd needs the landmarks of both pictures, (B, K, 2) in pixels. Drawn faces know theirs exactly: pass "
    "target_landmarks=rendering.landmarks. For the other picture pass restored_landmarks=..., or detector=, a function "
    "from images (B, 3, H, W) in [0, 1] to landmarks. The papers' detector for photographs is the 98-point AWing "
    "network: detector=refbfr_core.metrics.load_awing(), which needs facexlib and its alignment_WFLW_4HG.pth."
)


def lmd(
    restored: Tensor,
    target: Tensor | None = None,
    *,
    target_landmarks: Tensor | None = None,
    restored_landmarks: Tensor | None = None,
    detector: Detector | None = None,
    normalise: str = "pixels",
) -> Tensor:
    """Mean Euclidean distance of corresponding landmarks (LMD of VQFR and PDGrad: 98 WFLW points, raw pixels at 512).

    Args:
        restored: (B, 3, H, W) in [0, 1].
        target: the true pictures, needed only when their landmarks have to be detected.
        target_landmarks, restored_landmarks: (B, K, 2) x, y in pixels; exact or detected elsewhere.
        detector: finds whatever landmarks were not given.
        normalise: "pixels" (of the pictures as they come, which is what the papers print for 512 px), "frame512"
            (pixels on a frame 512 wide, so that sizes can be compared) or "interocular" (divided by the true distance
            of the outer eye corners; 98 points only).

    Returns:
        (B,) at least 0.

    Raises:
        ConfigError: landmarks are missing and there is no detector (says what to fetch), or have the wrong shape.
        UnknownNameError: no such normalisation.
    """
    if normalise not in NORMALISATIONS:
        raise unknown_name("landmark normalisation", normalise, NORMALISATIONS)
    mine = _landmarks(restored, restored_landmarks, detector, "restored_landmarks")
    truth = _landmarks(target, target_landmarks, detector, "target_landmarks")
    if mine.shape != truth.shape or len(mine) != len(restored):
        raise ConfigError(
            f"landmarks must be (B, K, 2) with B = {len(restored)} for both pictures, "
            f"got {tuple(mine.shape)} for the restored and {tuple(truth.shape)} for the target."
        )
    distance = (mine - truth).norm(dim=-1).mean(dim=-1)
    if normalise == "frame512":
        return distance * (512.0 / restored.shape[-1])
    if normalise == "interocular":
        if truth.shape[1] != 98:
            raise ConfigError(f"'interocular' is defined for the 98 WFLW points, got {truth.shape[1]}; use 'pixels'.")
        left, right = (truth[:, corner] for corner in _OUTER_EYE_CORNERS)
        return distance / (left - right).norm(dim=-1)
    return distance


def _landmarks(images: Tensor | None, given: Tensor | None, detector: Detector | None, name: str) -> Tensor:
    if given is None:
        if detector is None or images is None:
            raise ConfigError(f"{name} are missing. {NEEDS}")
        given = detector(images)
    if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[-1] != 2:
        came = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(f"{name} must be a tensor (B, K, 2) of x, y in pixels, got {came}.")
    return given.to(device="cpu" if images is None else images.device, dtype=torch.float64)
