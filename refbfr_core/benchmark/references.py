"""Do references help, and do they have to be the right person's? The question of ReF-LDM (section 5) on drawn people.

Every unseen person is restored from the same ruined picture and the same noise in several arms: without references,
with another person's, with one, two and R of their own, or with any other counts (table 5). Scores are paired by
person; identity is scored by the judge, which took no part in any training of the restorer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.benchmark.cases import Cases, make_cases
from refbfr_core.benchmark.grid import write_picture_grid
from refbfr_core.benchmark.report import Contrast, contrast, mean_table
from refbfr_core.benchmark.rows import FAILED, OK, RowStore, fingerprint
from refbfr_core.benchmark.scoring import Scorer
from refbfr_core.errors import ConfigError, RefbfrError
from refbfr_core.files import write_text
from refbfr_core.images import read_image, write_image
from refbfr_core.metrics import unavailable

LQ, NONE, WRONG, TRUTH, FIRST = "input", "none", "wrong", "truth", "first reference"


@dataclass(frozen=True)
class StudySettings:
    """What decides the numbers of a study.

    `references` is R; `grid_people` the number of people, from the first on, whose pictures are kept for the grid;
    `metrics` what is measured. `counts` are the numbers of right references to try, R the largest; None tries 1, 2, R.
    """

    people: int = 128
    preset: str = "toy-refldm-severe"
    references: int = 4
    steps: int = 50
    guidance: float = 1.5
    seed: int = 0
    split: str = "test"
    grid_people: int = 8
    metrics: tuple[str, ...] = ("ids", "psnr", "ssim")
    counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.people < 2:
            raise ConfigError(f"people={self.people}: wrong references need a second person. Use at least 2.")
        if self.references < 1:
            raise ConfigError(f"references={self.references}; the study is about references. Use at least 1.")
        if self.counts is not None and (min(self.counts) < 1 or max(self.counts) != self.references):
            raise ConfigError(f"counts={self.counts} with references={self.references}; the largest is R, none is 0.")

    @property
    def right_counts(self) -> list[int]:
        """How many right references the arms have, ascending: `counts`, else 1, 2 and R."""
        return sorted({1, min(2, self.references), self.references} if self.counts is None else {*self.counts})

    @property
    def best(self) -> str:
        """The arm with all right references."""
        return right_arm(self.references)


def right_arm(count: int) -> str:
    """Name of the arm with `count` of the person's own pictures."""
    return f"right {count}"


