"""Coarse restorers: y_c = f(y), the first guess that PDGrad (eq. 7) and DifFace diffuse, and PDGrad keeps in mind.

A coarse restorer is anything that takes pictures (B, 3, H, W) in [-1, 1] and gives as many of the same size back. It
should bring colour and shape; who the person is may get lost, the reference is there for that.

    restore = named_coarse("network")               # the small one that ships
    restore = named_coarse("codeformer.pth")        # a file of somebody else, see `refbfr_core.pipelines.coarse_files`
    y_c = coarse_picture(restore, to_network(lq))

`coarse_picture` is the one place that calls one and looks at what came back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from refbfr_core.diffusion import NonFiniteError
from refbfr_core.errors import ConfigError, ImageContractError, unknown_name
from refbfr_core.images import from_network, to_network
from refbfr_core.pipelines.base import evaluating

COARSE_NETWORK = "coarse"
"""The name in `refbfr_core.weights.NETWORKS` of the small restorer that ships."""

COARSE_NAMES = ("network", "none", "refldm", "dcvqr")
"""What `named_coarse` knows by name; anything else has to be a file or a callable."""

_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_SLACK = 1e-4
# Networks ring at edges, and clamping that loses nothing. Twice the range cannot come from ringing.
_RINGING = 0.1
_MOST = 2.0
# Below mid-grey by this much counts as dark, and so much of the input has to be dark before its absence is noticed.
_DARK, _DARK_SHARE = -0.2, 0.1


@runtime_checkable
class CoarseRestorer(Protocol):
    """A callable: (B, 3, H, W) float32 RGB in [-1, 1] in, the same out.

    It has to be deterministic, and to treat every image of a batch as if it came alone. It is called without gradients.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """The restored pictures."""


class CoarseRangeWarning(UserWarning):
    """A coarse restorer's values look as if they belonged to another range than [-1, 1]."""


def coarse_picture(restorer: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """y_c = f(y) (PDGrad, eq. 7), checked.

    Parameters
    ----------
    restorer : a `CoarseRestorer`; a `torch.nn.Module` runs in evaluation mode and gets its own mode back.
    images : (B, 3, H, W) float32 in [-1, 1].

    Returns
    -------
    (B, 3, H, W) float32 in [-1, 1] on the device of `images`: a new tensor without gradient, usable in a loss.

    Raises
    ------
    ImageContractError : `images`, or what came back, has another type, shape or range. NonFiniteError : NaN or infinity
    came back. Values that overshoot are clamped, with a `CoarseRangeWarning` when it is more than ringing; the same
    warning says when a result looks as if it were in [0, 1].
    """
    _check_network_images(images)
    mode = evaluating(restorer) if isinstance(restorer, nn.Module) else nullcontext()
    with torch.no_grad(), mode:
        # A copy: some networks work in place, and the degraded picture is needed afterwards.
        result = restorer(images.detach().clone())
    name = coarse_title(restorer)
    if not isinstance(result, Tensor) or not result.is_floating_point():
        came = f"{result.dtype} values" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ImageContractError(
            f"the coarse restorer {name} returned {came}, expected floating-point pictures in [-1, 1]: wrap it in a "
            "function that returns the picture only."
        )
    if result.shape != images.shape:
        raise ImageContractError(
            f"the coarse restorer {name} returned {tuple(result.shape)} for pictures of {tuple(images.shape)}, the "
            "same shape is expected: resize or pad inside the restorer."
        )
    # Outside of the restorer's own inference mode this makes an ordinary tensor, which a loss may save for backward.
    return _in_range(result.to(images.device, torch.float32), images, name).clamp(-1.0, 1.0)


def coarse_title(restorer: object) -> str:
    """What to call a restorer in settings and messages: its `title` where it has one, else its name."""
    for attribute in ("title", "__qualname__"):
        if isinstance(text := getattr(restorer, attribute, None), str):
            return text
    return type(restorer).__name__


def blurry_restorer(images: Tensor) -> Tensor:
    """No restorer at all: y_c = y, for ablations. (B, 3, H, W) in, the same tensor out."""
    return images


blurry_restorer.title = "none (the degraded picture itself)"


class NetworkRestorer:
    """A network of this package with a method ``restore(images) -> images`` in [-1, 1] as a coarse restorer.

    Raises
    ------
    ConfigError : the network has no such method.
    """

    def __init__(self, network: nn.Module) -> None:
        if not callable(getattr(network, "restore", None)):
            raise ConfigError(
                f"a {type(network).__name__} has no method restore(images); pass a function that takes and returns "
                "pictures in [-1, 1]."
            )
        self.network = network
        self.title = f"network {type(network).__name__}"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] in, the same out, computed where the network is."""
        place = next(self.network.parameters()).device
        with evaluating(self.network):
            return self.network.restore(images.to(place))

    def __repr__(self) -> str:
        return f"NetworkRestorer({type(self.network).__name__})"


class PipelineRestorer:
    """One of this package's pipelines, called without references, as a coarse restorer.

    Every image starts from the noise of the same `seed`, so that it comes out alike alone and in any batch.

    Parameters
    ----------
    pipe : a pipeline with the common call ``pipe(lq, seed=...)``.
    seed : of the noise of every image.
    call : further keywords of each call, such as ``num_inference_steps=5``.

    Raises
    ------
    ConfigError : `call` brings references or seeds of its own.
    """

    def __init__(self, pipe: Any, *, seed: int = 0, **call: Any) -> None:
        if forbidden := {"references", "reference_mask", "generator", "lq"} & call.keys():
            raise ConfigError(
                f"{', '.join(sorted(forbidden))} cannot be set here: a coarse restorer sees the degraded picture only, "
                "and its noise comes from seed=..."
            )
        self.pipe, self.seed, self.call = pipe, seed, dict(call)
        self.title = f"pipeline {type(pipe).__name__} without references"

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] in, the same out; raises what the pipeline raises, for another size for example."""
        result = self.pipe(from_network(images), seed=[self.seed] * len(images), **self.call)
        return to_network(result.images)

    def __repr__(self) -> str:
        return f"PipelineRestorer({type(self.pipe).__name__}, seed={self.seed}, {self.call})"


