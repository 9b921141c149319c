"""What LD-BFR says about its ablations, and whether drawn people agree, severity by severity.

The paper shows pictures and describes them; every description becomes a paired difference of two arms with a sign. It
is *confirmed* when the whole interval lies on that side, *contradicted* when it lies on the other, *open* otherwise. As
many comparisons are made at once, each interval is so wide that all of them together have a coverage of 95 %
(Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from refbfr_core.benchmark.identity_claims import CONFIRMED, CONTRADICTED, COVERAGE, OPEN
from refbfr_core.benchmark.ldbfr import FULL, PLAIN, RECORDING, STAGE_ONE
from refbfr_core.benchmark.pdgrad import LEAST_PEOPLE
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.severities import SEVERITIES
from refbfr_core.metrics import REGISTRY, Interval
from refbfr_core.models.injected_unet import VARIANTS

NOT_MEASURED, TOO_FEW = "not measured", "too few people"
RANK = "rank"
RANKED = ("psnr", "ssim", "ids", "textures", "niqe-toy", "colour-bias")
"""Scores that the mean rank of a variant is taken over: fidelity, identity, likeness, realism, colour; each counts the
same."""

# Wide intervals end far in the tails, which need many resamples.
_RESAMPLES = 20_000


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper about a figure: `metric` of arm `one` minus that of `other` has the sign `sign`."""

    text: str
    figure: str
    metric: str
    one: str
    other: str
    sign: int

    def check(
        self, rows: pd.DataFrame, level: float = COVERAGE, resamples: int = _RESAMPLES
    ) -> tuple[str, Interval | None]:
        """The verdict on the rows of one severity, and the difference one - other.

        `CONFIRMED`, `CONTRADICTED`, `OPEN`, `TOO_FEW` (below `LEAST_PEOPLE`) or `NOT_MEASURED` (no such arm or score).
        """
        if self.metric not in rows:
            return NOT_MEASURED, None
        difference = contrast(rows, self.metric, self.one, self.other, level=level, resamples=resamples).interval
        if difference is None:
            return NOT_MEASURED, None
        if difference.n < LEAST_PEOPLE:
            return TOO_FEW, difference
        if difference.above():
            return (CONFIRMED if self.sign > 0 else CONTRADICTED), difference
        if difference.below():
            return (CONFIRMED if self.sign < 0 else CONTRADICTED), difference
        return OPEN, difference


CLAIMS = (
    Claim("dual cross-attention keeps identity", "Fig. 7", "ids", STAGE_ONE, PLAIN, 1),
    Claim("dual cross-attention keeps colour", "Fig. 7", "colour-bias", STAGE_ONE, PLAIN, -1),
    Claim("dual cross-attention brings fidelity", "Fig. 7", "psnr", STAGE_ONE, PLAIN, 1),
    Claim("the diffusion brings the textures of a face", "Fig. 8", "textures", FULL, STAGE_ONE, -1),
    Claim("the diffusion removes artefacts", "Fig. 8", "niqe-toy", FULL, STAGE_ONE, -1),
    Claim("the diffusion brings identity", "Fig. 8", "ids", FULL, STAGE_ONE, 1),
    Claim("A, without attention, has poorer textures than D", "Figs. 9, 10", "textures", "A", FULL, 1),
    Claim("A, without attention, keeps less identity than D", "Figs. 9, 10", "ids", "A", FULL, -1),
    Claim("A, without attention, has less fidelity than D", "Figs. 9, 10", "psnr", "A", FULL, -1),
    Claim("B shifts colours, more than D", "Figs. 9, 10", "colour-bias", "B", FULL, 1),
    Claim("C has less fidelity than D", "Figs. 9, 10", "psnr", "C", FULL, -1),
    Claim("C keeps less identity than D", "Figs. 9, 10", "ids", "C", FULL, -1),
    *(
        Claim(f"D is better than {variant} overall (mean rank)", "Figs. 9, 10", RANK, FULL, variant, -1)
        for variant in VARIANTS
        if variant != FULL
    ),
)


def with_ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one severity with a column "rank": for each person the mean rank, 1 (best) to 4, of each variant.

    The variants of injection are ranked among each other in every score of `RANKED` that the rows have; ties share a
    rank. Other arms, and people whom not all four variants restored, have no rank (NaN).
    """
    own = rows[rows.arm.isin(list(VARIANTS)) & (rows.status == OK)]
    whole = own.groupby("person").arm.nunique()
    own = own[own.person.isin(whole[whole == len(VARIANTS)].index)]
    scores = [name for name in RANKED if name in rows]
    ranks = pd.DataFrame(
        {name: own.groupby("person")[name].rank(ascending=REGISTRY[name].direction != "higher") for name in scores},
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
    level = 1 - (1 - COVERAGE) / (len(CLAIMS) * max(1, len(present)))
    lines = []
    for severity in present:
        own = with_ranks(rows[rows.severity == severity])
        for claim in CLAIMS:
            verdict, difference = claim.check(own, level)
            words = {"figure": claim.figure, "claim": claim.text, "metric": claim.metric}
            lines.append({"severity": severity, **words, "verdict": verdict, "difference": difference})
    return pd.DataFrame(lines)


def verdict_grid(table: pd.DataFrame) -> pd.DataFrame:
    """A `claim_table` with one line a claim and the verdict at every severity beside each other."""
    grid = table.pivot(index=["figure", "claim", "metric"], columns="severity", values="verdict")
    order = list(dict.fromkeys(table.claim))
    severities = list(dict.fromkeys(table.severity))
    return grid.reset_index().set_index("claim").loc[order, ["figure", "metric", *severities]].reset_index()
