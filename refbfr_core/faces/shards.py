"""Large arrays on disk in *shards*: folders that appear complete under their name, or not at all.

A shard holds the rows of a few people as ``.npy`` files and a manifest with their SHA-256. It is written under another
name, flushed, and renamed in one step, so a run that is killed half-way loses what it was working on and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbfr_core.errors import CacheError, ConfigError, DiskFullError
from refbfr_core.files import file_sha256, output_error, write_text
from refbfr_core.processes import alive

PEOPLE_PER_SHARD = 16
DEFAULT_MAX_BYTES = 8 * 2**30
FORMAT = 1

Progress = Callable[[int, int], None]


class ShardedArray:
    """Read-only array ``(people, ...)`` whose rows lie in the memory-mapped files of several shards.

    ``array[i]`` is one person's row; ``array[people, second, third]`` with integer sequences of one length n gathers n
    entries. Only the pages that are read are loaded.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *(self._parts[0].shape[1:] if self._parts else ()))
        self.dtype = self._parts[0].dtype if self._parts else np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def _row(self, person: int) -> np.ndarray:
        person = range(len(self))[int(person)]
        part = int(np.searchsorted(self._starts, person, side="right")) - 1
        return self._parts[part][person - int(self._starts[part])]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            people, *rest = key
            return np.stack([self._row(p)[tuple(r)] for p, *r in zip(people, *rest, strict=True)])
        return np.asarray(self._row(key))