@dataclass(frozen=True)
class ReferenceStudy:
    """A finished study: one row a person and arm, means by arm, paired differences with their intervals.

    `grid` is the picture that was written, if any; `weights` the `fingerprint` of the networks that were used.
    """

    settings: StudySettings
    rows: pd.DataFrame
    table: pd.DataFrame
    contrasts: list[Contrast]
    grid: Path | None
    weights: str

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that have no scores, with their reasons."""
        return self.rows[self.rows.status == FAILED]

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"reference study: {s.people} unseen people of the {s.split!r} split, {s.preset}, seed {s.seed}",
            f"restored in {s.steps} steps with guidance {s.guidance:g}",
            f"arms: none = no references, wrong = {s.references} of the next person, right n = n of their own",
            f"means with 95 % bootstrap intervals over people; {len(self.failures)} of {len(self.rows)} rows failed",
            "",
            self.table.to_string(),
            "",
            "paired differences (mean, 95 % bootstrap interval, people)",
            *(f"  {each}" for each in self.contrasts),
        ]
        reasons = self.failures.reason.value_counts()
        lines += [f"  failed {count} times: {reason}" for reason, count in reasons.items()]
        if self.grid is not None:
            lines += ["", f"pictures: {self.grid}"]
        return "\n".join(lines)


def run_reference_study(
    people: int = 128,
    preset: str = "toy-refldm-severe",
    references: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    counts: Sequence[int] | None = None,
    pipeline: DiffusionPipeline | None = None,
    judge: nn.Module | None = None,
    batch: int = 8,
    grid_people: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ReferenceStudy:
    """Runs the study, or continues a run that was interrupted in the folder `out`.

    Args:
        people, preset, references, steps, guidance, seed: see `StudySettings`; steps and guidance of None are the
            pipeline's own defaults.
        counts: numbers of right references to try instead of 1, 2 and R, such as (1, 3, 5, 8); R becomes the largest.
        out: folder for `settings.json`, `rows.csv`, `table.txt`, `grid.png` and its pictures; None writes nothing.
        pipeline, judge: None loads the shipped ReF-LDM and judge.
        batch: people restored together. It changes speed, not results beyond a grey level.
        device: where shipped networks are loaded to.
        progress: show a progress bar.

    Raises:
        ConfigError: impossible settings, or `out` holds a run with other settings. WeightsError: weights are missing or
            damaged. A failure of a single case is no exception but a row with status "failed" and its reason.
    """
    if pipeline is None:
        from refbfr_core.pipelines import load_pipeline

        pipeline = load_pipeline("refldm", device=device)
    settings = StudySettings(
        people,
        preset,
        references if counts is None else max(counts, default=0),
        pipeline.config.num_inference_steps if steps is None else steps,
        pipeline.config.guidance_scale if guidance is None else guidance,
        seed,
        grid_people=min(grid_people, people),
        metrics=("ids", "psnr", "ssim", *(() if unavailable("lpips") else ("lpips",))),
        counts=None if counts is None else tuple(counts),
    )
    if judge is None:
        from refbfr_core.weights import load_network

        judge = load_network("judge", device=device)
    pipeline.set_progress_bar_config(disable=True)
    scorer = Scorer(settings.metrics, judge)
    weights = fingerprint(pipeline.vq, pipeline.unet, judge)
    folder = None if out is None else Path(out)
    store = RowStore({**asdict(settings), "weights": weights}, folder)
    done = store.done("person")
    todo = [index for index in range(people) if index not in done]
    with tqdm(total=people, initial=people - len(todo), desc="people", disable=not progress) as bar:
        for start in range(0, len(todo), batch):
            cases = make_cases(
                todo[start : start + batch],
                people,
                preset=preset,
                references=settings.references,
                seed=seed,
                split=settings.split,
                resolution=pipeline.resolution,
            )
            rows, pictures = _run_batch(pipeline, scorer, cases, settings)
            if folder is not None:
                _keep_pictures(folder, pictures, cases.people, settings.grid_people)
            store.append(rows)
            bar.update(len(cases))
    return _finish(settings, store.frame(), folder, weights)


def _arms(cases: Cases, settings: StudySettings) -> dict[str, Tensor | None]:
    """References of every arm that restores."""
    arms: dict[str, Tensor | None] = {NONE: None, WRONG: cases.wrong}
    return arms | {right_arm(count): cases.right[:, :count] for count in settings.right_counts}


def _run_batch(
    pipeline: DiffusionPipeline, scorer: Scorer, cases: Cases, settings: StudySettings
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Rows of all arms of some cases, and the pictures of every arm that succeeded for all of them."""
    rows = _score(scorer, cases, LQ, cases.lq, 0.0)
    pictures = {LQ: cases.lq, TRUTH: cases.truth, FIRST: cases.right[:, 0]}
    for arm, references in _arms(cases, settings).items():
        own_rows, restored = _run_arm(pipeline, scorer, cases, arm, references, settings)
        rows += own_rows
        if restored is not None:
            pictures[arm] = restored
    return rows, pictures


def _run_arm(
    pipeline: DiffusionPipeline,
    scorer: Scorer,
    cases: Cases,
    arm: str,
    references: Tensor | None,
    settings: StudySettings,
) -> tuple[list[dict[str, Any]], Tensor | None]:
    """One arm of a batch; when it fails every case is tried alone, so that only the guilty ones become failures."""
    start = time.perf_counter()
    try:
        result = pipeline(
            cases.lq,
            references,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            seed=cases.seeds,
        )
        seconds = (time.perf_counter() - start) / len(cases)
        rows = _score(scorer, cases, arm, result.images, seconds)
    except (RefbfrError, RuntimeError, ValueError) as error:
        if len(cases) == 1:
            blank = dict.fromkeys(settings.metrics, float("nan"))
            return [_row(cases, 0, arm, FAILED, f"{type(error).__name__}: {error}", **blank)], None
        alone = []
        for row in range(len(cases)):
            own = None if references is None else references[row : row + 1]
            alone.append(_run_arm(pipeline, scorer, cases.select(row), arm, own, settings))
        return [row for rows, _ in alone for row in rows], None
    return rows, result.images


