"""A study at several severities: the same people, views and noise, ruined a little, more and much.

The severities are LD-BFR's (Du et al., ACM MM 2024, section 4.1); DiffMAC states none and is studied at the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy, run_arms
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.metrics import unavailable

SEVERITIES = ("mild", "medium", "severe")


def severity_names(text: str) -> tuple[str, ...]:
    """The severities that `text` names, "all" or such as "mild,severe", in the paper's order.

    Raises:
        UnknownNameError: another severity.
    """
    asked = SEVERITIES if text == "all" else [part.strip() for part in text.split(",")]
    for name in asked:
        if name not in SEVERITIES:
            raise unknown_name("severity", name, ["all", *SEVERITIES])
    return tuple(name for name in SEVERITIES if name in asked)


def preset_of(severity: str) -> str:
    """The degradation preset of a severity."""
    return f"toy-ldbfr-{severity}"


def named_arms(text: str, sets: Mapping[str, Sequence[str]], known: Sequence[str], example: str) -> tuple[str, ...]:
    """The arms that `text` names: keys of `sets` and names of `known` arms, with commas between them.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: none at all; it shows `example`.
    """
    found: list[str] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        found += sets.get(part, (part,))
    check_arms(found, sets, known)
    if not found:
        raise ConfigError(f"{text!r} names no arm; say one of {', '.join(sets)}, or names such as {example}.")
    return tuple(dict.fromkeys(found))


def check_arms(names: Sequence[str], sets: Mapping[str, Sequence[str]], known: Sequence[str]) -> None:
    """Raises UnknownNameError for a name that is not a `known` arm."""
    for name in names:
        if name not in known:
            raise unknown_name("arm", name, [*sets, *known])


def run_severities(
    arms: Mapping[str, Arm],
    severities: Sequence[str],
    settings: ArmSettings,
    networks: Sequence[nn.Module],
    judge: nn.Module,
    *,
    out: str | Path | None = None,
    **options: object,
) -> dict[str, ArmStudy]:
    """`run_arms` for each severity: severity -> study, whose rows are in the folder `out`/severity.

    Two processes may work on different severities of one `out` at the same time; a last call with all of them then only
    reads.

    Args:
        severities: such as "mild,severe" or names one by one. settings: its preset is replaced by each severity's.
        options: other keywords of `run_arms`.

    Raises:
        UnknownNameError: another severity. ConfigError: see `run_arms`.
    """
    return {
        severity: run_arms(
            arms,
            replace(settings, preset=preset_of(severity)),
            networks,
            judge,
            out=None if out is None else Path(out) / severity,
            **options,
        )
        for severity in severity_names(",".join(severities))
    }


def computable(metrics: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics that can be computed here."""
    return tuple(name for name in metrics if not unavailable(name))


def study_rows(studies: Mapping[str, ArmStudy]) -> pd.DataFrame:
    """The rows of all severities with a column "severity"; nobody's rows are left out."""
    return pd.concat(
        [study.rows.assign(severity=severity) for severity, study in studies.items()], ignore_index=True
    )


def record_severities(
    name: str,
    studies: Mapping[str, ArmStudy],
    command: str,
    folder: str | Path | None = None,
    columns: Sequence[str] = (),
) -> Path:
    """Keep the rows of all severities as the recording `name`; returns the path of the rows.

    Args:
        columns: of the rows to keep besides the scores, those that there are.

    Raises:
        ConfigError: severities are missing, some rows failed, or the severities do not belong together.
    """
    if missing := [severity for severity in SEVERITIES if severity not in studies]:
        raise ConfigError(f"the study lacks {', '.join(missing)}; run it with all severities, then record it.")
    rows = study_rows(studies)
    failed = rows[rows.status != OK]
    if len(failed):
        raise ConfigError(f"{len(failed)} rows failed; first: {failed.reason.iloc[0]}. Run it again.")
    common = {_common(study) for study in studies.values()}
    if len(common) > 1:
        raise ConfigError(f"the severities were run with different settings or networks: {sorted(common)}.")
    one = studies[SEVERITIES[0]]
    settings = {
        "method": one.settings.method,
        "presets": {severity: study.settings.preset for severity, study in studies.items()},
        "people": one.settings.people,
        "seed": one.settings.seed,
        "split": one.settings.split,
        "arms": one.arms,
        "metrics": list(one.settings.metrics),
        "weights": one.weights,
    }
    more = [column for column in columns if column in rows]
    kept = rows[["severity", "person", "arm", "status", *one.settings.metrics, "seconds", *more]]
    return record(name, kept, {"command": command, "settings": settings}, folder)


def _common(study: ArmStudy) -> tuple:
    own = study.settings
    return own.method, own.people, own.seed, own.split, own.metrics, study.weights, tuple(study.arms)
