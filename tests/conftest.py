"""What every test runs under: no network, one thread, fixed seeds, and the shared reference folder if there is one."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

_OFFLINE = Path(__file__).parent / "offline"
# Before any other import: the guard must be in place when libraries make their first connection, and in every Python
# started by a test.
sys.path.insert(0, str(_OFFLINE))
os.environ["PYTHONPATH"] = os.pathsep.join([str(_OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "MPLBACKEND": "Agg"})

# Whatever the person at this machine has imported must not change a result.
os.environ["REFBFR_WEIGHTS"] = str(Path(__file__).parent / "no-imported-weights")

import socket_guard  # noqa: E402

socket_guard.install()

import numpy as np  # noqa: E402
import torch  # noqa: E402

# The same bytes on every machine type matter more here than speed, and tests of a shared machine must not fight over
# cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Start every test from the same random state, so that none depends on which ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test still draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference arrays and photographs named by REFBFR_SHARED.

    Tests that need it are skipped, visibly, without it.
    """
    place = os.environ.get("REFBFR_SHARED")
    if not place:
        pytest.skip("REFBFR_SHARED is not set: the reference arrays and photographs are not on this machine")
    folder = Path(place)
    if not folder.is_dir():
        pytest.fail(f"REFBFR_SHARED names {folder}, which is not a folder")
    return folder
