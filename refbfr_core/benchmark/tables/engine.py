"""Running a table: every arm on every item, one row each, whatever breaks or is killed on the way.

A row depends on its item, arm and settings and on nothing else: pictures are restored one at a time, so neither the
order, nor what was done before, nor the number of processes can change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.benchmark.rows import FAILED, OK, fingerprint
from refbfr_core.benchmark.scoring import IDENTITY, Scorer, computable
from refbfr_core.benchmark.tables.cases import TableCase, TableDataset, TableItem
from refbfr_core.benchmark.tables.provenance import code_version
from refbfr_core.benchmark.tables.restorers import Restorer, build_restorer
from refbfr_core.benchmark.tables.results import REFERENCE, TRUTH, TableRun, collect, picture_path
from refbfr_core.benchmark.tables.store import TableStore, kept, row_key
from refbfr_core.benchmark.tables.systems import Arm
from refbfr_core.benchmark.tables.workers import Workers
from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, DiskFullError, ImageContractError, RefbfrError
from refbfr_core.images import check_images, write_image
from refbfr_core.weights import load_network

_FAULTS = (
    RefbfrError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a method or a picture may raise without ending the run: it becomes a failed row that names it."""

Build = Callable[[str], Restorer]


@dataclass(frozen=True)
class Settings:
    """What decides rows besides datasets, arms and restorers.

    `threads` of a CPU process: sums in another order differ in their last digits, so it is part of every key.
    """

    profile: str
    metrics: tuple[str, ...]
    device: torch.device
    threads: int
    code: str
    judge: str = "shipped"

    def key(self, item: TableItem, arm: Arm, restorer: Restorer, metrics: Sequence[str]) -> str:
        """The key of one row."""
        place = f"cpu, {self.threads} threads" if self.device.type == "cpu" else self.device.type
        return row_key(
            item=[item.dataset, item.name, item.digest, item.seed],
            arm=[arm.system, arm.references],
            method=[restorer.name, dict(restorer.settings), restorer.digest],
            metrics=[*metrics, self.judge],
            place=place,
            code=self.code,
        )


@dataclass(frozen=True)
class _Task:
    dataset: TableDataset
    item: TableItem
    arm: Arm
    key: str


def run_table(
    datasets: Sequence[TableDataset],
    arms: Sequence[Arm],
    metrics: Sequence[str],
    *,
    profile: str = "toy",
    out: str | Path | None = None,
    restorers: Mapping[str, Restorer] | None = None,
    pictures: bool = False,
    device: str | torch.device | None = None,
    threads: int = 1,
    progress: bool = True,
    retry_failed: bool = False,
    keep_loaded: bool = True,
    judge: nn.Module | None = None,
) -> TableRun:
    """Run a table, or go on with one in the folder `out` that was interrupted.

    Started by `accelerate launch`, the processes share the work and all return the whole run.

    Args:
        datasets, arms: columns and lines; names of datasets, and arms, must not repeat.
        metrics: names of `refbfr_core.metrics.REGISTRY`; one that a dataset does not allow is left out there, see
            `TableRun.unmeasured`.
        profile: where systems are loaded from.
        out: folder for finished rows and pictures; None keeps rows in memory.
        restorers: system -> `Restorer` that stands in for `build_restorer`.
        pictures: keep what was restored in `out`/pictures, which distances between sets of pictures need.
        threads: of the CPU. One, and a process for each core, is the fastest way for small networks.
        retry_failed: try failed rows again; else they stay as they are.
        keep_loaded: keep all systems in memory. False loads one after another, for big networks.
        judge: the embedder behind identity scores; None takes the shipped one, which knows drawn faces only.

    Raises:
        ConfigError: nothing to do, or repeated names. DiskFullError, OutputError: `out` cannot be written; what was
            done before is kept. Whatever goes wrong with one picture or method is a failed row instead.
    """
    _check(datasets, arms, out, pictures)
    workers = Workers(cpu=device is not None and torch.device(device).type == "cpu")
    place = torch.device(workers.device) if workers.device is not None else pick_device(device)
    settings = Settings(profile, tuple(metrics), place, threads, code_version(), _digest(judge))
    allowed, unmeasured = _allowed(datasets, metrics, profile)
    folder = None if out is None else Path(out)
    given = dict(restorers or {})
    build = lambda system: given[system] if system in given else build_restorer(system, profile, place)  # noqa: E731
    with _cpu_threads(threads):
        run = _Run(TableStore(folder), workers, settings, allowed, folder if pictures else None, retry_failed)
        asked = {name for names in allowed.values() for name in names}
        if judge is None and asked & set(IDENTITY):
            judge = load_network("judge", device=place)
        judge = None if judge is None else judge.to(place)  # each process has a GPU of its own
        run.scorers = {names: Scorer(names, judge, device=place) for names in dict.fromkeys(allowed.values())}
        systems = list(dict.fromkeys(arm.system for arm in arms))
        total = sum(len(dataset.items) for dataset in datasets) * len(arms)
        hidden = not progress or not workers.main
        with tqdm(total=total, desc="rows", disable=hidden, smoothing=0.05) as run.bar:
            for group in [systems] if keep_loaded else [[system] for system in systems]:
                run.some([arm for arm in arms if arm.system in group], datasets, build, total)
    rows, times = collect(datasets, arms, sorted_metrics(metrics, allowed), run.finish())
    result = TableRun(rows, times, _about(datasets, arms, run), run.not_run, unmeasured, run.pictures)
    if folder is not None and workers.main:
        result.write(folder)
    return result


