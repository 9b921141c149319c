"""From the name of a table to its rows and its report: what the command `refbfr table` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.scoring import IDENTITY, photo_judge
from refbfr_core.benchmark.tables.cases import TableDataset
from refbfr_core.benchmark.tables.datasets import drawn_dataset, table_dataset
from refbfr_core.benchmark.tables.engine import run_table
from refbfr_core.benchmark.tables.report import TableReport
from refbfr_core.benchmark.tables.restorers import Restorer, folder_restorer
from refbfr_core.benchmark.tables.results import TableRun
from refbfr_core.benchmark.tables.set_scores import score_sets
from refbfr_core.benchmark.tables.specs import TableSpec, table_spec
from refbfr_core.benchmark.tables.systems import NEEDS, SYSTEMS, Arm, parse_arm
from refbfr_core.benchmark.tables.workers import Workers
from refbfr_core.errors import ConfigError, MissingExtraError, RefbfrError, WeightsError, unknown_name

DRAWN = "drawn-"
PEOPLE = 20
"""Drawn people at each severity, unless it is said otherwise."""


@dataclass(frozen=True)
class Choices:
    """What somebody may change about a table.

    Attributes:
        people: drawn people at each severity. seed: of them, their views, degradations and noise.
        roots: dataset -> its folder on this machine. images: dataset -> folder of its photographs, if elsewhere.
        limit: only so many items of every dataset, from the first on.
        systems: only these systems, or arms written like "PDGrad, right"; empty for all of the table.
        datasets: only these of the table; empty for all.
        results: name -> folder of restored pictures that are scored under that name, like "VQFR" or "ASFFNet, right".
        sets: also measure distances between sets of pictures, which needs the pictures to be kept.
        allow_small: measure those distances on sets that are too small for them.
        reference_sets: dataset -> statistics file or folder of pictures that FID and KID compare with.
        judge: ONNX file of the recogniser behind IDS and Deg on photographs, see `photo_judge`.
    """

    people: int = PEOPLE
    seed: int = 0
    roots: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    limit: int | None = None
    systems: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    results: Mapping[str, Path] = field(default_factory=dict)
    sets: bool = False
    allow_small: bool = False
    reference_sets: Mapping[str, Path] = field(default_factory=dict)
    judge: Path | None = None


@dataclass(frozen=True)
class MadeTable:
    """A table: its specification, the run behind it, set distances, datasets that are not here, and the report."""

    spec: TableSpec
    run: TableRun
    sets: pd.DataFrame | None
    absent: dict[str, str]
    report: TableReport

    @property
    def whole(self) -> bool:
        """Whether every row of every dataset has its scores."""
        return not (len(self.run.failures) or self.run.not_run or self.absent)

    def remarks(self) -> list[str]:
        """What was not measured, and why; one line each, for printing below the table."""
        lines = [f"not here: {name}: {why}" for name, why in self.absent.items()]
        lines += [f"not run: {name}: {why}" for name, why in self.run.not_run.items()]
        for dataset, metrics in self.run.unmeasured.items():
            lines += [f"not measured on {dataset}: {name}: {why}" for name, why in metrics.items()]
        if self.sets is not None:
            refused = self.sets[self.sets.reason != ""].groupby(["dataset", "metric", "reason"], sort=False)
            lines += [f"not measured on {name}: {what} of {len(own)} arms: {why}" for (name, what, why), own in refused]
        return lines


def make_table(
    name: str, choices: Choices | None = None, *, out: str | Path | None = None, **options: Any
) -> MadeTable:
    """Run a table, or go on with one, and report it.

    Args:
        name: a key of `refbfr_core.benchmark.tables.TABLES`.
        choices: see `Choices`; the defaults if not given.
        out: folder of the run, see `run_table`.
        options: other keywords of `run_table`: device, threads, progress, retry_failed, restorers, pictures.

    Raises:
        UnknownNameError: no such table, system or dataset. ConfigError: a table that is only printed, nothing left to
        run, or no dataset of it on this machine (says where each is published). Whatever `run_table` raises.
    """
    spec, choices = table_spec(name), choices or Choices()
    if not spec.measured:
        raise ConfigError(f"the table {name!r} holds settings or a user study; nothing in it can be measured here.")
    arms, folders = chosen_arms(spec, choices)
    datasets, absent = open_datasets(spec, choices)
    if not datasets:
        raise ConfigError(f"no dataset of {name!r} is here: " + " ".join(f"{each}: {absent[each]}" for each in absent))
    restorers: dict[str, Restorer] = {**options.pop("restorers", {}), **folders}
    metrics, judge, why = _metrics(spec, choices)
    run = run_table(
        datasets,
        arms,
        metrics,
        profile=spec.profile,
        out=out,
        restorers=restorers,
        pictures=options.pop("pictures", False) or choices.sets,
        keep_loaded=spec.profile == "toy",
        judge=judge,
        **options,
    )
    for dataset in datasets:
        run.unmeasured[dataset.name] |= {name: why for name in IDENTITY if why and name in spec.metrics}
    sets = None
    if choices.sets and Workers().main:
        asked = choices.reference_sets, choices.allow_small, options.get("device")
        sets = score_sets(run, tuple(spec.set_metrics), *asked)
    report = TableReport(
        run.rows, set_rows=sets, spec=spec, datasets=datasets, not_run=run.not_run, unmeasured=run.unmeasured
    )
    return MadeTable(spec, run, sets, absent, report)


def record_table(made: MadeTable, name: str, command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of a table, with the seconds, as the recording `name`; returns the path of the rows.

    Failed rows are kept as such: they are part of the result.

    Raises:
        ConfigError: something of the table was not run, so it would be read as whole.
    """
    if made.run.not_run or made.absent:
        raise ConfigError("not recorded, because not everything ran: " + " ".join(made.remarks()))
    rows = made.run.rows.merge(made.run.times[["key", "seconds"]], on="key").drop(columns="key")
    return record(name, rows, {"command": command, "settings": made.run.settings}, folder)


