"""A study of several ways to restore the same ruined faces: one row a person and arm, failures kept, runs continued.

An *arm* is a name and a function from `Cases` to pictures. Every arm gets the same people, ruined pictures, references
and noise seeds, so differences can be paired by person.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.benchmark.cases import Cases, make_cases
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.report import mean_table
from refbfr_core.benchmark.rows import FAILED, OK, RowStore, fingerprint
from refbfr_core.benchmark.scoring import Scorer
from refbfr_core.errors import ConfigError, RefbfrError
from refbfr_core.metrics import unavailable

INPUT = "input"


@dataclass(frozen=True)
class Restored:
    """What an arm may return instead of its pictures (B, 3, H, W) alone: `columns`, name -> (B,) numbers about how they
    were made, which stand in the rows beside the scores."""

    pictures: Tensor
    columns: Mapping[str, Tensor]


Arm = Callable[[Cases], Tensor | Restored]
"""Restores a batch of cases: (B, 3, H, W) in [0, 1], from each case's own seed."""


@dataclass(frozen=True)
class ArmSettings:
    """What decides the numbers of a study besides the arms themselves.

    `references` is how many pictures of the person, and of the wrong person, a case has. `method` says in words what
    the arms are made of; rows of another `method` are never continued.
    """

    people: int
    preset: str
    references: int = 1
    seed: int = 0
    split: str = "test"
    metrics: tuple[str, ...] = ("ids", "deg", "psnr", "ssim")
    method: str = ""

    def __post_init__(self) -> None:
        if self.people < 2 or self.references < 1:
            raise ConfigError(
                f"people={self.people} and references={self.references}; wrong references need a second person, and "
                "every case a reference. Use at least 2 and 1."
            )


@dataclass(frozen=True)
class ArmStudy:
    """A finished study: rows with columns "person", "arm", "status", "reason", the metrics and "seconds"; `weights` is
    the fingerprint of the networks."""

    settings: ArmSettings
    rows: pd.DataFrame
    weights: str

    @property
    def arms(self) -> list[str]:
        """Names of the arms in order of execution."""
        return list(dict.fromkeys(self.rows.arm))

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that have no scores, with their reasons."""
        return self.rows[self.rows.status == FAILED]

    def table(self) -> pd.DataFrame:
        """Means with 95 % bootstrap intervals over people, an arm a line, with counts of scored and failed people."""
        return mean_table(self.rows, self.arms, self.settings.metrics)


def run_arms(
    arms: Mapping[str, Arm],
    settings: ArmSettings,
    networks: Sequence[nn.Module],
    judge: nn.Module,
    *,
    resolution: int = 128,
    out: str | Path | None = None,
    batch: int = 8,
    progress: bool = True,
) -> ArmStudy:
    """Run the study, or continue one that was interrupted in the folder `out`.

    Args:
        arms: name -> function; "input", the ruined picture itself, is always there.
        settings: see `ArmSettings`.
        networks: whatever the arms use; their fingerprint goes into the settings.
        judge: the embedder behind identity scores.
        resolution: side of the pictures.
        out: folder for rows; None keeps them in memory.
        batch: people restored together.
        progress: show a bar.

    Raises:
        ConfigError: `out` holds a run with other settings. A failing case is no exception but a row that says why; the
        rest of its batch is restored again one by one.
    """
    weights = fingerprint(*networks, judge)
    store = RowStore({**asdict(settings), "arms": [INPUT, *arms], "weights": weights}, out)
    scorer = Scorer(settings.metrics, judge)
    todo = [index for index in range(settings.people) if index not in store.done("person")]
    with tqdm(total=settings.people, initial=settings.people - len(todo), desc="people", disable=not progress) as bar:
        for start in range(0, len(todo), batch):
            cases = make_cases(
                todo[start : start + batch],
                settings.people,
                preset=settings.preset,
                references=settings.references,
                seed=settings.seed,
                split=settings.split,
                resolution=resolution,
            )
            rows = _rows(cases, INPUT, scorer(cases.lq, cases.truth), 0.0)
            for name, arm in arms.items():
                rows += _run(name, arm, cases, scorer)
            store.append(rows)
            bar.update(len(cases))
    return ArmStudy(settings, store.frame(), weights)


def _run(name: str, arm: Arm, cases: Cases, scorer: Scorer) -> list[dict[str, Any]]:
    start = time.perf_counter()
    try:
        made = arm(cases)
        seconds = (time.perf_counter() - start) / len(cases)
        made = made if isinstance(made, Restored) else Restored(made, {})
        return _rows(cases, name, scorer(made.pictures, cases.truth), seconds, made.columns)
    except (RefbfrError, RuntimeError, ValueError) as error:
        if len(cases) == 1:
            blank = dict.fromkeys(scorer.metrics, float("nan"))
            row = {"person": cases.people[0], "arm": name, "status": FAILED}
            return [{**row, "reason": f"{type(error).__name__}: {error}", **blank, "seconds": float("nan")}]
        # Only the guilty case shall fail.
        return [row for index in range(len(cases)) for row in _run(name, arm, cases.select(index), scorer)]


def _rows(
    cases: Cases,
    arm: str,
    scores: Sequence[Mapping[str, float]],
    seconds: float,
    columns: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    more = {name: values.tolist() for name, values in (columns or {}).items()}
    return [
        {"person": person, "arm": arm, "status": OK, "reason": "", **each, "seconds": seconds}
        | {name: values[row] for name, values in more.items()}
        for row, (person, each) in enumerate(zip(cases.people, scores, strict=True))
    ]


def default_metrics() -> tuple[str, ...]:
    """Identity, fidelity, and the quality score where this machine can compute it."""
    return ("ids", "deg", "psnr", "ssim", *(name for name in ("niqe-toy",) if not unavailable(name)))


def record_arms(name: str, study: ArmStudy, command: str, folder: str | Path | None = None) -> Path:
    """Keep a study's rows as the recording `name`; returns the path of the rows.

    Raises:
        ConfigError: some rows failed; a recording with holes would be read as whole.
    """
    if len(study.failures):
        raise ConfigError(f"{len(study.failures)} rows failed; first: {study.failures.reason.iloc[0]}. Run it again.")
    s = study.settings
    rows = study.rows[["person", "arm", "status", *s.metrics, "seconds"]]
    settings = {"method": s.method, "preset": s.preset, "people": s.people, "references": s.references, "seed": s.seed}
    return record(name, rows, {"command": command, "settings": settings | {"weights": study.weights}}, folder)
