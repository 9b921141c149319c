"""Tables of LD-BFR's ablations: means, paired differences, colour by channel, and Table 1 of the paper beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refbfr_core.benchmark.arms import INPUT
from refbfr_core.benchmark.ldbfr import COARSE, FULL, METRICS, PLAIN, RECORDING, STAGE_ONE
from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.severities import SEVERITIES
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval

CHANNELS = ("bias-red", "bias-green", "bias-blue")
PAPER_SCORES = ("PSNR", "SSIM", "LPIPS", "FID")
PAPER_NOTE = (
    "Photographs of 512 px there, drawings of 128 px here, with other networks behind every score; only the order of "
    "lines of one world means something. LPIPS and FID have no counterpart on drawn faces."
)


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """The scores that these rows have, in the order of `METRICS`."""
    return [name for name in METRICS if name in rows]


def severity_table(rows: pd.DataFrame | None = None, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean of every score with its 95 % interval over people: one line a severity and arm.

    Args:
        rows: of `refbfr_core.benchmark.severities.study_rows`; None reads the recording.
        metrics: columns; all that the rows have if not given.

    Returns:
        columns "severity", "arm", each metric (`Interval`, None for fewer than two people), "people", "seconds" (mean
        of a face on the machine of the run).

    Raises:
        UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    lines = []
    for severity, arm, own in _groups(rows):
        cells = {name: _mean(own[name]) for name in metrics or metrics_of(rows)}
        seconds = float(own.seconds.mean()) if "seconds" in own else float("nan")
        lines.append({"severity": severity, "arm": arm, **cells, "people": len(own), "seconds": seconds})
    return pd.DataFrame(lines)


def difference_table(
    rows: pd.DataFrame | None = None, other: str = FULL, metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Every arm minus the arm `other`, paired by person: columns "severity", "arm", each metric (`Interval` or None).

    Arguments as in `severity_table`. Raises ConfigError when a severity has no arm `other`.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    lines = []
    for severity, arm, _ in _groups(rows):
        own = rows[rows.severity == severity]
        if other not in set(own.arm):
            raise ConfigError(f"{severity} holds the arms {sorted(own.arm.unique())}, not {other!r}; choose another.")
        if arm != other:
            cells = {name: contrast(own, name, arm, other).interval for name in metrics or metrics_of(rows)}
            lines.append({"severity": severity, "arm": arm, **cells})
    return pd.DataFrame(lines)


def colour_table(rows: pd.DataFrame | None = None, arms: Sequence[str] | None = None) -> pd.DataFrame:
    """Colour in grey levels: mean signed bias of each channel, and mean length of a picture's bias.

    A mean signed bias apart from 0 is a shift that all pictures share. The length also counts what differs from picture
    to picture and cancels in the mean.

    Returns:
        columns "severity", "arm", "bias-red", "bias-green", "bias-blue" and "colour-bias" (`Interval`).

    Raises:
        UnknownNameError: nothing was recorded. ConfigError: the rows have no colour scores.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    if absent := sorted({*CHANNELS, "colour-bias"} - {*rows.columns}):
        raise ConfigError(f"the rows lack {absent}; run the study with these metrics.")
    chosen = rows if arms is None else rows[rows.arm.isin(list(arms))]
    return severity_table(chosen, (*CHANNELS, "colour-bias"))[["severity", "arm", *CHANNELS, "colour-bias"]]


def beside_paper(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Table 1 of the paper (CelebA-Test), and PSNR and SSIM of drawn people below it; see `PAPER_NOTE`.

    Both mix the three severities in equal parts, so ours is averaged over them for each person first; people who lack
    a severity do not count.

    Returns:
        columns "faces" ("CelebA-Test" or "drawn"), "method", "PSNR", "SSIM" (numbers of the paper as float, ours as
        `Interval` or None), "LPIPS", "FID" (NaN for ours).

    Raises:
        UnknownNameError: nothing was recorded. ConfigError: the rows lack a severity.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    if absent := [severity for severity in SEVERITIES if severity not in set(rows.severity)]:
        raise ConfigError(f"the rows lack the severities {absent}, which the paper's mean contains.")
    paper = published("LD-BFR")
    paper = paper[(paper.table == "Table 1") & paper.metric.isin(PAPER_SCORES)]
    lines = []
    for method in dict.fromkeys(paper.method):
        scores = paper[paper.method == method].set_index("metric").value
        lines.append({"faces": "CelebA-Test", "method": method, **{name: scores[name] for name in PAPER_SCORES}})
    names = {
        INPUT: "degraded input",
        COARSE: "small regression network",
        PLAIN: "stage 1 without DCAM",
        STAGE_ONE: "stage 1",
        FULL: "LD-BFR",
    }
    for arm, words in names.items():
        own = rows[(rows.arm == arm) & (rows.status == OK)]
        cells = {name: _mean(_by_person(own, name.lower())) for name in ("PSNR", "SSIM")}
        if len(own):
            lines.append({"faces": "drawn", "method": words, **cells})
    return pd.DataFrame(lines, columns=["faces", "method", *PAPER_SCORES])


def _by_person(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Mean over the severities for everybody who has all of them."""
    scores = rows.pivot(index="person", columns="severity", values=metric)
    return scores.reindex(columns=SEVERITIES).dropna().mean(axis=1)


def _mean(values: pd.Series) -> Interval | None:
    return mean_interval(values.to_numpy()) if len(values) > 1 else None


def _groups(rows: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(severity, arm, scored rows) in the order of `SEVERITIES` and of the rows."""
    return [
        (severity, arm, rows[(rows.severity == severity) & (rows.arm == arm) & (rows.status == OK)])
        for severity in SEVERITIES
        if severity in set(rows.severity)
        for arm in dict.fromkeys(rows.arm)
    ]
