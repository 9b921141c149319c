"""How many references are enough? ReF-LDM's table 5 on drawn people, beside the paper's numbers.

``python -m refbfr_core.benchmark.reference_counts`` runs the reference study with 1, 3, 5 and 8 references and keeps
its rows as the recording "reference-counts", which `count_table` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.recording import record, recorded
from refbfr_core.benchmark.references import (
    NONE,
    ReferenceStudy,
    parse_counts,
    right_arm,
    run_reference_study,
)
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval

COUNTS = (1, 3, 5, 8)
RECORDING = "reference-counts"


def count_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 5 of ReF-LDM: "paper" beside "toy, measured", one row a number of references.

    Args:
        rows: rows of a reference study (columns "person", "arm", "status", "ids"); None reads the recording.

    Returns:
        Columns "references" (0 is the arm without any), "IDS, paper", "IDS, toy" (mean) with "IDS, toy, low" and
        "IDS, toy, high" (95 % bootstrap interval over people), "gain" (paired difference to the row above) with its
        "gain, low" and "gain, high", and "people". The paper's values are for "max n references" on FFHQ-Ref-Severe;
        missing numbers are NaN.

    Raises:
        ConfigError: the rows hold no arm with right references, or fewer than two scored people in one.
        UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    counts = sorted(int(arm.split()[1]) for arm in rows.arm.unique() if arm.startswith("right "))
    if not counts:
        raise ConfigError(
            f"these rows hold the arms {sorted(rows.arm.unique())}; expected some called {right_arm(1)!r}."
        )
    reported = published("ReF-LDM")
    reported = reported[(reported.table == "Table 5") & (reported.metric == "IDS")].set_index("method").value
    arms = {0: NONE} if NONE in set(rows.arm) else {}
    arms |= {count: right_arm(count) for count in counts}
    lines, above = [], None
    for count, arm in arms.items():
        scores = rows[(rows.arm == arm) & (rows.status == OK)].ids.to_numpy()
        if len(scores) < 2:
            raise ConfigError(f"{len(scores)} people are scored in the arm {arm!r}; an interval needs two or more.")
        line = {"references": count, "IDS, paper": float(reported.get(f"max {count} refs", float("nan")))}
        line |= _numbers("IDS, toy", mean_interval(scores))
        line |= _numbers("gain", None if above is None else contrast(rows, "ids", arm, above).interval)
        lines.append({**line, "people": len(scores)})
        above = arm
    return pd.DataFrame(lines)


def _numbers(name: str, interval: Interval | None) -> dict[str, float]:
    """Mean and ends of an interval as three columns."""
    mean, low, high = (float("nan"),) * 3 if interval is None else (interval.mean, interval.low, interval.high)
    return {name: mean, f"{name}, low": low, f"{name}, high": high}


def record_study(study: ReferenceStudy, command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of a finished study as the recording `RECORDING`; returns the path of the rows.

    Args:
        study: from `run_reference_study`.
        command: what to type to get it again.
        folder: default: the package's own recordings.

    Raises:
        ConfigError: some rows failed; a recording with holes would be read as whole.
    """
    if len(study.failures):
        raise ConfigError(f"{len(study.failures)} rows failed; first: {study.failures.reason.iloc[0]}. Run it again.")
    rows = study.rows[["person", "arm", "status", *study.settings.metrics, "seconds"]]
    settings = {**asdict(study.settings), "weights": study.weights}
    return record(RECORDING, rows, {"command": command, "settings": settings}, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the study (or continues it), prints both tables and records the rows."""
    parser = argparse.ArgumentParser(prog="python -m refbfr_core.benchmark.reference_counts", description=__doc__)
    parser.add_argument("--people", type=int, default=128)
    parser.add_argument("--counts", type=parse_counts, default=COUNTS, help="default: 1,3,5,8")
    parser.add_argument("--preset", default="toy-refldm-severe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/reference-counts"))
    parser.add_argument("--folder", type=Path, help="where to record; default: the package's own recordings")
    parser.add_argument("--device")
    chosen = parser.parse_args(arguments)
    study = run_reference_study(
        chosen.people, chosen.preset, seed=chosen.seed, out=chosen.out, counts=chosen.counts, device=chosen.device
    )
    counts = ",".join(map(str, chosen.counts))
    command = (
        f"python -m refbfr_core.benchmark.reference_counts --people {chosen.people} --counts {counts} "
        f"--preset {chosen.preset} --seed {chosen.seed}"
    )
    path = record_study(study, command, chosen.folder)
    table = count_table(study.rows).to_string(index=False, float_format=lambda value: f"{value:.4f}")
    sys.stdout.write(f"{study}\n\n{table}\n\nrecorded: {path}\n")


if __name__ == "__main__":
    main()
