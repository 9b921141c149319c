"""What a training leaves on disk besides its result: checkpoints that cannot be half-written, and a log of one JSON a
line."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from refbfr_core.errors import CacheError, ConfigError
from refbfr_core.files import atomic_path, output_error

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
# Values that may differ between a checkpoint and the run that continues it; everything else must be the same.
MAY_CHANGE = {
    "steps",
    "lr",
    "lr_schedule",
    "cooldown",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "ema",
    "val_people",
}


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder/checkpoint.pt`` in one step; the older checkpoint stays until the new one is
    whole."""
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises
    ------
    ConfigError : there is none. CacheError : the file is truncated or not a checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ConfigError(f"there is nothing to resume in {folder}: {CHECKPOINT} is missing. Start without resume.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CacheError(f"{path} cannot be read ({error}); delete it and start again.") from error


def check_same_recipe(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ConfigError when a checkpoint was made by a recipe that would not continue the same training."""
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if refused := [key for key in differing if key not in MAY_CHANGE]:
        changes = ", ".join(f"{key}: {found.get(key)!r} then, {wanted.get(key)!r} now" for key in refused)
        raise ConfigError(
            f"the checkpoint was made by another recipe ({changes}); use the same values or another --out."
        )


class RunLog:
    """Appends one JSON object a line to ``folder/log.jsonl``; does nothing on processes other than the first."""

    def __init__(self, folder: Path, active: bool) -> None:
        self.path, self.active = folder / LOG, active

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time of day (seconds since 1970)."""
        if not self.active:
            return
        line = json.dumps({"event": event, "time": round(time.time(), 2), **values})
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise output_error(self.path, error) from error


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """All events of a run, oldest first; a last line cut off by a kill is left out."""
    events = []
    for line in (Path(folder) / LOG).read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def hardware(processes: int, device: torch.device) -> dict[str, Any]:
    """What the training runs on, for the log and the card."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "processes": processes,
        "threads_per_process": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "accelerate": version("accelerate"),
    }


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
