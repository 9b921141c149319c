"""LPIPS: distance of deep features with learned channel weights (Zhang et al., 2018), through the lpips library.

The learned channel weights come with the library; the ImageNet trunk does not. It is looked for where torchvision keeps
its files and is never downloaded unasked.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, WeightsError, missing_extra, unknown_name
from refbfr_core.images import to_network

_CHUNK = 16


@dataclass(frozen=True)
class Trunk:
    """An ImageNet network LPIPS can stand on.

    Attributes:
        builder: name of the torchvision function that makes it.
        filename: torchvision's own file; the eight digits are the start of its SHA-256.
        least_side: smallest image side in pixels its poolings leave anything of.
    """

    builder: str
    filename: str
    least_side: int


TRUNKS: Mapping[str, Trunk] = MappingProxyType(
    {
        "vgg": Trunk("vgg16", "vgg16-397923af.pth", 16),
        "alex": Trunk("alexnet", "alexnet-owt-7be5be79.pth", 31),
        "squeeze": Trunk("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 17),
    }
)


def trunk_path(net: str) -> Path:
    """Where torchvision keeps the trunk's file: `hub/checkpoints` under TORCH_HOME (default ~/.cache/torch)."""
    if net not in TRUNKS:
        raise unknown_name("LPIPS trunk", net, TRUNKS)
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[net].filename


def missing_trunk(net: str) -> str | None:
    """What has to be fetched before LPIPS with this trunk works here, or None."""
    path = trunk_path(net)
    if path.is_file():
        return None
    builder = TRUNKS[net].builder
    here = [other for other in TRUNKS if trunk_path(other).is_file()]
    instead = f" Here already: net={here[0]!r}, but its numbers are not comparable with {net!r}." if here else ""
    return (
        f"LPIPS ({net}) needs the ImageNet trunk {path.name}, which is not in {path.parent}. Fetch it once while "
        f"online: python -c \"import torchvision; torchvision.models.{builder}(weights='IMAGENET1K_V1')\" , "
        f"or copy the file there.{instead}"
    )


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
    _fill_trunk(network.net, trunk_path(net))
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


def _fill_trunk(trunk: nn.Module, path: Path) -> None:
    """Put torchvision's feature layers into lpips' slices; every layer must be found, and every feature used."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); delete it and fetch it again.") from error
    wanted = {key: re.sub(r"^slice\d+\.", "features.", key) for key in trunk.state_dict()}
    offered = {key for key in state if key.startswith("features.")}
    if set(wanted.values()) != offered:
        lost, spare = sorted(set(wanted.values()) - offered), sorted(offered - set(wanted.values()))
        raise WeightsError(
            f"{path} does not fit: missing {lost[:3]}, unknown {spare[:3]}; fetch torchvision's own file."
        )
    try:
        trunk.load_state_dict({key: state[source] for key, source in wanted.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit: {error}; fetch torchvision's own file.") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem.rsplit("-", 1)[-1]):
        warnings.warn(
            f"{path.name} is not the file its name promises (SHA-256 {digest[:8]}…): LPIPS will be close to, "
            "not equal to, the official value.",
            stacklevel=4,
        )
