"""Scores of photographs that need no true picture, through pyiqa: NIQE and MUSIQ.

Both go up and down with what looks natural, not with what is right: sharpening improves NIQE, and a sharp face of
somebody else gets the best scores of all. They belong beside scores that compare with the truth.

pyiqa would download what it lacks the moment a score is made. Here its classes get the path of a file that is on this
machine, or numbers read from it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from refbfr_core.errors import ConfigError, ImageContractError, WeightsError, missing_extra
from refbfr_core.files import file_sha256
from refbfr_core.metrics.assets import (
    fill_network,
    get_it_again,
    need_file,
    read_checkpoint,
    warn_about_foreign,
)

NIQE_ASSET, MUSIQ_ASSET = "niqe-statistics", "musiq-koniq"
NIQE_PATCH = 96
"""Side of NIQE's patches in pixels. Two patches at least are needed for a covariance."""

_MUSIQ_LEAST = 32
_CHUNK = 4
_FEATURES = 36


def load_niqe(path: str | Path | None = None) -> nn.Module:
    """pyiqa's NIQE with the statistics of its authors' natural photographs; pass it as ``network=``.

    Args:
        path: niqe_modelparameters.mat; None looks where `refbfr_core.metrics.assets` says.

    Raises:
        WeightsError: the file is missing or holds something else. MissingExtraError: pyiqa is not installed.
    """
    file = need_file(NIQE_ASSET) if path is None else Path(path)
    try:
        from pyiqa.archs.niqe_arch import NIQE
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise missing_extra("pyiqa", "metrics", "the metric niqe") from error
    try:
        content = loadmat(file)
        shapes = content["mu_prisparam"].size, content["cov_prisparam"].shape
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise WeightsError(f"{file} holds no statistics of NIQE ({error}). {get_it_again(NIQE_ASSET)}") from error
    if shapes != (_FEATURES, (_FEATURES, _FEATURES)):
        raise WeightsError(f"{file} holds statistics of {shapes}, expected {_FEATURES} features of a patch.")
    return NIQE(pretrained_model_path=str(file)).eval()


def niqe(restored: Tensor, target: Tensor | None = None, network: nn.Module | None = None) -> Tensor:
    """NIQE (Mittal, Soundararajan, Bovik, IEEE SPL 2013) as pyiqa's "niqe" computes it.

    Luma of YIQ rounded to 8 bits, no border cut off, patches of 96 pixels (what does not fill one is left out), the
    statistics of the authors' 125 photographs, float64. BasicSR's NIQE, which VQFR's script calls, takes MATLAB's luma
    and has other numbers.

    Args:
        restored: (B, 3, H, W) in [0, 1], at least two patches large.
        target: not looked at.
        network: result of :func:`load_niqe`, to avoid loading it for every batch.

    Returns:
        (B,) float64, at least 0; lower is more natural.

    Raises:
        ImageContractError: pictures too small. WeightsError: see :func:`load_niqe`.
    """
    height, width = restored.shape[-2:]
    if (height // NIQE_PATCH) * (width // NIQE_PATCH) < 2:
        raise ImageContractError(
            f"niqe needs two patches of {NIQE_PATCH} x {NIQE_PATCH} pixels to estimate a covariance, got pictures of "
            f"{height} x {width}; for drawn faces of 128 pixels there is 'niqe-toy'."
        )
    network = load_niqe() if network is None else network
    # One by one: pyiqa's result of a single picture has no axis, and its memory grows with the batch.
    return torch.stack([network(picture[None]).reshape(()) for picture in restored])


def load_musiq(path: str | Path | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """pyiqa's MUSIQ with the weights trained on KonIQ-10k, in evaluation mode; pass it as ``network=``.

    Args:
        path: musiq_koniq_ckpt-e95806b9.pth; None looks where `refbfr_core.metrics.assets` says.
        device: where to put it.

    Raises:
        WeightsError: the file is missing, damaged or another network's. MissingExtraError: pyiqa is not installed.
    """
    file = need_file(MUSIQ_ASSET) if path is None else Path(path)
    try:
        from pyiqa.archs.musiq_arch import MUSIQ
    except ImportError as error:
        raise missing_extra("pyiqa", "metrics", "the metric musiq") from error
    cure = get_it_again(MUSIQ_ASSET)
    state = read_checkpoint(file, cure)
    with torch.random.fork_rng(devices=[]):
        network = MUSIQ(num_class=1, pretrained=False)
    fill_network(network, state, file, cure)
    warn_about_foreign(MUSIQ_ASSET, file, file_sha256(file), "MUSIQ")
    return network.to(device)


def musiq(restored: Tensor, target: Tensor | None = None, network: nn.Module | None = None) -> Tensor:
    """MUSIQ (Ke et al., ICCV 2021) as pyiqa's "musiq": trained on KonIQ-10k, RGB, at 224, 384 and the original size.

    Args:
        restored: (B, 3, H, W) in [0, 1].
        target: not looked at.
        network: result of :func:`load_musiq`, to avoid loading it for every batch.

    Returns:
        (B,), on KonIQ's scale of mean opinions, about 0 to 100; higher is better.

    Raises:
        ImageContractError: pictures smaller than one token. WeightsError: see :func:`load_musiq`.
        ConfigError: a network in training mode.
    """
    if min(restored.shape[-2:]) < _MUSIQ_LEAST:
        raise ImageContractError(
            f"musiq needs pictures of at least {_MUSIQ_LEAST} pixels, got {tuple(restored.shape[-2:])}; enlarge them."
        )
    network = load_musiq(device=restored.device) if network is None else network
    if network.training:
        raise ConfigError("the MUSIQ network is in training mode, in which it takes no pictures; call network.eval().")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        return torch.cat([network(chunk).flatten() for chunk in restored.split(_CHUNK)])