class ShardedCache:
    """The first ``identities`` people of something, kept in the shards of ``folder``.

    A subclass says what is in it (:meth:`description`), how large it becomes (:meth:`nbytes`), how to make the shards
    that
    are missing (:meth:`_jobs`), and checks what the making needs (:meth:`_prepare`).

    Raises
    ------
    ConfigError : fewer than one person. CacheError : the folder holds something else.
    """

    def __init__(self, folder: Path, identities: int) -> None:
        if identities < 1:
            raise ConfigError(f"a cache needs at least one person, got identities={identities}.")
        self.folder, self.identities = Path(folder), int(identities)
        if (self.folder / "cache.json").is_file():
            wanted, found = self.description(), self._read_description()
            if differing := [key for key in wanted if found.get(key) != wanted[key]]:
                changes = ", ".join(f"{key} {found.get(key)!r} instead of {wanted[key]!r}" for key in differing)
                raise CacheError(f"{self.folder} holds a cache with {changes}; delete it or use another root.")

    def description(self) -> dict[str, Any]:
        """What the rows depend on, as JSON values; another description is another cache."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Bytes of the complete cache (file headers aside)."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Called before anything is made, with the folder in place."""
        raise NotImplementedError

    def _jobs(self, missing: list[range]) -> tuple[Callable[..., int], Iterable[tuple]]:
        """A function that makes one shard and returns its number of people, and its arguments for every missing
        shard."""
        raise NotImplementedError

    # ---- reading ---------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> list[range]:
        """The people of each shard; the boundaries do not depend on how many people are asked for."""
        starts = range(0, self.identities, PEOPLE_PER_SHARD)
        return [range(start, min(start + PEOPLE_PER_SHARD, self.identities)) for start in starts]

    @property
    def ready(self) -> int:
        """How many people, counted from the first, can be read now without a gap."""
        for people in self.shards:
            if (present := self.present(people.start)) < len(people):
                return people.start + present
        return self.identities

    def shard(self, start: int) -> Path:
        """Folder of the shard that begins with person ``start``."""
        return self.folder / f"people-{start:06d}"

    def present(self, start: int) -> int:
        """People in the shard that begins with person ``start``; 0 when it is not there."""
        folder = self.shard(start)
        return int(read_manifest(folder)["people"]) if (folder / "manifest.json").is_file() else 0

    def array(self, name: str, limit: int | None = None) -> ShardedArray:
        """The array called ``name`` of all ready people (at most ``limit``), memory-mapped."""
        ready, parts = self.ready, []
        ready = ready if limit is None else min(ready, limit)
        for start in range(0, ready, PEOPLE_PER_SHARD):
            path = self.shard(start) / f"{name}.npy"
            try:
                rows = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise CacheError(
                    f"{path} is missing or truncated ({error}); delete {path.parent} and build() again."
                ) from error
            parts.append(rows[: ready - start])
        return ShardedArray(parts)

    def verify(self) -> int:
        """Read every shard and compare it with its manifest; returns the number of people checked.

        Raises
        ------
        CacheError : people are missing, or a file is missing, truncated or altered; the message names it.
        """
        if self.ready < self.identities:
            raise CacheError(
                f"{self.folder} holds {self.ready} of {self.identities} people; call build() to make the rest."
            )
        for people in self.shards:
            folder = self.shard(people.start)
            for name, expected in read_manifest(folder)["sha256"].items():
                if (came := _sha256(folder / name)) != expected:
                    raise CacheError(
                        f"{folder / name} has SHA-256 {came[:12]}…, its manifest says {expected[:12]}…: truncated "
                        "or altered. "
                        f"Delete {folder} and build() again."
                    )
        return self.identities

    # ---- making ----------------------------------------------------------------------------------------------------

    def build(
        self, workers: int = 2, max_bytes: int = DEFAULT_MAX_BYTES, progress: Progress | None = None
    ) -> ShardedCache:
        """Make what is missing with ``workers`` single-threaded processes (0: in this process). Returns the cache
        itself.

        ``progress(done, total)`` is called after every shard with numbers of people.

        Raises
        ------
        CacheError : the cache would be larger than ``max_bytes``, or was made by another version of the code.
        DiskFullError : the disk has not enough room. OutputError : the folder cannot be written to.
        """
        if self.nbytes() > max_bytes:
            raise CacheError(
                f"{self.folder.name} with {self.identities} people needs {self.nbytes() / 2**30:.2f} GiB, max_bytes "
                f"allows "
                f"{max_bytes / 2**30:.2f} GiB; ask for fewer people or raise max_bytes."
            )
        missing = [people for people in self.shards if self.present(people.start) < len(people)]
        if not missing:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.folder, error) from error
        self._remove_leftovers()
        self._check_disk(sum(map(len, missing)) * self.nbytes() // self.identities)
        self._prepare()
        make, jobs = self._jobs(missing)
        done = self.identities - sum(map(len, missing))
        for people in _in_processes(make, jobs, workers) if workers else (make(*job) for job in jobs):
            done += people
            if progress is not None:
                progress(done, self.identities)
        return self

    def _write_description(self, **extra: Any) -> None:
        write_text(self.folder / "cache.json", json.dumps(self.description() | extra) + "\n")

    def _read_description(self) -> dict[str, Any]:
        path = self.folder / "cache.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CacheError(f"{path} cannot be read ({error}); delete {self.folder} and build() again.") from error

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(".partial-*"):
            if not alive(int(leftover.name.split("-")[1])):
                shutil.rmtree(leftover, ignore_errors=True)

    def _check_disk(self, needed: int) -> None:
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise DiskFullError(
                f"{self.folder} needs {needed / 2**20:.0f} MiB more and the disk has {free / 2**20:.0f} MiB left; "
                f"free some "
                "space, ask for fewer people or use another root."
            )


def write_shard(target: Path, arrays: Mapping[str, np.ndarray]) -> int:
    """Write arrays with equally many rows as the shard folder ``target``, whole or not at all; returns the rows.

    A shard of fewer people under that name, made when the cache was smaller, is replaced.
    """
    people = len(next(iter(arrays.values())))
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    try:
        partial.mkdir()
        for name, array in arrays.items():
            with (partial / f"{name}.npy").open("wb") as stream:
                np.save(stream, array)
                stream.flush()
                os.fsync(stream.fileno())
        digests = {f"{name}.npy": _sha256(partial / f"{name}.npy") for name in arrays}
        write_text(partial / "manifest.json", json.dumps({"people": people, "sha256": digests}, indent=2) + "\n")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return people


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a shard: ``people`` and ``sha256`` by file name. Raises CacheError when it cannot be read."""
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} cannot be read ({error}); delete {folder} and build() again.") from error


def _in_processes(make: Callable[..., int], jobs: Iterable[tuple], workers: int) -> Iterator[int]:
    """Run jobs in ``workers`` fresh processes, at most two for each at a time, and yield results as they come."""
    context = get_context("spawn")  # forking a process that has already used torch's threads can dead-lock
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        pending: set[Future[int]] = set()
        try:
            for job in jobs:
                pending.add(pool.submit(make, *job))
                if len(pending) >= 2 * workers:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        finally:
            # After an error the rest would fail alike (a full disk, say): do not work through the queue first.
            for future in pending:
                future.cancel()


def _start_worker(parent: int) -> None:
    """One thread a process, and no process that outlives a killed parent."""
    torch.set_num_threads(1)

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error}); delete {path.parent} and build() again.") from error
