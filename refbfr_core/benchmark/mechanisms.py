"""Which way for references to enter restores best? The question of ReF-LDM's Table 2, on drawn people.

Every arm is the same small network, fine-tuned equally long with one mechanism (`refbfr train refldm-mechanism`). Every
unseen person is restored by every arm from the same ruined picture, the same references and the same noise, so that
scores are paired by person; identity is scored by the judge, which took no part in any training.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import VQModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.benchmark.cases import Cases, make_cases
from refbfr_core.benchmark.mechanisms_restore import Arm, Encoded, load_arm, restore_encoded
from refbfr_core.benchmark.mechanisms_table import arm_name, compact_rows, quality_contrasts, quality_table
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.report import Contrast
from refbfr_core.benchmark.rows import FAILED, OK, RowStore, fingerprint
from refbfr_core.benchmark.scoring import Scorer
from refbfr_core.errors import ConfigError, RefbfrError, unknown_name
from refbfr_core.files import write_text
from refbfr_core.metrics import unavailable
from refbfr_core.models.mechanisms import MECHANISMS, ReferenceMechanism

RECORDING = "mechanisms-quality"
_WANTED = ("ids", "psnr", "ssim", "lpips", "niqe-toy")


@dataclass(frozen=True)
class MechanismSettings:
    """What decides the numbers of the study. `guidance` 1 is off; it works against references that are all zeros."""

    people: int = 128
    counts: tuple[int, ...] = (0, 1, 3, 5)
    steps: int = 10
    guidance: float = 1.0
    preset: str = "toy-refldm-severe"
    seed: int = 0
    split: str = "test"
    metrics: tuple[str, ...] = _WANTED

    def __post_init__(self) -> None:
        if self.people < 2 or not self.counts or min(self.counts) < 0 or max(self.counts) < 1:
            raise ConfigError(
                f"people={self.people}, counts={self.counts}; expected 2 people or more, and numbers of references of "
                "which one at least is above 0."
            )


@dataclass(frozen=True)
class MechanismStudy:
    """A finished study: one row a person and arm; means with 95 % intervals; paired differences by person.

    `arms` says of every mechanism how it was trained and which weights were used.
    """

    settings: MechanismSettings
    rows: pd.DataFrame
    table: pd.DataFrame
    contrasts: list[Contrast]
    arms: Mapping[str, Mapping[str, Any]]

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that have no scores, with their reasons."""
        return self.rows[self.rows.status == FAILED]

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"reference mechanisms: {s.people} unseen people of the {s.split!r} split, {s.preset}, seed {s.seed}",
            f"restored in {s.steps} steps with guidance {s.guidance:g}; an arm is a mechanism and R references",
            f"means with 95 % bootstrap intervals over people; {len(self.failures)} of {len(self.rows)} rows failed",
            "",
            self.table.to_string(),
            "",
            "paired differences (mean, 95 % bootstrap interval, people)",
            *(f"  {each}" for each in self.contrasts),
        ]
        lines += [f"  failed {n} times: {reason}" for reason, n in self.failures.reason.value_counts().items()]
        return "\n".join(lines)


