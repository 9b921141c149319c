"""Network weights: what ships, how it is checked, how it is written, and how the authors' own files are converted.

`load_network(name)` gives a ready network from a checked folder, `save_network(...)` writes such a folder, `NETWORKS`
lists what the package knows. `import_published(files, ...)` makes the paper profile's networks of the files that the
authors publish; the `convert` module turns their layouts into networks.
"""

from __future__ import annotations

import importlib

_EXPORTS = {
    "ASSETS": "assets",
    "Asset": "asset",
    "asset_entry": "assets",
    "asset_path": "asset_store",
    "asset_state": "asset_store",
    "fetch_asset": "fetch",
    "NETWORKS": "registry",
    "PROFILES": "registry",
    "NetworkEntry": "registry",
    "PAPER_FILES": "paper_files",
    "PaperFile": "paper_files",
    "paper_file": "paper_files",
    "network_entry": "registry",
    "load_network": "store",
    "network_folder": "places",
    "save_network": "store",
    "read_card": "store",
    "verify_network": "store",
    "weights_digest": "store",
    "shipped_root": "places",
    "published_root": "places",
    "import_published": "published_import",
    "imported_from": "published_import",
    "load_onnx_recognition": "onnx_recognition",
    "stable_diffusion_folder": "stable_diffusion",
}
_MODULES = (
    *("asset", "asset_import", "asset_store", "assets", "assets_metrics", "assets_priors", "assets_restorers"),
    *("download", "fetch", "hub"),
    *("card", "convert", "diffusers_folder", "network_classes", "onnx_recognition", "paper_files"),
    *("places", "registry", "sources", "store"),
    *("published_adm", "published_files", "published_import", "published_ldbfr", "published_ldm", "published_sample"),
    "stable_diffusion",
)

__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_MODULES})
