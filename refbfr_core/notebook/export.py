"""Figures with provenance: every exported picture has alternative text and a JSON file beside it that says what made
it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError, OutputError, unknown_name
from refbfr_core.files import write_bytes, write_text
from refbfr_core.notebook.encoding import base64_text, png_bytes, require_alt

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

FIGURES_VARIABLE = "REFBFR_FIGURES"
_RESOLUTIONS = (100, 88, 76, 64, 52)
_KINDS = {"png": "image/png", "jpg": "image/jpeg"}
_PACKAGES = ("refbfr_core", "torch", "diffusers", "numpy", "matplotlib", "pillow", "opencv-python-headless")


@dataclass(frozen=True, repr=False)
class Picture:
    """An encoded figure that shows itself, with its alternative text, when it is the last value of a cell."""

    data: bytes
    kind: str
    alt: str
    path: Path | None = None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        mime = _KINDS[self.kind]
        return {mime: base64_text(self.data), "text/plain": self.alt}, {mime: {"alt": self.alt}}

    def __repr__(self) -> str:
        where = f", saved as {self.path.name}" if self.path else ""
        return f"Picture({len(self.data)} bytes of {self.kind}{where}: {self.alt})"


def show(figure: Figure, *, alt: str, kind: str = "png", max_bytes: int = 80_000) -> Picture:
    """Return a matplotlib figure as a small picture with alternative text, for display only.

    Parameters
    ----------
    figure : for example from `image_grid` or `blank_figure`.
    alt : one sentence for readers who do not see the picture.
    kind : "png" for plots, "jpg" for grids of faces, which are several times smaller that way.
    max_bytes : bound on the encoded size; the resolution is lowered step by step (100 to 52 dots per inch) to keep it.

    Raises
    ------
    ConfigError : no usable alternative text, or no resolution fits. UnknownNameError : another kind.
    """
    return Picture(_encode(figure, kind, max_bytes), kind, require_alt(alt, "a figure"))


def save_figure(
    figure: Figure,
    name: str,
    *,
    alt: str,
    made_by: str,
    settings: Mapping[str, object],
    kind: str = "png",
    folder: str | Path | None = None,
    max_bytes: int = 80_000,
) -> Picture:
    """Write a figure and its provenance, and return it for display.

    Two files appear: `<name>.png` (or `.jpg`) and `<name>.json` with the alternative text, what made the figure, the
    settings (seeds among them), the versions of the packages, and the SHA-256 of the picture. Nothing in it depends
    on git, the clock or the machine's name.

    Parameters
    ----------
    figure, alt, kind, max_bytes : as for `show`.
    name : small letters, digits, "-" and "_"; the name of the files without suffix.
    made_by : the notebook or command that made it, for example "notebooks/03_diffusion_from_scratch.ipynb".
    settings : everything needed to make it again, as values JSON can hold.
    folder : where to write; None for the folder `figures_folder` names.

    Raises
    ------
    ConfigError : a bad name, missing text, settings JSON cannot hold. OutputError (DiskFullError) : the folder is
        read-only (the disk is full); then neither file is left half-written, nor a picture without its provenance.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ConfigError(f"figure name {name!r}; use small letters, digits, '-' and '_', for example 'schedule_toy'.")
    if not isinstance(made_by, str) or not made_by.strip():
        raise ConfigError(f"made_by={made_by!r}; name the notebook or command that makes this figure.")
    text = require_alt(alt, f"figure {name!r}")
    data = _encode(figure, kind, max_bytes)
    target = Path(folder) if folder is not None else figures_folder()
    picture_path, sidecar_path = target / f"{name}.{kind}", target / f"{name}.json"
    sidecar = {
        "figure": picture_path.name,
        "alt": text,
        "made_by": made_by,
        "settings": dict(settings),
        "versions": versions(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    record = _as_json(sidecar, name)
    write_bytes(picture_path, data)
    try:
        write_text(sidecar_path, record)
    except OutputError:
        picture_path.unlink(missing_ok=True)
        raise
    return Picture(data, kind, text, picture_path)


def figures_folder(start: str | Path | None = None) -> Path:
    """Return where figures go: the folder in the environment variable REFBFR_FIGURES, else `figures/` of the
    workbook around `start`.

    `start` is the current folder by default. Outside the workbook it is `figures` below `start`.
    """
    chosen = os.environ.get(FIGURES_VARIABLE)
    if chosen:
        return Path(chosen)
    root = workbook_root(start)
    return (root if root is not None else Path(start or Path.cwd())) / "figures"


def workbook_root(start: str | Path | None = None) -> Path | None:
    """Return the top folder of the workbook that contains `start` (the current folder by default), or None outside
    of it.
    """
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        project = folder / "pyproject.toml"
        if project.is_file() and 'name = "refbfr_core"' in project.read_text(encoding="utf-8"):
            return folder
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a figure depends on, without importing them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package == "refbfr_core":  # running from a source tree that is not installed
                from refbfr_core import __version__

                found[package] = __version__
    return found


def _encode(figure: Figure, kind: str, max_bytes: int) -> bytes:
    from PIL import Image

    if kind not in _KINDS:
        raise unknown_name("figure kind", kind, _KINDS)
    size = 0
    for resolution in _RESOLUTIONS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=resolution, facecolor="white")
        drawn = Image.open(buffer).convert("RGB")
        data = png_bytes(drawn, full_colour_up_to=0) if kind == "png" else _jpeg(drawn)
        size = len(data)
        if size <= max_bytes:
            return data
    raise ConfigError(
        f"the figure takes {size:,} bytes at {_RESOLUTIONS[-1]} dots per inch, more than max_bytes={max_bytes:,}. "
        "Use kind='jpg' for pictures, draw fewer cells, or raise max_bytes."
    )


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=84)
    return buffer.getvalue()


def _as_json(sidecar: dict, name: str) -> str:
    try:
        return json.dumps(sidecar, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the settings of figure {name!r} cannot be written as JSON ({error}); "
            "pass plain numbers, texts, lists and dictionaries."
        ) from error
