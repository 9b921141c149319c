"""One place that decides where tensors live and in which precision."""

from __future__ import annotations

import torch

from refbfr_core.errors import ConfigError, unknown_name

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to work on: the one asked for, else the first GPU, else the CPU.

    Parameters
    ----------
    device : None to choose, or anything `torch.device` accepts ("cpu", "cuda", "cuda:1", "mps").

    Raises
    ------
    ConfigError : the text is not a device, or this machine does not have it. There is no silent fall-back to the CPU: a
        run that was meant for a GPU should not take a hundred times longer without a word.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{device!r} is not a device; use 'cpu', 'cuda', 'cuda:0' or None to let the package choose."
        ) from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ConfigError(
                f"device {device!r} was asked for, but PyTorch sees {count} CUDA device(s) here; use device='cpu' or "
                "None."
            )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {device!r} was asked for, but PyTorch sees no MPS device here; use device='cpu' or None."
        )
    return chosen


def pick_dtype(device: str | torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """Return the floating-point type networks use on `device`.

    Parameters
    ----------
    device : where the network runs.
    dtype : None for float32, the type all published numbers and tests here refer to; "fast" for bfloat16 where a GPU
        computes in it natively and float32 elsewhere; or one of "float32", "bfloat16", "float16" (or the torch types of
        these names).

    Raises
    ------
    UnknownNameError : another name. ConfigError : float16 on the CPU, where most layers have no such kernel, or another
        torch type.
    """
    place = torch.device(device)
    if dtype is None:
        return torch.float32
    if dtype == "fast":
        return torch.bfloat16 if place.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise unknown_name("dtype", dtype, [*_DTYPES, "fast"])
        dtype = _DTYPES[dtype]
    if dtype not in _DTYPES.values():
        raise ConfigError(f"dtype {dtype} is not a type networks here run in; use float32, bfloat16 or float16.")
    if dtype is torch.float16 and place.type == "cpu":
        raise ConfigError(
            "float16 was asked for on the CPU, which lacks kernels for it; use float32 (the default) or bfloat16."
        )
    return dtype