def chosen_arms(spec: TableSpec, choices: Choices) -> tuple[tuple[Arm, ...], dict[str, Restorer]]:
    """The arms of a table, with those scored from folders, and the latter's restorers by system."""
    asked = [parse_arm(text) for text in choices.systems]
    arms = [arm for arm in spec.arms if not asked or _asked(arm, choices.systems, asked)]
    for text, arm in zip(choices.systems, asked, strict=True):
        if not any(_asked(each, (text,), [arm]) for each in spec.arms):
            raise unknown_name(f"system of the table {spec.name!r}", text, [str(each) for each in spec.arms])
    folders = {}
    for text, folder in choices.results.items():
        arm = _folder_arm(text)
        # The folder stands in for the system: the same name must not mean two things in one table.
        arms = [each for each in arms if each.system != arm.system] + [arm]
        folders[arm.system] = folder_restorer(arm.system, folder)
    return tuple(arms), folders


def open_datasets(spec: TableSpec, choices: Choices) -> tuple[list[TableDataset], dict[str, str]]:
    """The datasets of a table that are here, and why the others are not."""
    names = spec.dataset_names
    for name in (*choices.datasets, *choices.roots):
        if name not in names:
            raise unknown_name(f"dataset of the table {spec.name!r}", name, names)
    opened, absent = [], {}
    for name in choices.datasets or names:
        if name.startswith(DRAWN):
            drawn = drawn_dataset(name.removeprefix(DRAWN), choices.people, seed=choices.seed)
            opened.append(replace(drawn, items=drawn.items[: choices.limit]))
            continue
        if name not in choices.roots:
            absent[name] = f"name its folder: --root {name}=FOLDER; `refbfr datasets list` says where it comes from."
            continue
        try:
            images = choices.images.get(name)
            more = {"references": spec.references} if spec.references else {}
            opened.append(table_dataset(name, choices.roots[name], images=images, limit=choices.limit, **more))
        except RefbfrError as error:
            absent[name] = str(error)
    return opened, absent


def _asked(arm: Arm, texts: Sequence[str], asked: Sequence[Arm]) -> bool:
    """Whether an arm was asked for by itself or by its system's name."""
    return arm in asked or arm.system in {text.strip() for text in texts}


def _folder_arm(text: str) -> Arm:
    needs = text in SYSTEMS and SYSTEMS[text].references == NEEDS
    return Arm(text, "right") if needs else parse_arm(text)


def _metrics(spec: TableSpec, choices: Choices) -> tuple[tuple[str, ...], nn.Module | None, str]:
    """The scores to measure, the judge (None: the shipped one) and why there is no score of identity, if so."""
    names = spec.metric_names
    if spec.profile == "toy" and choices.judge is None:
        return names, None, ""
    try:
        return names, photo_judge(choices.judge), ""
    except (WeightsError, MissingExtraError) as error:
        return tuple(name for name in names if name not in IDENTITY), None, str(error)