def named_coarse(
    choice: str | Path | Callable[[Tensor], Tensor],
    *,
    profile: str = "toy",
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    weight: float = 0.5,
    **call: Any,
) -> CoarseRestorer:
    """A coarse restorer by name, from a file, or the callable itself.

    Parameters
    ----------
    choice : "network" (the small one that ships), "none" (the degraded picture itself), "refldm" (ReF-LDM without
        references), "dcvqr" (stage 1 of LD-BFR), a path to somebody else's restorer (see
        `refbfr_core.pipelines.coarse_files`), or any callable.
    profile, root : of the networks, as in `refbfr_core.weights.load_network`, for all that is known by name.
    device : where it computes; None picks the first GPU, else the CPU.
    weight : CodeFormer's w, 0 (quality) to 1 (fidelity); other files have none.
    call : keywords of ReF-LDM's call, for "refldm" only.

    Raises
    ------
    UnknownNameError : no such name, and no file of that name. WeightsError : weights that are missing or damaged.
    ConfigError : keywords for a restorer that takes none. MissingExtraError : the library for such files is missing.
    """
    if call and choice != "refldm":
        raise ConfigError(f"{', '.join(sorted(call))} is meant for 'refldm' only, but {choice!r} was chosen.")
    if not isinstance(choice, (str, Path)):
        if callable(choice):
            return choice
        raise ConfigError(
            f"a {type(choice).__name__} is no coarse restorer; expected one of {', '.join(COARSE_NAMES)}, a path or a "
            "callable."
        )
    if choice == "none":
        return blurry_restorer
    if choice == "network":
        from refbfr_core.weights import load_network

        return NetworkRestorer(load_network(COARSE_NETWORK, profile, device, root=root))
    if choice == "refldm":
        from refbfr_core.pipelines.registry import load_pipeline

        return PipelineRestorer(load_pipeline("refldm", profile, device, root=root), **call)
    if choice == "dcvqr":
        from refbfr_core.pipelines.dcvqr import DCVQRRestorer
        from refbfr_core.pipelines.registry import ldbfr_networks

        return DCVQRRestorer(**ldbfr_networks(profile, root, device, vqc="ldbfr-vqc", restorer="ldbfr-restorer"))
    path = Path(choice).expanduser()
    if isinstance(choice, Path) or path.is_file() or path.suffix.lower() in _FILE_SUFFIXES or path.name != choice:
        from refbfr_core.pipelines.coarse_files import spandrel_restorer

        return spandrel_restorer(path, device, weight=weight)
    raise unknown_name("coarse restorer", choice, [*COARSE_NAMES, "<path to a file>"])


def _check_network_images(images: Any) -> None:
    """Raises `ImageContractError` unless `images` are float32 (B, 3, H, W) in [-1, 1]."""
    expected = "expected a float32 tensor (B, 3, H, W) in [-1, 1]"
    cure = "convert pictures in [0, 1] with refbfr_core.images.to_network(lq)."
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        came = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise ImageContractError(f"images for the coarse restorer are {came}, {expected}: {cure}")
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ImageContractError(
            f"images for the coarse restorer have the shape {tuple(images.shape)}, {expected}: a single picture "
            "(3, H, W) becomes images[None]."
        )
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= -1.0 - _SLACK and high <= 1.0 + _SLACK):
        raise ImageContractError(
            f"images for the coarse restorer lie in [{low:.4g}, {high:.4g}], expected [-1, 1]: {cure}"
        )


def _in_range(result: Tensor, images: Tensor, name: str) -> Tensor:
    """`result` unless its values are no picture in [-1, 1]; warns when they are doubtful."""
    finite = torch.isfinite(result).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"the coarse restorer {name} returned NaN or infinity for image(s) "
            f"{(~finite).nonzero().flatten().tolist()}: its weights are damaged or overflow. Run it in float32."
        )
    low, high = (float(value) for value in torch.aminmax(result))
    if max(-low, high) > _MOST:
        raise ImageContractError(
            f"the coarse restorer {name} returned values in [{low:.4g}, {high:.4g}], expected [-1, 1]: convert what it "
            "returns, for example 0…255 with x / 127.5 - 1."
        )
    if max(-low, high) > 1.0 + _RINGING:
        share = float((result.abs() > 1.0).float().mean())
        warnings.warn(
            f"the coarse restorer {name} returned values in [{low:.3f}, {high:.3f}], {share:.1%} of them outside "
            "[-1, 1]; they are clamped. Check the range it expects.",
            CoarseRangeWarning,
            stacklevel=3,
        )
    dark = (images < _DARK).flatten(1).float().mean(dim=1) > _DARK_SHARE
    lost = dark & (result.flatten(1).min(dim=1).values >= -_SLACK).to(dark.device)
    if bool(lost.any()):
        warnings.warn(
            f"the coarse restorer {name} returned nothing below 0 for dark image(s) {lost.nonzero().flatten().tolist()}"
            ": that looks like [0, 1]. Convert with refbfr_core.images.to_network, if so.",
            CoarseRangeWarning,
            stacklevel=3,
        )
    return result