def _score(scorer: Scorer, cases: Cases, arm: str, pictures: Tensor, seconds: float) -> list[dict[str, Any]]:
    scores = scorer(pictures, cases.truth)
    return [_row(cases, row, arm, OK, "", **each, seconds=seconds) for row, each in enumerate(scores)]


def _row(cases: Cases, row: int, arm: str, status: str, reason: str, **scores: float) -> dict[str, Any]:
    return {
        "person": cases.people[row],
        "arm": arm,
        "status": status,
        "reason": reason,
        **scores,
        "noise_seed": cases.seeds[row],
        "degradation": cases.degradations[row].describe(),
    }


def _keep_pictures(folder: Path, pictures: Mapping[str, Tensor], people: Sequence[int], count: int) -> None:
    """Writes the pictures of the first `count` people, so that a continued run can still draw the grid."""
    for label, batch in pictures.items():
        for index, picture in zip(people, batch, strict=True):
            if index < count:
                write_image(_picture_path(folder, label, index), picture[None].cpu())


def _picture_path(folder: Path, label: str, index: int) -> Path:
    return folder / "pictures" / f"{index:03d}-{label.replace(' ', '-')}.png"


def _finish(settings: StudySettings, rows: pd.DataFrame, folder: Path | None, weights: str) -> ReferenceStudy:
    """Means, paired differences and, with a folder, the grid and the printed table."""
    arms = [LQ, NONE, WRONG, *map(right_arm, settings.right_counts)]
    best = settings.best
    pairs = [("ids", best, NONE), ("ids", best, WRONG), ("ids", NONE, WRONG), ("psnr", best, LQ), ("psnr", NONE, LQ)]
    fewer = settings.right_counts[:-1]
    pairs[3:3] = [("ids", best, right_arm(count)) for count in (fewer if settings.counts else fewer[:1])]
    table = mean_table(rows, arms, settings.metrics)
    contrasts = [contrast(rows, *pair) for pair in pairs]
    if folder is None:
        return ReferenceStudy(settings, rows, table, contrasts, None, weights)
    grid = _write_grid(folder, (LQ, NONE, WRONG, best, TRUTH, FIRST), settings)
    study = ReferenceStudy(settings, rows, table, contrasts, grid, weights)
    write_text(folder / "table.txt", f"{study}\n")
    return study


def _write_grid(folder: Path, labels: Sequence[str], settings: StudySettings) -> Path | None:
    """The grid of everybody whose pictures are complete; None when there is nobody."""
    files = {index: [_picture_path(folder, label, index) for label in labels] for index in range(settings.grid_people)}
    people = [index for index, paths in files.items() if all(path.exists() for path in paths)]
    if not people:
        return None
    columns = [[read_image(path) for path in files[index]] for index in people]
    rows = {label: torch.cat(pictures) for label, pictures in zip(labels, zip(*columns, strict=True), strict=True)}
    title = (
        f"{settings.preset}, seed {settings.seed}, people {', '.join(map(str, people))} of the {settings.split} split"
    )
    return write_picture_grid(rows, folder / "grid.png", title)


def parse_counts(text: str | None) -> tuple[int, ...] | None:
    """Numbers from a command line, such as "1,3,5,8"; None stays None.

    Raises:
        ConfigError: something else than whole numbers from 1 on, separated by commas.
    """
    if text is None:
        return None
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"counts {text!r} are no whole numbers; write them like 1,3,5,8.") from error
    if min(counts) < 1:
        raise ConfigError(f"counts {text!r}; every count must be at least 1, like 1,3,5,8.")
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study from the command line and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m refbfr_core.benchmark.references", description=__doc__)
    parser.add_argument("--people", type=int, default=128)
    parser.add_argument("--preset", default="toy-refldm-severe")
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--counts", type=parse_counts, help="numbers of right references, such as 1,3,5,8")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/reference-study"))
    parser.add_argument("--weights", type=Path, help="folder of networks instead of the shipped ones")
    parser.add_argument("--device")
    chosen = vars(parser.parse_args(arguments))
    root = chosen.pop("weights")
    if root is not None:
        from refbfr_core.pipelines import load_pipeline

        chosen["pipeline"] = load_pipeline("refldm", device=chosen["device"], root=root)
    sys.stdout.write(f"{run_reference_study(**chosen)}\n")


if __name__ == "__main__":
    main()
