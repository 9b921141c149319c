"""Coarse restorers from files of other people, read through spandrel (extra "baselines"): GFPGAN, SwinIR, CodeFormer…

**Which range a network sees.** spandrel promises [0, 1] in and out, and for most architectures keeps it: SwinIR and
the like work in [0, 1], RestoreFormer's descriptor converts. GFPGAN's and CodeFormer's descriptors hand the picture
over as it is and cut what comes back to [0, 1], although both networks were trained on [-1, 1]: whoever follows the
promise gets a washed-out input and loses everything darker than mid-grey. So these two are called directly, in
[-1, 1]. (Read in and run with spandrel 0.4.2 and spandrel_extra_arches 0.2.0.)

A file is read as tensors only: nothing in it is run, and every name and shape has to fit the network.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, ImageContractError, WeightsError, missing_extra, unknown_name
from refbfr_core.images import from_network, to_network
from refbfr_core.weights.published_files import file_digest, read_checkpoint

if TYPE_CHECKING:
    from spandrel import ArchRegistry

FACE_RESOLUTION = 512
"""Side of the aligned faces that GFPGAN, RestoreFormer and CodeFormer were trained on."""

CODEFORMER_WEIGHT = 0.5
"""CodeFormer's w where nobody says otherwise, as in its authors' script; PDGrad does not give the one it used."""

RESIZES = ("before", "after")
"""Ways to keep the size of a picture with a network that enlarges, see `spandrel_restorer`."""

_CODEFORMER_KEYS = ("idx_pred_layer.1.weight", "quantize.embedding.weight", "fuse_convs_dict.32.scale.0.weight")
# The first bytes of a checkpoint written before PyTorch 1.6; many published files still are of that kind.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, AttributeError, TypeError, ValueError)


@dataclass(frozen=True)
class FileRestorer:
    """A network that spandrel recognised in a file, as a coarse restorer.

    Attributes
    ----------
    architecture : spandrel's name for it.
    path, sha256 : the file it came from.
    face : whether it restores aligned faces of 512 px only.
    weight : CodeFormer's w; None for everything else.
    model : the network, float32, in evaluation mode, frozen.
    run : one image (1, 3, H, W) in [-1, 1] to one image, by whatever range and call the network wants.
    """

    architecture: str
    path: Path
    sha256: str
    face: bool
    weight: float | None
    model: nn.Module = field(repr=False)
    run: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def title(self) -> str:
        """What to print under a figure."""
        weight = "" if self.weight is None else f", w = {self.weight:g}"
        return f"{self.architecture} ({self.path.name}, SHA-256 {self.sha256[:12]}{weight})"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] in, the same out, clamped; one image at a time, where the network is.

        Raises
        ------
        ImageContractError : a face restorer got another size than 512 × 512.
        """
        if self.face and images.shape[-2:] != (FACE_RESOLUTION, FACE_RESOLUTION):
            height, width = images.shape[-2:]
            raise ImageContractError(
                f"{self.architecture} restores aligned faces of {FACE_RESOLUTION}×{FACE_RESOLUTION}, but "
                f"{height}×{width} came: align and resize first, or take named_coarse('network')."
            )
        place = next(self.model.parameters()).device
        with torch.no_grad():
            rows = [self.run(row.to(place, torch.float32)) for row in images.split(1)]
        return torch.cat(rows).clamp(-1.0, 1.0).to(images.device)


def spandrel_restorer(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    weight: float = CODEFORMER_WEIGHT,
    resize: str | None = None,
) -> FileRestorer:
    """A restorer from a file of any architecture that spandrel recognises, as a coarse restorer in [-1, 1].

    Parameters
    ----------
    path : the authors' file, as downloaded (.pth, .ckpt, .pt or .safetensors).
    device : where it computes; None picks the first GPU, else the CPU. Always float32: these networks overflow in half
        precision.
    weight : CodeFormer's w, 0 (quality) to 1 (fidelity); files of another architecture take no notice of it.
    resize : for a network that enlarges, how the size is kept: "before" reduces the picture first by the same factor,
        "after" reduces the result; area average each. None refuses such a network.

    Raises
    ------
    WeightsError : the file is missing, truncated or damaged, wants to run code, is of no known architecture, or does
    not fit its own architecture. ConfigError : the network is no restorer that keeps size and three channels, or
    `weight` lies outside [0, 1]. UnknownNameError : another `resize`. MissingExtraError : spandrel is not installed,
    or, for a CodeFormer file, spandrel_extra_arches.
    """
    if not 0.0 <= weight <= 1.0:
        raise ConfigError(f"weight={weight} of CodeFormer lies outside [0, 1]; its authors' default is 0.5.")
    if resize not in (None, *RESIZES):
        raise unknown_name("resize", resize, RESIZES)
    path = Path(path).expanduser()
    registry = _registry()
    state = _state_of(path)
    descriptor = _recognise(state, path, registry)
    _check_usable(descriptor, path, resize)
    model = descriptor.model.to(pick_device(device), torch.float32).eval().requires_grad_(False)
    name = str(descriptor.architecture.id)
    return FileRestorer(
        model=model,
        architecture=name,
        path=path,
        sha256=file_digest(path),
        face=descriptor.purpose == "FaceSR",
        weight=weight if name == "CodeFormer" else None,
        run=_RAW[name](model, weight) if name in _RAW else _by_descriptor(descriptor, resize),
    )


