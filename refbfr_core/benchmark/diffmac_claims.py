"""What DiffMAC claims about its parts, and whether drawn people agree, severity by severity.

The paper compares its variants by one number each on CelebChild (Table 3: FID, NIQE, MUSIQ), without intervals, and by
pictures. Of the three scores only NIQE has a counterpart on drawn faces, "niqe-toy". Here every claim is a paired
difference of two arms with a sign:

* the order that Table 3 prints in NIQE, read from the published numbers, between the adopted setting and the rows that
  differ from it in one thing (also where this order speaks against the adopted setting);
* that the adopted setting is better than each of these rows, overall (mean rank) and in identity;
* that the mean lambda falls as lambda_info rises;
* that another photo of the person brings identity, and that of somebody else takes it (Fig. 10).

A claim is *confirmed* when the whole interval lies on its side, *contradicted* when it lies on the other, *open*
otherwise; intervals are so wide that all of them together have a coverage of 95 % (Bonferroni).
"""

from __future__ import annotations

import pandas as pd

from refbfr_core.benchmark.diffmac import (
    ABLATIONS,
    EXTENSION,
    EXTENSIONS,
    IDENTITY_ROWS,
    METHOD,
    RECORDING,
    RIGHT,
    SEVERAL,
    SHARE,
    STAGE_ONE,
    SWAPS,
    TWICE,
    WEIGHTS,
    WRONG,
)
from refbfr_core.benchmark.identity_claims import COVERAGE
from refbfr_core.benchmark.ldbfr_claims import RANK, RANKED, Claim
from refbfr_core.benchmark.papers import published_value
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.severities import SEVERITIES
from refbfr_core.metrics import REGISTRY

PAPER_ROWS = {STAGE_ONE: "stage I", "0.001_none": "MIB w/o n|id"}
"""Arm -> row of Table 3, where the names differ."""

NEIGHBOURS = {
    STAGE_ONE: "stage I alone",
    TWICE: "a second diffusion without a bottleneck (2AdaIN)",
    "0.001_none": "no compensation (MIB w/o n|id)",
    "0.001_n": "noise for compensation",
    "no1_0.001_n": "noise for compensation, without Stage I (no1)",
    "0.01_id": "lambda_info 0.01",
    "0.1_id": "lambda_info 0.1",
}
"""Arms that the adopted setting is compared with, in words."""

FAMILIES = {
    "identity": "{}_id",
    "noise": "{}_n",
    "no compensation": "{}_none",
    "noise, without Stage I": "no1_{}_n",
}
"""What compensates, in words -> name of an arm with its lambda_info."""

_RESAMPLES = 20_000


def claims(extension: bool = False) -> tuple[Claim, ...]:
    """All claims; with `extension` also those about the arm `EXTENSION`, which is not the paper's."""
    rows = (*IDENTITY_ROWS, *((EXTENSION,) if extension else ()))
    return (*_printed_order(), *_adopted(), *_falling(), *(claim for row in rows for claim in _identity(row)))


def with_ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one severity with a column "rank": for each person the mean rank, 1 (best) to 14, of each arm of
    `ABLATIONS`.

    Arms are ranked among each other in every score of `RANKED` that the rows have; ties share a rank. Other arms, and
    people whom not all of these arms that the rows have restored, have no rank (NaN).
    """
    present = [arm for arm in ABLATIONS if arm in set(rows.arm)]
    own = rows[rows.arm.isin(present) & (rows.status == OK)]
    whole = own.groupby("person").arm.nunique()
    own = own[own.person.isin(whole[whole == len(present)].index)]
    ranks = pd.DataFrame(
        {
            name: own.groupby("person")[name].rank(ascending=REGISTRY[name].direction != "higher")
            for name in RANKED
            if name in rows
        },
        index=own.index,
    )
    return rows.assign(**{RANK: ranks.mean(axis=1).reindex(rows.index)})


def claim_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every claim at every severity of the rows: "severity", "figure", "claim", "metric", "verdict", "difference".

    Args:
        rows: of `refbfr_core.benchmark.severities.study_rows`; None reads the recording.

    Raises:
        UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    present = [severity for severity in SEVERITIES if severity in set(rows.severity)]
    made = claims(EXTENSION in set(rows.arm))
    level = 1 - (1 - COVERAGE) / (len(made) * max(1, len(present)))
    lines = []
    for severity in present:
        own = with_ranks(rows[rows.severity == severity])
        for claim in made:
            verdict, difference = claim.check(own, level, _RESAMPLES)
            words = {"figure": claim.figure, "claim": claim.text, "metric": claim.metric}
            lines.append({"severity": severity, **words, "verdict": verdict, "difference": difference})
    return pd.DataFrame(lines)


def printed(arm: str, metric: str = "NIQE") -> float:
    """The number of an arm in Table 3: "FID", "NIQE" or "MUSIQ" on CelebChild.

    Raises:
        ConfigError: Table 3 has no such row or score.
    """
    return published_value("DiffMAC", "Table 3", PAPER_ROWS.get(arm, arm), metric, "CelebChild")


def _printed_order() -> list[Claim]:
    """Pairs of equal printed numbers make no claim."""
    found = []
    for arm, words in NEIGHBOURS.items():
        difference = printed(METHOD) - printed(arm)
        if difference:
            order = "lower" if difference < 0 else "higher"
            text = f"NIQE of the adopted setting is {order} than with {words}"
            found.append(Claim(text, "Table 3", "niqe-toy", METHOD, arm, 1 if difference > 0 else -1))
    return found


def _adopted() -> list[Claim]:
    scores = (RANK, -1, "better overall (mean rank)"), ("ids", 1, "closer in identity")
    return [
        Claim(f"the adopted setting is {better} than {words}", "Table 3", metric, METHOD, arm, sign)
        for metric, sign, better in scores
        for arm, words in NEIGHBOURS.items()
    ]


def _falling() -> list[Claim]:
    return [
        Claim(
            f"mean lambda falls from lambda_info {less} to {more} ({words})",
            "eq. 13", SHARE, pattern.format(more), pattern.format(less), -1,
        )
        for words, pattern in FAMILIES.items()
        for more, less in zip(WEIGHTS[:-1], WEIGHTS[1:], strict=True)
    ]  # fmt: skip


def _identity(row: str) -> list[Claim]:
    ways = (
        (RIGHT, 1, "another photo of the person brings identity"),
        (SEVERAL, 1, "several photos of the person bring identity"),
        (WRONG, -1, "a photo of somebody else takes identity"),
    )
    return [
        Claim(f"{row}: {words}", "Fig. 10", "ids", f"{row}+{way}", row, sign)
        for way, sign, words in ways
        if f"{row}+{way}" in (*SWAPS, *EXTENSIONS)
    ]
