"""What fewer steps cost PDGrad: the same drawn faces and starting noise, sampled in more and fewer steps.

``python -m refbfr_core.benchmark.pdgrad_steps`` runs it and keeps the rows as the recording "pdgrad-steps".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from refbfr_core.benchmark.arms import INPUT, ArmSettings, ArmStudy, default_metrics, record_arms, run_arms
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import mean_interval

RECORDING = "pdgrad-steps"
STEPS = (25, 50, 100, 250)
"""Steps that the whole process would take; only those below tau are taken."""

MEASURES = MappingProxyType({"IDS": "ids", "PSNR": "psnr"})
"""What the table shows: heading -> metric."""


def run_steps_study(
    people: int = 32,
    steps: Sequence[int] = STEPS,
    preset: str = "toy-refldm-severe",
    seed: int = 0,
    out: str | Path | None = None,
    *,
    pipeline: Any = None,
    judge: nn.Module | None = None,
    metrics: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> ArmStudy:
    """Run the study, or continue one in the folder `out`. An arm is called like its number of steps;
    `metrics` None takes all that can be computed here.

    Raises
    ------
    ConfigError : fewer than two different numbers of steps, or `out` holds a run with other settings.
    """
    if len(set(steps)) < 2:
        raise ConfigError(f"steps {tuple(steps)}; name at least two different numbers to compare.")
    if pipeline is None:
        from refbfr_core.pipelines import load_pipeline

        pipeline = load_pipeline("pdgrad", device=device)
    if judge is None:
        from refbfr_core.weights import load_network

        judge = load_network("judge", device=device)
    pipeline.set_progress_bar_config(disable=True)

    def arm(count: int) -> Callable[[Cases], Tensor]:
        def restore(cases: Cases) -> Tensor:
            return pipeline(cases.lq, cases.right, num_inference_steps=count, seed=cases.seeds).images

        return restore

    if metrics is None:
        metrics = default_metrics()
    config = {key: pipeline.config[key] for key in ("start", "scale", "gain", "timestep_spacing")}
    words = ", ".join(f"{key} {value}" for key, value in sorted(config.items()))
    return run_arms(
        {str(count): arm(count) for count in steps},
        ArmSettings(people, preset, 1, seed, metrics=tuple(metrics), method=f"PDGrad with {words}"),
        [pipeline.unet, pipeline.embedder, pipeline.perceptual, pipeline.coarse],
        judge,
        resolution=pipeline.resolution,
        out=out,
        progress=progress,
    )


def steps_table(rows: pd.DataFrame | None = None, measures: Mapping[str, str] = MEASURES) -> pd.DataFrame:
    """One line a number of steps, ascending: means and paired differences to the largest number.

    Returns
    -------
    columns "steps" (of the whole process); for every measure, such as "IDS", its mean and "IDS - most" (`Interval`, the
    latter None in the last line); "seconds" (mean of a face, on the machine of the recording), "people".
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    counts = sorted(int(arm) for arm in set(rows.arm) - {INPUT})
    lines = []
    for count in counts:
        own = rows[(rows.arm == str(count)) & (rows.status == OK)]
        line: dict[str, Any] = {"steps": count}
        for name, metric in measures.items():
            line[name] = mean_interval(own[metric].to_numpy())
        for name, metric in measures.items():
            last = count == counts[-1]
            line[f"{name} - most"] = None if last else contrast(rows, metric, str(count), str(counts[-1])).interval
        lines.append({**line, "seconds": float(own.seconds.mean()), "people": len(own)})
    return pd.DataFrame(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study (or continue it), print its tables and record the rows."""
    parser = argparse.ArgumentParser(prog="python -m refbfr_core.benchmark.pdgrad_steps", description=__doc__)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pdgrad-steps"))
    parser.add_argument("--folder", type=Path, help="where to record; default: the package's own recordings")
    parser.add_argument("--device")
    chosen = parser.parse_args(arguments)
    study = run_steps_study(chosen.people, chosen.steps, seed=chosen.seed, out=chosen.out, device=chosen.device)
    sys.stdout.write(f"{study.table().to_string()}\n\n{steps_table(study.rows).to_string(index=False)}\n")
    counts = " ".join(map(str, chosen.steps))
    command = f"python -m refbfr_core.benchmark.pdgrad_steps --people {chosen.people} --steps {counts}"
    path = record_arms(RECORDING, study, f"{command} --seed {chosen.seed}", chosen.folder)
    sys.stdout.write(f"\nrecorded: {path}\n")


if __name__ == "__main__":
    main()
