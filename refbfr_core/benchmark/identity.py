"""Does ReF-LDM's identity loss help, and which time scale? The paper's two ablations, on drawn people.

Every run is the shipped denoiser fine-tuned by `refbfr train refldm-identity` with one scale and one seed. All runs
restore the same unseen people from the same ruined pictures, noise and references. Identity is scored by the judge,
and also by the guide that the loss was trained against: a loss is gamed by its own judge, so the second number
flatters it and only the first one counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.benchmark.cases import Cases, make_cases
from refbfr_core.benchmark.identity_tables import RECORDING, IdentityStudy
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.rows import FAILED, OK, RowStore, fingerprint
from refbfr_core.errors import ConfigError, RefbfrError
from refbfr_core.images import read_image, write_image
from refbfr_core.metrics import compute, unavailable

GUIDE = "ids-guide"
_CANDIDATES = ("ids", GUIDE, "psnr", "ssim", "niqe-toy")


@dataclass(frozen=True)
class IdentityStudySettings:
    """What decides the numbers of the study; `references` of each person, `steps` and `guidance` of the sampler."""

    people: int = 128
    preset: str = "toy-refldm-severe"
    references: int = 4
    steps: int = 10
    guidance: float = 2.0
    seed: int = 0
    split: str = "test"
    metrics: tuple[str, ...] = ("ids", GUIDE, "psnr", "ssim")
    pictures: int = 8

    def __post_init__(self) -> None:
        if self.people < 2 or self.references < 1:
            raise ConfigError(f"people={self.people}, references={self.references}; use at least 2 and 1.")


@dataclass(frozen=True)
class IdentityRun:
    """One fine-tuned denoiser: where it lies, and what its card says."""

    name: str
    folder: Path
    scale: str
    seed: int
    weight: float
    steps: int
    samples: int
    minutes: float


def find_runs(folder: str | Path) -> list[IdentityRun]:
    """The finished runs of `refbfr train refldm-identity` in the folders inside `folder`, by name.

    Raises:
        ConfigError: there is none. WeightsError: a card is damaged.
    """
    from refbfr_core.weights import read_card

    runs = []
    for export in sorted(Path(folder).glob("*/export/refldm-unet")):
        made = read_card(export)["card"]["recipe"]
        if made.get("name") != "refldm-identity":
            continue
        numbers = (made["identity_weight"], made["steps"], made["samples"], made["minutes"])
        runs.append(IdentityRun(export.parents[1].name, export.parent, made["scale"], made["seed"], *numbers))
    if not runs:
        raise ConfigError(
            f"{folder} holds no finished run of refldm-identity; train some with "
            f"`refbfr train refldm-identity --out {folder}/NAME --set scale=SCALE --set seed=SEED`."
        )
    return runs


def run_identity_study(
    runs: str | Path,
    people: int = 128,
    preset: str = "toy-refldm-severe",
    references: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    batch: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
    load: Callable[[Path], nn.Module] | None = None,
    pipeline: DiffusionPipeline | None = None,
) -> IdentityStudy:
    """Restores the same people with every run and with the shipped denoiser; continues what was interrupted in `out`.

    Args:
        runs: folder of runs, see `find_runs`.
        people, preset, references, steps, guidance, seed, split: see `IdentityStudySettings`; steps and guidance of
            None are the pipeline's own.
        out: folder with one folder a run for its rows, and some pictures; None writes nothing.
        metrics: None takes "ids", "ids-guide", "psnr", "ssim" and, where it can be computed, "niqe-toy".
        batch: people restored together. device: where shipped networks are loaded to.
        load: from a run's folder to its denoiser; pipeline: the pipeline whose denoiser is replaced. For tests.

    Raises:
        ConfigError: no runs, impossible settings, or `out` holds rows of other settings or weights. WeightsError.
        A failure of a single case is no exception but a row with status "failed" and its reason.
    """
    from refbfr_core.weights import load_network

    found = find_runs(runs)
    if pipeline is None:
        from refbfr_core.pipelines import load_pipeline

        pipeline = load_pipeline("refldm", device=device)
    if metrics is None:
        metrics = tuple(name for name in _CANDIDATES if name == GUIDE or not unavailable(name))
    settings = IdentityStudySettings(
        people,
        preset,
        references,
        pipeline.config.num_inference_steps if steps is None else steps,
        pipeline.config.guidance_scale if guidance is None else guidance,
        seed,
        split,
        tuple(metrics),
        min(people, 8),
    )
    pipeline.set_progress_bar_config(disable=True)
    embedders = {"ids": load_network("judge", device=device), GUIDE: load_network("guide", device=device)}
    load = load or (lambda folder: load_network("refldm-unet", device=device, root=folder))
    denoisers: dict[str, nn.Module] = {"shipped": pipeline.unet} | {run.name: load(run.folder) for run in found}
    stores = {
        name: RowStore(
            {**asdict(settings), "weights": fingerprint(pipeline.vq, unet, *embedders.values())},
            None if out is None else Path(out) / name,
        )
        for name, unet in denoisers.items()
    }
    labels = {run.name: (run.scale, run.seed) for run in found} | {"shipped": ("shipped", 0)}
    todo = {name: set(range(people)) - store.done("person") for name, store in stores.items()}
    waiting = sorted(set().union(*todo.values()))
    with tqdm(total=sum(map(len, todo.values())), desc="restorations", disable=not progress) as bar:
        for start in range(0, len(waiting), batch):
            chosen = waiting[start : start + batch]
            cases = make_cases(
                chosen, people, preset=preset, references=references, seed=seed, split=split,
                resolution=pipeline.resolution,
            )  # fmt: skip
            for name, unet in denoisers.items():
                own = [row for row, person in enumerate(chosen) if person in todo[name]]
                if not own:
                    continue
                pipeline.unet = unet
                part = cases if len(own) == len(cases) else _rows_of(cases, own)
                rows, pictures = _restore(pipeline, embedders, part, settings)
                scale, run_seed = labels[name]
                stores[name].append({"run": name, "scale": scale, "seed": run_seed, **row} for row in rows)
                if out is not None:
                    _keep(Path(out) / name, pictures, part, settings.pictures)
                    _keep(Path(out) / "truth", cases.truth, cases, settings.pictures)
                    _keep(Path(out) / "input", cases.lq, cases, settings.pictures)
                bar.update(len(own))
    pipeline.unet = denoisers["shipped"]
    rows = pd.concat([store.frame() for store in stores.values()], ignore_index=True)
    about = [{**asdict(run), "folder": run.folder.parent.name} for run in found]
    return IdentityStudy(rows, {**asdict(settings), "runs": about})


def record_study(study: IdentityStudy, command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of a finished study as the recording "identity-scales"; returns the path of the rows.

    Args:
        command: what to type to get it again. folder: default: the package's own recordings.

    Raises:
        ConfigError: some rows failed; a recording with holes would be read as whole.
    """
    if len(study.failures):
        raise ConfigError(f"{len(study.failures)} rows failed; first: {study.failures.reason.iloc[0]}. Run it again.")
    columns = ["run", "scale", "seed", "person", "status", *study.metrics, "seconds"]
    return record(RECORDING, study.rows[columns], {"command": command, "settings": study.settings}, folder)


