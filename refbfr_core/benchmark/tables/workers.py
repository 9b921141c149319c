"""Several processes on one table: who does what, and how everybody learns what the others did.

accelerate connects them, on one machine or many, with or without GPUs. `launch` starts those of this machine; on the
GPUs of several machines the user does:

    accelerate launch --multi_gpu --num_machines 2 --num_processes 16 -m refbfr_core.cli table NAME

Otherwise there is one process and nothing to agree upon.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from refbfr_core.errors import ConfigError
from refbfr_core.processes import alive

# One process may work for days while another has finished and waits for it.
_PATIENCE = timedelta(days=14)
# Each has about a gigabyte of networks and libraries.
_MOST = 4
_STARTER = "REFBFR_TABLE_STARTER"


class Workers:
    """The processes of this run.

    Args:
        cpu: leave the GPUs alone.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0; process 0 writes the result.
    """

    def __init__(self, cpu: bool = False) -> None:
        self._state = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            self._state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=_PATIENCE)
        self.count = 1 if self._state is None else self._state.num_processes
        self.rank = 0 if self._state is None else self._state.process_index

    @property
    def main(self) -> bool:
        """Whether this process writes the result and shows progress."""
        return self.rank == 0

    @property
    def device(self) -> Any:
        """The GPU that accelerate gave this process, or None."""
        return None if self._state is None or self._state.device.type == "cpu" else self._state.device

    def agree(self, value: Any) -> Any:
        """What process 0 has as `value`; everybody must call this."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share(self, tasks: Sequence[Any]) -> list[Any]:
        """This process's part of `tasks`, which must be the same everywhere."""
        if self._state is None or not tasks:
            return list(tasks)
        with self._state.split_between_processes(list(tasks)) as part:
            return list(part)

    def check_starter(self) -> None:
        """Raise ConfigError when `launch` started this process and has been killed since.

        Its rows are kept. Going on alone would compete with whoever gives the command again.
        """
        starter = os.environ.get(_STARTER)
        if starter is not None and not alive(int(starter)):
            raise ConfigError("the command that started this process is gone; give it again to go on.")

    def everything(self, rows: Sequence[Any]) -> list[Any]:
        """The rows of all processes, in the order of their ranks; everybody must call this."""
        if self._state is None:
            return list(rows)
        from accelerate.utils import gather_object

        return gather_object(list(rows))


def default_processes(small: bool, cpu: bool = False) -> int:
    """One a GPU; without one, a process for each of up to four cores where the networks are `small`, else one."""
    return (0 if cpu else _gpus()) or (max(1, min(_MOST, os.cpu_count() or 1)) if small else 1)


def launch(processes: int, arguments: Sequence[str], cpu: bool = False) -> int:
    """Run `refbfr ARGUMENTS` as several processes of this machine, and wait; returns 0 if all went well.

    Args:
        processes: at least 2. With GPUs each process gets one, so there cannot be more than GPUs.
        arguments: of the command. cpu: leave the GPUs alone.

    Raises:
        ConfigError: an impossible number.
    """
    gpus = 0 if cpu else _gpus()
    if processes < 2 or (gpus and processes > gpus):
        raise ConfigError(
            f"{processes} processes cannot be started here: at least 2 make sense"
            + (f", and there are {gpus} GPUs." if gpus else ".")
        )
    # What accelerate launch calls for GPUs; for CPU processes it would want MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes)]
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | {_STARTER: str(os.getpid())}
    done = subprocess.run([*command, "-m", "refbfr_core.cli", *arguments], env=environment, check=False)
    return done.returncode


def started_by_launch() -> bool:
    """Whether this process is one of those that `launch` started, whose starter shows the result.

    Raises:
        ConfigError: it was, but nobody connected it with the others; it must not start others again.
    """
    if _STARTER not in os.environ:
        return False
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(f"{_STARTER} is set, but there are no other processes; unset it.")
    return True


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
