"""LPIPS: distance of deep features with learned channel weights (Zhang et al., 2018), through the lpips library.

The learned channel weights come with the library; the ImageNet trunk does not. It is looked for where torchvision keeps
its files, then among what `refbfr weights get` fetched, and is never downloaded unasked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, WeightsError, missing_extra, unknown_name
from refbfr_core.files import file_sha256
from refbfr_core.images import to_network
from refbfr_core.metrics.assets import (
    get_it_again,
    library_path,
    missing_file,
    need_file,
    read_checkpoint,
    warn_about_foreign,
)
from refbfr_core.metrics.masks import binary_mask

_CHUNK = 16


@dataclass(frozen=True)
class Trunk:
    """An ImageNet network LPIPS can stand on.

    Attributes:
        asset: name of its file in `refbfr_core.weights.ASSETS`; torchvision's own.
        least_side: smallest image side in pixels its poolings leave anything of.
    """

    asset: str
    least_side: int


TRUNKS: Mapping[str, Trunk] = MappingProxyType(
    {
        "vgg": Trunk("lpips-vgg16", 16),
        "alex": Trunk("lpips-alexnet", 31),
        "squeeze": Trunk("lpips-squeezenet", 17),
    }
)


def trunk_path(net: str) -> Path:
    """Where torchvision keeps the trunk's file: `hub/checkpoints` under TORCH_HOME (default ~/.cache/torch)."""
    path = library_path(_trunk(net).asset)
    assert path is not None  # every trunk is torchvision's
    return path


def missing_trunk(net: str) -> str | None:
    """What has to be fetched before LPIPS with this trunk works here, or None."""
    missing = missing_file(_trunk(net).asset)
    if missing is None:
        return None
    here = [other for other in TRUNKS if trunk_path(other).is_file()]
    instead = f" Here already: net={here[0]!r}, but its numbers are not comparable with {net!r}." if here else ""
    return f"LPIPS ({net}): {missing}{instead}"


def load_lpips(net: str = "vgg", device: torch.device | str = "cpu") -> nn.Module:
    """The LPIPS network, frozen and in evaluation mode; pass it as ``network=`` to score many batches.

    Args:
        net: "vgg" (the ReF-LDM evaluation's choice), "alex" or "squeeze".
        device: where to put it.

    Raises:
        UnknownNameError: no such trunk.
        WeightsError: the trunk's file is missing, unreadable or does not fit.
        MissingExtraError: the lpips library or torchvision is not installed.
    """
    missing = missing_trunk(net)
    if missing:
        raise WeightsError(missing)
    try:
        import lpips
    except ImportError as error:
        raise missing_extra("lpips", "metrics", "the metric lpips") from error
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # lpips still names torchvision's old keyword; the random trunk it makes is overwritten below.
        warnings.filterwarnings("ignore", module="torchvision")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    _fill_trunk(network.net, net)
    return network.to(device).eval().requires_grad_(False)


def lpips_distance(restored: Tensor, target: Tensor, net: str = "vgg", network: nn.Module | None = None) -> Tensor:
    """LPIPS v0.1 with learned channel weights, RGB in [-1, 1] at the size the images come in.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].
        net: trunk; ignored when ``network`` is given.
        network: result of :func:`load_lpips`, to avoid loading it again for every batch.

    Returns:
        (B,) at least 0; 0 for identical images.

    Raises:
        ImageContractError: images too small for the trunk.
        ConfigError: a network in training mode.
        WeightsError: see :func:`load_lpips`.
    """
    if network is None:
        network = load_lpips(net, restored.device)
    if network.training:
        raise ConfigError(
            "the LPIPS network is in training mode, its dropout would change the score; call network.eval()."
        )
    least = TRUNKS[getattr(network, "pnet_type", net)].least_side
    if min(restored.shape[-2:]) < least:
        raise ImageContractError(
            f"LPIPS ({net}) needs images of at least {least} x {least} pixels, got {tuple(restored.shape[-2:])}."
        )
    pairs = zip(to_network(restored).split(_CHUNK), to_network(target).split(_CHUNK), strict=True)
    return torch.cat([network(mine, truth).flatten() for mine, truth in pairs])


def variant(net: str) -> Callable[..., Tensor]:
    """:func:`lpips_distance` with a fixed trunk, for a name that says which one it is."""

    def distance(restored: Tensor, target: Tensor, network: nn.Module | None = None) -> Tensor:
        return lpips_distance(restored, target, net=net, network=network)

    return distance


def face_lpips(
    restored: Tensor, target: Tensor, mask: Tensor | None = None, network: nn.Module | None = None
) -> Tensor:
    """fLPIPS of ReF-LDM: LPIPS with VGG-16 of two pictures whose background is black.

    Both pictures are multiplied by one binary mask; the mean then runs over the whole frame, background included, where
    the pictures agree. So a small face gets a small distance, and values of faces that fill their frames differently do
    not compare. In the authors' evaluation script, where these lines are commented out, the mask holds the classes 2,
    4 to 13 and 15 of CelebAMask-HQ: skin, ears, brows, eyes, glasses, nose, mouth and lips, not hair or neck.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W), the face in the true picture; what is at least 0.5 counts.
        network: result of :func:`load_lpips`.

    Returns:
        (B,) at least 0.

    Raises:
        ConfigError: no mask, one of another shape, or an empty one. Others: see :func:`lpips_distance`.
    """
    face = binary_mask(mask, restored, "flpips")
    return lpips_distance(restored * face, target * face, net="vgg", network=network)


def _trunk(net: str) -> Trunk:
    if net not in TRUNKS:
        raise unknown_name("LPIPS trunk", net, TRUNKS)
    return TRUNKS[net]


def _fill_trunk(trunk: nn.Module, net: str) -> None:
    """Put torchvision's feature layers into lpips' slices; every layer must be found, and every feature used."""
    asset = TRUNKS[net].asset
    path = need_file(asset)
    state = read_checkpoint(path, get_it_again(asset))
    wanted = {key: re.sub(r"^slice\d+\.", "features.", key) for key in trunk.state_dict()}
    offered = {key for key in state if key.startswith("features.")}
    if set(wanted.values()) != offered:
        lost, spare = sorted(set(wanted.values()) - offered), sorted(offered - set(wanted.values()))
        raise WeightsError(
            f"{path} does not fit: missing {lost[:3]}, unknown {spare[:3]}; fetch torchvision's own: "
            f"`refbfr weights get {asset}`."
        )
    try:
        trunk.load_state_dict({key: state[source] for key, source in wanted.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit: {error}; fetch torchvision's own file.") from error
    warn_about_foreign(asset, path, file_sha256(path), "LPIPS")
