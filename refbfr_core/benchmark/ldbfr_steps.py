"""What fewer steps cost LD-BFR: the same drawn faces and starting noise, sampled in more and fewer steps.

``python -m refbfr_core.benchmark.ldbfr_steps`` runs it and keeps the rows as the recording "ldbfr-steps".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from refbfr_core.benchmark import pdgrad_steps
from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy, record_arms, run_arms
from refbfr_core.benchmark.ldbfr import METRICS, describe_sampling
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.severities import preset_of
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import unavailable

RECORDING = "ldbfr-steps"
STEPS = (5, 10, 25, 50, 100)
SEVERITY = "severe"
_HEADINGS = {"PSNR": "psnr", "IDS": "ids", "textures": "textures", "niqe-toy": "niqe-toy", "detail": "detail"}


def run_steps_study(
    people: int = 32,
    steps: Sequence[int] = STEPS,
    severity: str = SEVERITY,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    pipeline: Any = None,
    judge: nn.Module | None = None,
    metrics: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    progress: bool = True,
) -> ArmStudy:
    """Run the study, or continue one in the folder `out`. An arm is called like its number of steps.

    Args:
        metrics: None takes those of `refbfr_core.benchmark.ldbfr.METRICS` that can be computed here.
        root: folder of LD-BFR's networks, instead of the shipped ones.

    Raises:
        ConfigError: fewer than two different numbers of steps, or `out` holds a run with other settings.
    """
    from refbfr_core.pipelines import load_pipeline
    from refbfr_core.weights import load_network

    if len(set(steps)) < 2:
        raise ConfigError(f"steps {tuple(steps)}; name at least two different numbers to compare.")
    pipeline = load_pipeline("ldbfr", device=device, root=root) if pipeline is None else pipeline
    judge = load_network("judge", device=device) if judge is None else judge
    pipeline.set_progress_bar_config(disable=True)

    def arm(count: int) -> Arm:
        return lambda cases: pipeline(cases.lq, num_inference_steps=count, seed=cases.seeds).images

    metrics = [name for name in METRICS if not unavailable(name)] if metrics is None else metrics
    sampling = describe_sampling(pipeline, num_inference_steps="as the arm says")
    words = f"LD-BFR {pipeline.injection.variant} with {sampling}"
    return run_arms(
        {str(count): arm(count) for count in steps},
        ArmSettings(people, preset_of(severity), 1, seed, metrics=tuple(metrics), method=words),
        [pipeline.vqc, pipeline.restorer, pipeline.vqo, pipeline.unet, pipeline.injection],
        judge,
        resolution=pipeline.resolution,
        out=out,
        progress=progress,
    )


def steps_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """`refbfr_core.benchmark.pdgrad_steps.steps_table` of these rows (None: the recording), with PSNR, IDS, textures,
    niqe-toy and detail where they were measured."""
    rows = recorded(RECORDING).rows if rows is None else rows
    return pdgrad_steps.steps_table(rows, {name: metric for name, metric in _HEADINGS.items() if metric in rows})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study (or continue it), print its tables and record the rows."""
    command = "python -m refbfr_core.benchmark.ldbfr_steps"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--severity", default=SEVERITY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ldbfr-steps"), help="a stopped run is continued there")
    parser.add_argument("--folder", type=Path, help="where to record; default: the package's own recordings")
    parser.add_argument("--weights", type=Path, help="folder of networks from `refbfr train` instead of the shipped")
    parser.add_argument("--device")
    chosen = parser.parse_args(arguments)
    study = run_steps_study(
        chosen.people, chosen.steps, chosen.severity, chosen.seed, chosen.out, device=chosen.device, root=chosen.weights
    )
    sys.stdout.write(f"{study.table().to_string()}\n\n{steps_table(study.rows).to_string(index=False)}\n")
    command += f" --people {chosen.people} --steps {' '.join(map(str, chosen.steps))} --severity {chosen.severity}"
    path = record_arms(RECORDING, study, f"{command} --seed {chosen.seed}", chosen.folder)
    sys.stdout.write(f"\nrecorded: {path}\n")


if __name__ == "__main__":
    main()