def kept_pictures(out: str | Path, name: str, people: int) -> Tensor:
    """The first `people` kept restorations of a run ("truth" and "input" too), (people, 3, H, W) in [0, 1]."""
    return torch.cat([read_image(_picture(Path(out) / name, person)) for person in range(people)])


def _restore(
    pipeline: DiffusionPipeline, embedders: Mapping[str, nn.Module], cases: Cases, settings: IdentityStudySettings
) -> tuple[list[dict[str, Any]], Tensor | None]:
    """Rows and pictures of some cases; when that fails each is tried alone, so that only the guilty ones fail."""
    start = time.perf_counter()
    try:
        pictures = pipeline(
            cases.lq,
            cases.right,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            seed=cases.seeds,
        ).images
        seconds = (time.perf_counter() - start) / len(cases)
        scores = _scores(pictures, cases.truth, embedders, settings.metrics)
    except (RefbfrError, RuntimeError, ValueError) as error:
        if len(cases) > 1:
            alone = [_restore(pipeline, embedders, cases.select(row), settings)[0] for row in range(len(cases))]
            return [row for rows in alone for row in rows], None
        blank = dict.fromkeys(settings.metrics, float("nan"))
        return [_row(cases.people[0], FAILED, f"{type(error).__name__}: {error}", blank, float("nan"))], None
    rows = zip(cases.people, scores, strict=True)
    return [_row(person, OK, "", own, seconds) for person, own in rows], pictures


def _scores(
    pictures: Tensor, truth: Tensor, embedders: Mapping[str, nn.Module], metrics: Sequence[str]
) -> list[dict[str, float]]:
    columns = {}
    for name in metrics:
        keywords = {"embedder": embedders[name]} if name in embedders else {}
        columns[name] = compute("ids" if name == GUIDE else name, pictures, truth, **keywords).tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _row(person: int, status: str, reason: str, scores: Mapping[str, float], seconds: float) -> dict[str, Any]:
    return {"person": person, "status": status, "reason": reason, **scores, "seconds": seconds}


def _rows_of(cases: Cases, rows: Sequence[int]) -> Cases:
    """Some cases of a batch, in order."""
    index = torch.tensor(rows)
    return Cases(
        tuple(cases.people[row] for row in rows),
        *(part[index] for part in (cases.truth, cases.lq, cases.right, cases.wrong)),
        [cases.seeds[row] for row in rows],
        [cases.degradations[row] for row in rows],
    )


def _keep(folder: Path, pictures: Tensor | None, cases: Cases, count: int) -> None:
    if pictures is None:
        return
    for person, picture in zip(cases.people, pictures, strict=True):
        if person < count:
            write_image(_picture(folder, person), picture[None].cpu())


def _picture(folder: Path, person: int) -> Path:
    return folder / "pictures" / f"{person:03d}.png"
