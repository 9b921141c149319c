"""What fewer steps cost DiffMAC: the same drawn faces and starting noise, sampled in more and fewer steps.

``python -m refbfr_core.benchmark.diffmac_steps`` gives both stages that many steps and keeps the rows as the recording
"diffmac-steps"; with ``--first-steps N`` Stage I takes N steps in every arm and only Stage II varies, which is what a
live slider for lambda saves on; that is "diffmac-steps-two".
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
from refbfr_core.benchmark.diffmac import METRICS, STAGE_ONE, DiffMACMethods, SharedWork, describe_sampling
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.severities import preset_of
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import unavailable

RECORDING, RECORDING_TWO = "diffmac-steps", "diffmac-steps-two"
STEPS = (5, 10, 25, 50)
SEVERITY = "severe"
_HEADINGS = {"PSNR": "psnr", "IDS": "ids", "textures": "textures", "niqe-toy": "niqe-toy", "detail": "detail"}


def run_steps_study(
    people: int = 32,
    steps: Sequence[int] = STEPS,
    severity: str = SEVERITY,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    first_steps: int | None = None,
    pipeline: Any = None,
    judge: nn.Module | None = None,
    metrics: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    progress: bool = True,
) -> ArmStudy:
    """Run the study, or continue one in the folder `out`. An arm is called like its number of steps.

    Args:
        steps: of each stage. first_steps: of Stage I in all arms instead; X_D1 is then made once, in an arm "stage1",
            and the time of the others is without it.
        metrics: None takes those of `refbfr_core.benchmark.diffmac.METRICS` that can be computed here.
        root: folder of DiffMAC's networks, instead of the shipped ones.

    Raises:
        ConfigError: fewer than two different numbers of steps, a second stage without Stage I where its steps are
            fixed, or `out` holds a run with other settings.
    """
    from refbfr_core.pipelines import load_pipeline
    from refbfr_core.weights import load_network

    if len(set(steps)) < 2:
        raise ConfigError(f"steps {tuple(steps)}; name at least two different numbers to compare.")
    pipe = load_pipeline("diffmac", device=device, root=root) if pipeline is None else pipeline
    judge = load_network("judge", device=device) if judge is None else judge
    pipe.set_progress_bar_config(disable=True)
    if first_steps is not None and pipe.second.config.source == "input":
        raise ConfigError("this second stage has no Stage I before it; leave first_steps out.")
    shared = SharedWork(pipe, {"num_inference_steps": first_steps})

    def arm(count: int) -> Arm:
        def restore(cases: Any) -> Any:
            first = None if first_steps is None else shared.first(cases)
            return pipe(cases.lq, first=first, num_inference_steps=count, seed=cases.seeds).images

        return restore

    arms: dict[str, Arm] = {} if first_steps is None else {STAGE_ONE: shared.first}
    arms |= {str(count): arm(count) for count in steps}
    metrics = [name for name in METRICS if not unavailable(name)] if metrics is None else metrics
    sampling = describe_sampling(pipe, num_inference_steps="as the arm says")
    fixed = "" if first_steps is None else f", Stage I in {first_steps}"
    return run_arms(
        arms,
        ArmSettings(
            people, preset_of(severity), 1, seed, metrics=tuple(metrics),
            method=f"DiffMAC {pipe.second.config.label} with {sampling}{fixed}",
        ),  # fmt: skip
        DiffMACMethods(pipe, {"second": pipe.second}).networks,
        judge,
        resolution=pipe.resolution,
        out=out,
        progress=progress,
    )


def steps_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """`refbfr_core.benchmark.pdgrad_steps.steps_table` of these rows (None: the recording), with PSNR, IDS, textures,
    niqe-toy and detail where they were measured; steps are those of a stage. "stage1" has no line."""
    rows = recorded(RECORDING).rows if rows is None else rows
    rows = rows[rows.arm != STAGE_ONE]
    return pdgrad_steps.steps_table(rows, {name: metric for name, metric in _HEADINGS.items() if metric in rows})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study (or continue it), print its tables and record the rows."""
    command = "python -m refbfr_core.benchmark.diffmac_steps"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of each stage, or of Stage II")
    parser.add_argument("--first-steps", type=int, help="of Stage I in all arms; default: as many as Stage II")
    parser.add_argument("--severity", default=SEVERITY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a stopped run is continued there; default: runs/<recording>")
    parser.add_argument("--folder", type=Path, help="where to record; default: the package's own recordings")
    parser.add_argument("--weights", type=Path, help="folder of networks from `refbfr train` instead of the shipped")
    parser.add_argument("--device")
    chosen = parser.parse_args(arguments)
    name = RECORDING if chosen.first_steps is None else RECORDING_TWO
    study = run_steps_study(
        chosen.people, chosen.steps, chosen.severity, chosen.seed, chosen.out or Path("runs") / name,
        first_steps=chosen.first_steps, device=chosen.device, root=chosen.weights,
    )  # fmt: skip
    sys.stdout.write(f"{study.table().to_string()}\n\n{steps_table(study.rows).to_string(index=False)}\n")
    command += f" --people {chosen.people} --steps {' '.join(map(str, chosen.steps))} --severity {chosen.severity}"
    command += "" if chosen.first_steps is None else f" --first-steps {chosen.first_steps}"
    path = record_arms(name, study, f"{command} --seed {chosen.seed}", chosen.folder)
    sys.stdout.write(f"\nrecorded: {path}\n")


if __name__ == "__main__":
    main()
