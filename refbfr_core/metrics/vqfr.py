"""Deg and LMD exactly as VQFR's scripts compute them (Gu et al., ECCV 2022); PDGrad's tables cite them for both.

The metrics "deg" and "lmd" say what is measured; a printed number also depends on the network behind it and on how a
mean is taken. Neither network ships here:

* Deg: a grey-scale ResNet-18 of an ArcFace variant (resnet18_110.pth); wrap its module in `GreyEmbedder`, pass that as
  ``embedder=`` to "deg", and take the mean with ``mean_deg(angles, "vqfr")``.
* LMD: the 98-point AWing network; pass ``load_awing()`` as ``detector=`` to "lmd", on aligned pictures of 512 pixels.

PDGrad does not say that its numbers come from these very weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, WeightsError, missing_extra, unknown_name
from refbfr_core.images import from_network, to_uint8
from refbfr_core.metrics.assets import fill_network, need_file, read_checkpoint

DEG_PROTOCOLS: Mapping[str, float] = MappingProxyType({"all": 0.0, "vqfr": 1.0})
"""Least angle in degrees of a pair that counts in a mean Deg: "all" counts every pair, "vqfr" leaves out pairs under
one degree as almost identical; read-only."""

AWING_ASSET = "awing-98"
AWING_FILE = "alignment_WFLW_4HG.pth"
_HOW_TO_GET = (
    f"Fetch {AWING_FILE} with `refbfr weights get {AWING_ASSET}`, or name it, or put it in the folder facexlib/weights "
    "of the installed package."
)


@dataclass(frozen=True)
class DegMean:
    """Mean angle in degrees, the pairs that count, those left out, and the protocol's name."""

    value: float
    counted: int
    left_out: int
    protocol: str


def mean_deg(angles: Tensor, protocol: str = "all") -> DegMean:
    """Mean of the angles of a test set, by one of `DEG_PROTOCOLS`.

    Args:
        angles: (N,) degrees, from ``compute("deg", ...)``.
        protocol: "all" or "vqfr".

    Raises:
        UnknownNameError: no such protocol. ConfigError: nothing is left to average, or not (N,) finite numbers.
    """
    if protocol not in DEG_PROTOCOLS:
        raise unknown_name("protocol of Deg", protocol, DEG_PROTOCOLS)
    if angles.ndim != 1 or not angles.isfinite().all():
        raise ConfigError(f"angles must be (N,) finite degrees, got {tuple(angles.shape)}; pass compute('deg', ...).")
    counted = angles[angles >= DEG_PROTOCOLS[protocol]].double()
    if not len(counted):
        raise ConfigError(f"none of {len(angles)} pairs counts in the protocol {protocol!r}; there is no mean.")
    return DegMean(float(counted.mean()), len(counted), len(angles) - len(counted), protocol)


class GreyEmbedder:
    """The door of VQFR's identity network: the whole picture in grey, 128 x 128, as an ``embedder`` for the metrics.

    Args:
        network: in eval mode, from (B, 1, 128, 128) in [-1, 1] to (B, D).
    """

    SIDE = 128

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        if isinstance(network, nn.Module) and network.training:
            raise ConfigError("the network is in training mode, so scores would depend on the batch; call eval().")
        self.network = network

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 1, 128, 128) in [-1, 1]: 8 bits, OpenCV's luma, bilinear without antialiasing.

        Each step rounds; the script, which lets OpenCV read files straight to grey, rounds the luma of a PNG down. No
        gradient.
        """
        import cv2

        pixels = to_uint8(from_network(images.detach())).cpu().numpy()
        grey = [cv2.resize(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), (self.SIDE, self.SIDE)) for each in pixels]
        return ((torch.from_numpy(np.stack(grey)).to(images.device, torch.float32) - 127.5) / 127.5)[:, None]

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, D)."""
        return self.network(self.preprocess(images))


class AWingDetector:
    """98 WFLW landmarks of aligned faces with a heat-map network: ``detector=`` of the metric "lmd".

    Args:
        network: facexlib's FAN in eval mode: (B, 3, 256, 256) RGB in [0, 1] to a list of heat maps, the last of which
            is (B, 98 + 1, 64, 64).
    """

    SIDE, MAP = 256, 64

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 98, 2) x, y in pixels of the pictures."""
        import cv2

        device = next(self.network.parameters()).device
        points = []
        for picture in to_uint8(images).cpu().numpy():  # one by one: four stacked hourglasses take much memory
            resized = cv2.resize(picture, (self.SIDE, self.SIDE))
            given = torch.from_numpy(resized).to(device).permute(2, 0, 1)[None].float() / 255
            maps = self.network(given)[0][-1][:, :-1]  # the last channel is the outline
            points.append(find_peaks(maps)[0])
        scale = torch.tensor([images.shape[-1], images.shape[-2]], device=device) / self.MAP
        return (torch.stack(points) * scale).to(images.device)


def find_peaks(maps: Tensor) -> Tensor:
    """Peaks of heat maps (B, K, h, w) as (B, K, 2) x, y, with the outer edge of the first cell at 0.

    The largest cell's centre, moved by a quarter of a cell towards the larger neighbour in each direction. A peak in
    the outermost row or column stays where it is in that direction. (facexlib's own function reads a neighbour from
    another row there, and when any point lies in the first or last row, for all points.)
    """
    height, width = maps.shape[-2:]
    index = maps.flatten(2).argmax(-1)
    x, y = index % width, index // width
    inner_x, inner_y = (x > 0) & (x < width - 1), (y > 0) & (y < height - 1)
    flat = maps.flatten(2)

    def neighbour(step: int) -> Tensor:
        return flat.gather(2, (index + step).clamp(0, height * width - 1)[..., None])[..., 0]

    shift_x = torch.sign(neighbour(1) - neighbour(-1)) * inner_x
    shift_y = torch.sign(neighbour(width) - neighbour(-width)) * inner_y
    return torch.stack([x + 0.25 * shift_x, y + 0.25 * shift_y], dim=-1).double() + 0.5


def load_awing(path: str | Path | None = None, device: str | torch.device = "cpu") -> AWingDetector:
    """The papers' landmark detector from its published weights; opens no network connection.

    facexlib's network is used without facexlib's loader, which downloads and unpickles, and without its decoding,
    which fails with NumPy 1.24 and newer.

    Args:
        path: alignment_WFLW_4HG.pth; None looks in the folder where facexlib keeps it, then among fetched files.

    Raises:
        MissingExtraError: facexlib is not installed. WeightsError: the file is missing, damaged or another network's.
    """
    try:
        from facexlib import alignment
    except ImportError as error:
        raise missing_extra("facexlib", "metrics", "the landmark detector of LMD") from error
    file = need_file(AWING_ASSET) if path is None else Path(path)
    if not file.is_file():
        raise WeightsError(f"the AWing landmark network is not at {file}. {_HOW_TO_GET}")
    content = read_checkpoint(file, _HOW_TO_GET)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{file} holds no 'state_dict'; it is another network's. {_HOW_TO_GET}")
    with torch.device("meta"):
        network = alignment.FAN(num_modules=4, num_landmarks=98, device=str(device))
    try:
        fill_network(network, state, file, _HOW_TO_GET, assign=True)
    except WeightsError as error:
        raise WeightsError(f"{file} does not hold the 98-point AWing network: {error}") from error
    return AWingDetector(network.to(device))
