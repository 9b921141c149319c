"""The one line every notebook begins with: which profile, which seed, which machine, which versions."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.notebook.export import Picture, save_figure, versions, workbook_root
from refbfr_core.notebook.style import use_style

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

PROFILES = ("toy", "paper")


@dataclass(frozen=True)
class Session:
    """What a notebook run is made with; print it to see it. It holds settings only, no state that changes."""

    notebook: str
    profile: str
    seed: int
    device: torch.device

    def save(
        self,
        figure: Figure,
        name: str,
        *,
        alt: str,
        kind: str = "png",
        max_bytes: int = 80_000,
        **settings: object,
    ) -> Picture:
        """Export a figure with this notebook, its profile and its seed in the sidecar; see `save_figure`. Returns it
        for display.
        """
        return save_figure(
            figure,
            name,
            alt=alt,
            kind=kind,
            max_bytes=max_bytes,
            made_by=f"notebooks/{self.notebook}.ipynb",
            settings={"profile": self.profile, "seed": self.seed, **settings},
        )


def start(notebook: str, *, profile: str = "toy", seed: int = 0, device: str | None = None) -> Session:
    """Begin a notebook: check its parameters, choose the device, set the plot style, print what the run is made with.

    Parameters
    ----------
    notebook : name of the notebook without suffix, for example "03_diffusion_from_scratch".
    profile : "toy" (drawn faces, shipped networks) or "paper" (the published networks).
    seed : whole number ≥ 0 from which every random draw of the notebook is derived.
    device : None to choose (a GPU if there is one), or "cpu", "cuda", …

    Raises
    ------
    UnknownNameError : another profile. ConfigError : a seed that is not a whole number ≥ 0, or a device this machine
        lacks.
    """
    import torch

    from refbfr_core.devices import pick_device

    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed!r}; expected a whole number from 0 upwards.")
    chosen = pick_device(device)
    # A library that others bring along warns about kernels nobody here uses; the line would stand in every notebook.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    use_style()
    found = versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "diffusers") if name in found)
    lines = [
        f"refbfr_core {found['refbfr_core']}: {profile} profile, seed {seed}, "
        f"{chosen} with {torch.get_num_threads()} CPU threads",
        packages,
        f"time: {measured_time(notebook)}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return Session(notebook, profile, seed, chosen)


def measured_time(notebook: str, measured: str | Path | None = None) -> str:
    """Return how long the notebook took when it was last measured, in words.

    The number comes from `docs/measured.json` (key "notebooks", then the notebook's name: "seconds" and "machine"),
    which the run that executes the series writes; nobody types it.

    Raises
    ------
    ConfigError : the file is there but cannot be read as such.
    """
    root = workbook_root()
    path = Path(measured) if measured is not None else (root / "docs" / "measured.json" if root else None)
    if path is None or not path.is_file():
        return "not measured yet on any machine"
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get("notebooks", {}).get(notebook)
        if entry is None:
            return "not measured yet on any machine"
        return f"about {float(entry['seconds']):.0f} s when last measured ({entry['machine']})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error!r}); delete it and run the series again to measure anew."
        ) from error
