"""The ArcFace checkpoint that PGDiff guides with (and PDGrad, read that way): InsightFace's IResNet-50 on MS1MV3.

A bare state dictionary, as arcface_torch writes it. Any depth is taken: it follows from the names of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import WeightsError
from refbfr_core.weights.convert_arcface import convert_arcface_iresnet
from refbfr_core.weights.convert_strict import first_few
from refbfr_core.weights.published_ldm import Converted

_MARKS = ("prelu.weight", "layer1.0.bn1.weight", "features.weight")


def read_arcface(state: Mapping[str, Tensor], layout: object = None) -> Converted:
    """The embedder, float32 in eval mode, and the remark which depth it has; `layout` is not looked at.

    Raises
    ------
    WeightsError : names or shapes that are not an IResNet's, or values that are not finite; the message names the
        first few.
    """
    broken = [name for name, x in state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors hold NaN or infinity ({first_few(broken)}): the file is damaged. Download it again."
        )
    network = convert_arcface_iresnet(state)
    return Converted(network, None, None, (f"IResNet with {tuple(network.config.layers)} blocks",))


def looks_like_arcface(names: Mapping[str, Any]) -> bool:
    """Whether a state dictionary is that of an IResNet in arcface_torch's layout, damaged or not."""
    plain = {name.removeprefix("module.") for name in names}
    return sum(mark in plain for mark in _MARKS) >= 2