def codeformer_restorer(
    path: str | Path, device: str | torch.device | None = None, *, weight: float = CODEFORMER_WEIGHT
) -> FileRestorer:
    """CodeFormer (Zhou et al., NeurIPS 2022), the f of PDGrad's experiments, from its authors' `codeformer.pth`.

    Its codes come from an argmax: there is no gradient to the picture, and none is asked for here.

    Parameters and errors as in `spandrel_restorer`; a file of another architecture is a `WeightsError` too.
    """
    restorer = spandrel_restorer(path, device, weight=weight)
    if restorer.architecture != "CodeFormer":
        raise WeightsError(
            f"{restorer.path} holds a {restorer.architecture}, not CodeFormer; take codeformer.pth from "
            "https://github.com/sczhou/CodeFormer/releases/tag/v0.1.0, or call spandrel_restorer."
        )
    return restorer


def _raw_codeformer(model: nn.Module, weight: float) -> Callable[[Tensor], Tensor]:
    """The network itself, with w: the descriptor would fix it at 0.5 besides mistaking the range."""
    return lambda images: model(images, weight=weight)[0]


def _raw_gfpgan(model: nn.Module, weight: float) -> Callable[[Tensor], Tensor]:
    """The network itself, with the noise maps of its file: the descriptor would draw new ones at every call."""
    return lambda images: model(images, return_rgb=False, randomize_noise=False)[0]


# Networks trained on [-1, 1] whose descriptor does not convert.
_RAW = MappingProxyType({"CodeFormer": _raw_codeformer, "GFPGAN": _raw_gfpgan})


def _by_descriptor(descriptor: Any, resize: str | None) -> Callable[[Tensor], Tensor]:
    """The library's own call, [0, 1] in and out; it pads to the sizes the network can take and cuts back."""
    scale = descriptor.scale

    def run(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if scale > 1 and (height % scale or width % scale):
            raise ImageContractError(
                f"{descriptor.architecture.id} enlarges {scale} times, but {height}×{width} came: use sides that are "
                f"multiples of {scale}."
            )
        small = nn.functional.avg_pool2d(images, scale) if resize == "before" else images
        large = to_network(descriptor(from_network(small)).clamp(0.0, 1.0))
        return nn.functional.avg_pool2d(large, scale) if resize == "after" else large

    return run


def _registry() -> ArchRegistry:
    """spandrel's architectures and, where installed, the extra ones; the library's own registry stays as it is."""
    try:
        from spandrel import MAIN_REGISTRY
    except ImportError as error:
        raise missing_extra("spandrel", "baselines", "a coarse restorer from a file") from error
    registry = MAIN_REGISTRY.copy()
    if _extra_installed():
        from spandrel_extra_arches import EXTRA_REGISTRY

        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _extra_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("spandrel_extra_arches") is not None


def _state_of(path: Path) -> dict[str, Any]:
    """The tensors of a file, under the names and in the nesting it has. Raises `WeightsError`."""
    if path.is_file():
        if path.suffix.lower() == ".safetensors":
            return _safetensors(path)
        with path.open("rb") as stream:
            legacy = stream.read(len(_LEGACY)) == _LEGACY
        if legacy:
            return _legacy_checkpoint(path)
    return read_checkpoint(path)


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is truncated or no safetensors file ({error}). Download it again.") from error


def _legacy_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint in the format before PyTorch 1.6, by the restricted reader: tensors and plain containers only."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise WeightsError(
            f"{path} is truncated, damaged, or holds more than tensors ({reason[0][:200]}). Nothing in it was run. "
            "Download it again from its owners' page."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors; take another file.")
    return dict(content)


def _recognise(state: dict[str, Any], path: Path, registry: ArchRegistry) -> Any:
    """The descriptor of the network in `state`; every name and shape has to fit. Raises `WeightsError`."""
    from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict

    tensors = canonicalize_state_dict(state)
    if not _extra_installed() and all(key in tensors for key in _CODEFORMER_KEYS):
        raise missing_extra("spandrel_extra_arches", "baselines", "CodeFormer")
    try:
        # Networks draw their first values before the file's replace them; the caller's random stream must not notice.
        with torch.random.fork_rng(devices=[]):
            return ModelLoader(device="cpu", registry=registry).load_from_state_dict(tensors)
    except UnsupportedModelError as error:
        known = ", ".join(sorted(str(entry.architecture.id) for entry in registry))
        extra = "" if _extra_installed() else " More with pip install 'refbfr_core[baselines]'."
        raise WeightsError(
            f"{path} holds {len(tensors)} entries of no architecture that spandrel knows ({known}).{extra} Take a "
            "restorer's own file, or pass a callable."
        ) from error
    except (*_UNREADABLE, AssertionError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{path} looks like a known architecture, but its tensors do not fit it ({type(error).__name__}: {reason})."
            " Take the owners' file unchanged."
        ) from error


def _check_usable(descriptor: Any, path: Path, resize: str | None = None) -> None:
    """Raises `ConfigError` unless the network maps RGB to RGB, and keeps the size or has a `resize` that does."""
    name = descriptor.architecture.id
    if descriptor.purpose == "Inpainting":
        raise ConfigError(f"{path} is the inpainting network {name}, which needs a mask; take a restorer's file.")
    if descriptor.scale != 1 and resize is None:
        raise ConfigError(
            f"{path} is a {name} that enlarges {descriptor.scale} times; a coarse restorer keeps the size. Say "
            "resize='before' or resize='after', or take a restorer's file."
        )
    channels = descriptor.input_channels, descriptor.output_channels
    if channels != (3, 3):
        raise ConfigError(
            f"{path} is a {name} from {channels[0]} to {channels[1]} channels; pictures here have three. Take a file "
            "for colour pictures."
        )
