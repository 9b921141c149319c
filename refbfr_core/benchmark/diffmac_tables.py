"""Tables of DiffMAC's ablations: means, differences to the method, lambda by lambda_info, what identities bring, and
Table 3 of the paper beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from refbfr_core.benchmark import ldbfr_tables
from refbfr_core.benchmark.diffmac import (
    ABLATIONS,
    COLUMNS,
    DECODED,
    DECODED_ORACLE,
    IDENTITIES,
    METHOD,
    METRICS,
    ORACLE,
    RECORDING,
    SHARE,
    SHARE_MEANS,
    SHARE_VARIANCES,
    WEIGHTS,
)
from refbfr_core.benchmark.diffmac_claims import FAMILIES, PAPER_ROWS
from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.severities import SEVERITIES
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval

PAPER_SCORES = ("FID", "NIQE", "MUSIQ")
OUR_SCORES = ("niqe-toy", "textures", "ids", "psnr")
PAPER_NOTE = (
    "CelebChild (180 photographs of 512 px without truth) there, drawings of 128 px here; of the paper's scores only "
    "NIQE has a counterpart, with other statistics. Only the order of lines within a column means something, and "
    "printed numbers have no intervals."
)


def severity_table(rows: pd.DataFrame | None = None, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean of every score with its 95 % interval over people: one line a severity and arm.

    Args:
        rows: of `refbfr_core.benchmark.severities.study_rows`; None reads the recording.
        metrics: columns; all of `METRICS` and `COLUMNS` that the rows have if not given.

    Returns:
        columns "severity", "arm", each metric (`Interval`; None where an arm has no such number), "people", "seconds"
        (mean of a face on the machine of the run; Stage I counts in "stage1" only).

    Raises:
        UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    lines = []
    for severity in _present(rows):
        for arm in dict.fromkeys(rows.arm):
            own = rows[(rows.severity == severity) & (rows.arm == arm) & (rows.status == OK)]
            cells = {name: _mean(own[name]) for name in _scores(rows, metrics)}
            seconds = float(own.seconds.mean()) if "seconds" in own else float("nan")
            lines.append({"severity": severity, "arm": arm, **cells, "people": len(own), "seconds": seconds})
    return pd.DataFrame(lines)


def difference_table(
    rows: pd.DataFrame | None = None, other: str = METHOD, metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Every arm minus the arm `other`, paired by person: columns "severity", "arm", each metric (`Interval` or None).

    Arguments as in `severity_table`. Raises ConfigError when a severity has no arm `other`.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    return ldbfr_tables.difference_table(rows, other, _scores(rows, metrics))


def share_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean lambda by compensation and lambda_info.

    Returns:
        columns "severity", "compensation", "lambda_info" (0.1, 0.01, 0.001), "share" (all channels), "share-means",
        "share-variances", "information" (`Interval`); a compensation without arms has no line.

    Raises:
        UnknownNameError: nothing was recorded. ConfigError: the rows have no lambda.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    names = (SHARE, SHARE_MEANS, SHARE_VARIANCES, "information")
    if absent := [name for name in names if name not in rows]:
        raise ConfigError(f"the rows lack {absent}; run the study with arms that have a bottleneck.")
    means = severity_table(rows, names).set_index(["severity", "arm"])
    lines = []
    for severity in _present(rows):
        for words, pattern in FAMILIES.items():
            for weight in WEIGHTS:
                key = severity, pattern.format(weight)
                if key in means.index:
                    about = {"severity": severity, "compensation": words, "lambda_info": float(weight)}
                    lines.append(about | means.loc[key, list(names)].to_dict())
    return pd.DataFrame(lines)


def identity_table(
    rows: pd.DataFrame | None = None, metrics: Sequence[str] = ("ids", "psnr", "latent-error")
) -> pd.DataFrame:
    """What another identity, or the best sixteen numbers, change against X_D1's own identity, paired by person.

    Returns:
        columns "severity", "arm" (of the own identity), "injected" ("ref", "refs", "wrong", "true", "oracle"; "Z
        oracle" is compared with "Z", both decoded without Stage II), each metric (`Interval` or None).

    Raises:
        UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    arms = list(dict.fromkeys(rows.arm))
    pairs = [
        (arm, way, f"{arm}+{way}", f"{arm}+{DECODED}" if way == DECODED_ORACLE else arm)
        for arm in arms
        for way in (*IDENTITIES, ORACLE, DECODED_ORACLE)
        if f"{arm}+{way}" in arms
    ]
    lines = []
    for severity in _present(rows):
        own = rows[rows.severity == severity]
        for arm, way, one, other in pairs:
            cells = {name: contrast(own, name, one, other).interval for name in metrics if name in rows}
            lines.append({"severity": severity, "arm": arm, "injected": way, **cells})
    return pd.DataFrame(lines)


def beside_paper(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 3 of the paper (CelebChild), and the same rows on drawn people; see `PAPER_NOTE`.

    Ours are averaged over the three severities for each person first; people who lack one do not count.

    Returns:
        columns "row" (the paper's name; ours where the paper has no such row), "FID", "NIQE", "MUSIQ" (float, NaN
        where the paper has no such row), "niqe-toy", "textures", "ids", "psnr" (`Interval` or None).

    Raises:
        UnknownNameError: nothing was recorded. ConfigError: the rows lack a severity.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    if absent := [severity for severity in SEVERITIES if severity not in set(rows.severity)]:
        raise ConfigError(f"the rows lack the severities {absent}, which the mean contains.")
    paper = published("DiffMAC")
    paper = paper[paper.table == "Table 3"].pivot(index="method", columns="metric", values="value")
    lines = []
    for arm in ABLATIONS:
        own = rows[(rows.arm == arm) & (rows.status == OK)]
        name = PAPER_ROWS.get(arm, arm)
        there = paper.loc[name] if name in paper.index else {}
        cells = {score: there.get(score, float("nan")) for score in PAPER_SCORES}
        cells |= {score: _mean(_by_person(own, score)) for score in OUR_SCORES if score in rows}
        lines.append({"row": name, **cells})
    return pd.DataFrame(lines)


def _scores(rows: pd.DataFrame, metrics: Sequence[str] | None) -> list[str]:
    return [name for name in (*METRICS, *COLUMNS) if name in rows] if metrics is None else list(metrics)


def _present(rows: pd.DataFrame) -> list[str]:
    return [severity for severity in SEVERITIES if severity in set(rows.severity)]


def _by_person(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over the severities for everybody who has all of them."""
    scores = rows.pivot(index="person", columns="severity", values=metric)
    return scores.reindex(columns=SEVERITIES).dropna().mean(axis=1)


def _mean(values: pd.Series) -> Interval | None:
    """None for a quantity that the arm does not have, or for a single person."""
    known = values.to_numpy(np.float64)
    return None if np.isnan(known).all() or len(known) < 2 else mean_interval(known)