class _Run:
    """The state of one call of `run_table`."""

    def __init__(
        self,
        store: TableStore,
        workers: Workers,
        settings: Settings,
        allowed: Mapping[str, tuple[str, ...]],
        pictures: Path | None,
        retry_failed: bool,
    ) -> None:
        self.store, self.workers, self.settings, self.allowed = store, workers, settings, allowed
        self.pictures, self.retry_failed = pictures, retry_failed
        self.scorers: dict[tuple[str, ...], Scorer]
        self.bar: tqdm
        self.keys: dict[tuple[str, str, Arm], str] = {}
        self.methods: dict[str, dict[str, Any]] = {}
        self.not_run: dict[str, str] = {}
        self.made: list[dict[str, Any]] = []

    def some(self, arms: Sequence[Arm], datasets: Sequence[TableDataset], build: Build, total: int) -> None:
        """Make the rows of some arms, whose systems are in memory together."""
        restorers = {}
        for system in dict.fromkeys(arm.system for arm in arms):
            try:
                restorers[system] = build(system)
            except RefbfrError as error:
                self.not_run[system] = str(error)
        able = [arm for arm in arms if arm.system in restorers]
        self.methods |= {
            system: {"name": each.name, "settings": dict(each.settings), "weights": each.digest}
            for system, each in restorers.items()
        }
        tasks = [
            _Task(dataset, item, arm, self._key(dataset, item, arm, restorers[arm.system]))
            for dataset in datasets
            for item in dataset.items
            for arm in able
        ]
        # Process 0 says what is left: the others may already see rows that somebody has finished since.
        todo = self.workers.agree([index for index, task in enumerate(tasks) if not self._done(task)])
        mine = self.workers.share(todo)
        self.bar.update(len(tasks) - len(todo))
        last: tuple[TableItem | None, TableCase | Exception | None] = (None, None)
        for done, index in enumerate(mine):
            self.workers.check_starter()
            task = tasks[index]
            if last[0] is not task.item:
                last = task.item, _load(task.item)
            try:
                self._keep(self._row(task, last[1], restorers[task.arm.system]))
            except DiskFullError as error:
                raise kept(self.store, error, total) from error
            # Everybody does about as much, so process 0 shows what all have done.
            self.bar.update(len(todo) * (done + 1) // len(mine) - len(todo) * done // len(mine))

    def finish(self) -> dict[tuple[str, str, Arm], dict[str, Any]]:
        """The rows of all processes by dataset, item and arm; process 0 also folds the store."""
        made = self.workers.everything(self.made)
        if self.workers.main:
            self.store.fold(made)
        rows = self.store.rows | {row["key"]: row for row in made}
        return {place: rows[key] for place, key in self.keys.items()}

    def _key(self, dataset: TableDataset, item: TableItem, arm: Arm, restorer: Restorer) -> str:
        key = self.settings.key(item, arm, restorer, self.allowed[dataset.name])
        self.keys[dataset.name, item.name, arm] = key
        return key

    def _done(self, task: _Task) -> bool:
        row = self.store.rows.get(task.key)
        if row is None or (row["status"] == FAILED and self.retry_failed):
            return False
        return row["status"] == FAILED or self.pictures is None or self._picture(task).is_file()

    def _picture(self, task: _Task) -> Path:
        return picture_path(self.pictures, task.dataset.name, str(task.arm), task.item.name)

    def _keep(self, row: dict[str, Any]) -> None:
        self.store.add(row)
        self.made.append(row)

    def _row(self, task: _Task, case: TableCase | Exception, restorer: Restorer) -> dict[str, Any]:
        known = {"key": task.key, "dataset": task.dataset.name, "item": task.item.name, "group": task.item.group}
        known |= {"system": task.arm.system, "references": task.arm.references}
        try:
            if isinstance(case, Exception):
                raise case
            restored, seconds = _restore(restorer, task, case, self.settings.device)
        except _FAULTS as error:
            return known | _failure(error)
        try:
            scores = self._score(task, case, restored)
        except (RefbfrError, RuntimeError, ValueError) as error:  # anything else would be a bug of the scores
            return known | _failure(error)
        if self.pictures is not None:
            self._write(task, case, restored)
        return known | {"status": OK, "reason": "", **scores, "seconds": seconds}

    def _score(self, task: _Task, case: TableCase, restored: Tensor) -> dict[str, float]:
        scorer = self.scorers[self.allowed[task.dataset.name]]
        # Where no score can be measured there are still pictures, and distances between sets of them.
        return scorer(restored, case.truth, case.mask, case.landmarks)[0] if scorer.metrics else {}

    def _write(self, task: _Task, case: TableCase, restored: Tensor) -> None:
        write_image(self._picture(task), restored.cpu())
        beside = {TRUTH: case.truth, REFERENCE: None if case.right is None else case.right[:, 0]}
        for label, picture in beside.items():
            path = picture_path(self.pictures, task.dataset.name, label, task.item.name)
            if picture is not None and not path.is_file():
                write_image(path, picture)


def _restore(restorer: Restorer, task: _Task, case: TableCase, device: torch.device) -> tuple[Tensor, float]:
    """The restored picture (1, 3, H, W) and the seconds it took; raises whatever is wrong with it."""
    references = {"none": None, "right": case.right, "wrong": case.wrong}[task.arm.references]
    if references is None and task.arm.references != "none":
        raise ImageContractError(f"{task.item.name} has no {task.arm.references} references for {task.arm.system}.")
    lq = case.lq.to(device)
    references = None if references is None else references.to(device)
    _wait_for(device)
    start = time.perf_counter()
    restored = restorer(lq, references, [task.item.seed], [f"{task.item.dataset}/{task.item.name}"])
    _wait_for(device)
    seconds = time.perf_counter() - start
    check_images(restored, f"what {task.arm.system} made")
    if restored.shape != case.lq.shape:
        raise ImageContractError(
            f"{task.arm.system} made {tuple(restored.shape)} of a picture {tuple(case.lq.shape)}; scores need one size."
        )
    return restored, seconds


def _digest(judge: nn.Module | None) -> str:
    return "shipped" if judge is None else fingerprint(judge)


def _failure(error: Exception) -> dict[str, str]:
    return {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}


def _load(item: TableItem) -> TableCase | Exception:
    try:
        return item.load()
    except _FAULTS as error:
        return error


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads in the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(datasets: Sequence[TableDataset], arms: Sequence[Arm], out: str | Path | None, pictures: bool) -> None:
    if not arms or not any(dataset.items for dataset in datasets):
        raise ConfigError("nothing to do: give at least one arm and one dataset that has items.")
    names = [dataset.name for dataset in datasets]
    keys = [(item.dataset, item.name) for dataset in datasets for item in dataset.items]
    for what, all_of_them in (("dataset", names), ("arm", [str(arm) for arm in arms]), ("item", keys)):
        twice = sorted({each for each in all_of_them if all_of_them.count(each) > 1}) if len(all_of_them) < 999 else []
        if twice or len(set(all_of_them)) < len(all_of_them):
            raise ConfigError(f"{what} {twice[0] if twice else 'names'} comes more than once; rows would be mixed up.")
    if pictures and out is None:
        raise ConfigError("pictures are to be kept, but there is no folder; pass out=.")


def _allowed(
    datasets: Sequence[TableDataset], metrics: Sequence[str], profile: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, str]]]:
    """For each dataset the metrics that can be measured on it here, and why the others cannot."""
    allowed, unmeasured = {}, {}
    for dataset in datasets:
        drawn = dataset.name.startswith("drawn-")
        names, reasons = computable(
            metrics, has_truth=dataset.has_truth, has_mask=drawn, has_landmarks=drawn, profile=profile
        )
        allowed[dataset.name], unmeasured[dataset.name] = tuple(names), dict(reasons)
    return allowed, unmeasured


def sorted_metrics(metrics: Sequence[str], allowed: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of the metrics that some dataset allows, in the order given."""
    return [name for name in metrics if any(name in names for names in allowed.values())]


def _about(datasets: Sequence[TableDataset], arms: Sequence[Arm], run: _Run) -> dict[str, Any]:
    return {
        "profile": run.settings.profile,
        "code": run.settings.code,
        "device": run.settings.device.type,
        "threads": run.settings.threads,
        "judge": run.settings.judge,
        "metrics": {name: list(metrics) for name, metrics in run.allowed.items()},
        "datasets": {d.name: {"protocol": d.protocol, "items": len(d.items), "expected": d.expected} for d in datasets},
        "arms": [str(arm) for arm in arms],
        "methods": run.methods,
    }