def run_mechanism_study(
    folders: Mapping[str, str | Path] | str | Path,
    people: int = 128,
    counts: Sequence[int] = (0, 1, 3, 5),
    steps: int = 10,
    guidance: float = 1.0,
    *,
    preset: str = "toy-refldm-severe",
    seed: int = 0,
    out: str | Path | None = None,
    vq: VQModel | None = None,
    judge: nn.Module | None = None,
    metrics: Sequence[str] | None = None,
    batch: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> MechanismStudy:
    """Run the study, or continue one that was interrupted in the folder `out`.

    Args:
        folders: of the trained arms, by the name of their mechanism; or one folder that holds them under those names.
        people, counts, steps, guidance, preset, seed: see `MechanismSettings`. A number of references that a mechanism
            cannot take (channel concatenation) is no arm; "none" is one arm.
        out: folder for `settings.json`, `rows.csv` and `table.txt`; None writes nothing.
        vq, judge: None loads the shipped ones.
        metrics: what is measured; None takes IDS, PSNR, SSIM, LPIPS and niqe-toy, as far as they can be computed here.
        batch: people restored together.

    Raises:
        UnknownNameError: a mechanism that does not exist. ConfigError: impossible settings, no arms, or `out` holds a
        run with other settings. WeightsError: weights are missing or damaged. A failure of a single case is a row with
        status "failed" and its reason.
    """
    arms = {name: load_arm(folder, device) for name, folder in _arm_folders(folders).items()}
    metrics = _WANTED if metrics is None else metrics
    metrics = tuple(name for name in metrics if name not in _WANTED or not unavailable(name))
    settings = MechanismSettings(people, tuple(sorted({*counts})), steps, guidance, preset, seed, metrics=metrics)
    from refbfr_core.weights import load_network

    vq = load_network("refldm-vq", device=device) if vq is None else vq
    judge = load_network("judge", device=device) if judge is None else judge
    scorer = Scorer(metrics, judge)
    weights = {name: fingerprint(arm.network) for name, arm in arms.items()}
    store = RowStore({**asdict(settings), "weights": weights, "others": fingerprint(vq, judge)}, out)
    done = store.done("person")
    todo = [index for index in range(people) if index not in done]
    with tqdm(total=people, initial=people - len(todo), desc="people", disable=not progress) as bar:
        for start in range(0, len(todo), batch):
            chosen = todo[start : start + batch]
            cases = make_cases(
                chosen, people, preset=preset, references=max(counts), seed=seed, split=settings.split,
                resolution=next(iter(arms.values())).resolution(vq),
            )  # fmt: skip
            rows = _score(scorer, cases, "input", 0, cases.lq, 0.0)
            rows += _run_arms(arms.values(), vq, scorer, cases, settings)
            store.append(rows)
            bar.update(len(cases))
    rows = store.frame()
    about = {name: {"weights": weights[name], **_training(arm)} for name, arm in arms.items()}
    study = MechanismStudy(settings, rows, quality_table(rows), quality_contrasts(rows), about)
    if out is not None:
        write_text(Path(out) / "table.txt", f"{study}\n")
    return study


def record_study(study: MechanismStudy, command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of a finished study as the recording `RECORDING`; returns the path of the rows.

    Args:
        command: what to type to get them again.
        folder: default: the package's own recordings.

    Raises:
        ConfigError: some rows failed; a recording with holes would be read as whole.
    """
    if len(study.failures):
        raise ConfigError(f"{len(study.failures)} rows of the study failed; run it again before it is recorded.")
    about = {"command": command, "settings": asdict(study.settings), "arms": dict(study.arms)}
    return record(RECORDING, compact_rows(study.rows), about, folder)


def _training(arm: Arm) -> dict[str, Any]:
    recipe = arm.training["recipe"]
    kept = {key: recipe[key] for key in ("steps", "batch", "lr", "seed", "people", "reference_counts") if key in recipe}
    return kept | {key: arm.training[key] for key in ("parameters", "facts", "results") if key in arm.training}


def _arm_folders(folders: Mapping[str, str | Path] | str | Path) -> dict[str, Path]:
    if isinstance(folders, Mapping):
        found = {name: Path(folder) for name, folder in folders.items()}
    else:
        found = {name: Path(folders) / name for name in MECHANISMS if (Path(folders) / name).is_dir()}
    for name in found:
        if name not in MECHANISMS:
            raise unknown_name("reference mechanism", name, MECHANISMS)
    if not found:
        raise ConfigError(
            f"{folders} holds no arm; train some with `refbfr train refldm-mechanism --set mechanism=NAME` into "
            f"folders called {', '.join(MECHANISMS)}."
        )
    return {name: found[name] for name in MECHANISMS if name in found}


def _possible(network: ReferenceMechanism, counts: Sequence[int]) -> list[int]:
    most = 0 if network.name == "none" else network.max_references
    return [count for count in counts if most is None or count <= most]


def _run_arms(
    arms: Iterable[Arm], vq: VQModel, scorer: Scorer, cases: Cases, settings: MechanismSettings
) -> list[dict[str, Any]]:
    """Rows of every mechanism with every number of references it can take; pictures are encoded once for all."""
    encoded: dict[int, Encoded] = {}
    rows = []
    for arm in arms:
        if arm.patch_size not in encoded:
            encoded[arm.patch_size] = Encoded(vq, arm.patch_size, cases.lq, cases.right)
        for count in _possible(arm.network, settings.counts):
            rows += _run_arm(arm, encoded[arm.patch_size], scorer, cases, count, settings)
    return rows


def _run_arm(
    arm: Arm, encoded: Encoded, scorer: Scorer, cases: Cases, count: int, settings: MechanismSettings
) -> list[dict[str, Any]]:
    """Rows of one arm; when a batch fails every case is tried alone, so that only the guilty ones become failures."""
    name, start = arm.network.name, time.perf_counter()
    try:
        pictures = restore_encoded(arm, encoded, count, settings.steps, settings.guidance, cases.seeds)
        seconds = (time.perf_counter() - start) / len(cases)
        return _score(scorer, cases, name, count, pictures, seconds)
    except (RefbfrError, RuntimeError, ValueError) as error:
        if len(cases) == 1:
            blank = dict.fromkeys(settings.metrics, float("nan"))
            reason = f"{type(error).__name__}: {error}"
            return [_row(cases, 0, name, count, FAILED, reason, **blank, seconds=float("nan"))]
        rows = []
        for one in map(cases.select, range(len(cases))):
            own = Encoded(encoded.vq, encoded.patch_size, one.lq, one.right)
            rows += _run_arm(arm, own, scorer, one, count, settings)
        return rows


def _score(
    scorer: Scorer, cases: Cases, mechanism: str, count: int, pictures: Tensor, seconds: float
) -> list[dict[str, Any]]:
    scores = scorer(pictures, cases.truth)
    return [_row(cases, row, mechanism, count, OK, "", **each, seconds=seconds) for row, each in enumerate(scores)]


def _row(
    cases: Cases, row: int, mechanism: str, count: int, status: str, reason: str, **scores: float
) -> dict[str, Any]:
    return {
        "person": cases.people[row],
        "arm": arm_name(mechanism, count),
        "mechanism": mechanism,
        "references": count,
        "status": status,
        "reason": reason,
        **scores,
        "noise_seed": cases.seeds[row],
    }
