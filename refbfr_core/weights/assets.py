"""Every public file that a table of the papers, a method or a metric needs, by name: the one place where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from refbfr_core.errors import unknown_name
from refbfr_core.weights.asset import Asset
from refbfr_core.weights.assets_metrics import METRIC_FILES
from refbfr_core.weights.assets_priors import PRIORS
from refbfr_core.weights.assets_restorers import RESTORERS

ASSETS: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in (*PRIORS, *RESTORERS, *METRIC_FILES)})
"""Every such file by name; read-only. What `refbfr weights get NAME` takes."""


def asset_entry(name: str) -> Asset:
    """The file called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in ASSETS:
        raise unknown_name("public file", name, ASSETS)
    return ASSETS[name]
