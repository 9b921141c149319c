"""What the paper claims about the identity loss, and whether the recorded runs on drawn people agree.

Every difference between two rows of the paper's two ablation tables is a claim with a direction. It is *confirmed* when
the same difference on drawn people has the same sign, beyond doubt about people and in the runs of every seed;
*contradicted* when that holds for the other sign; *open* otherwise. As many comparisons are made at once, each interval
is so wide that all of them together have a coverage of 95 % (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from refbfr_core.benchmark.identity_tables import SCALES, SHIPPED, by_person, metrics_of
from refbfr_core.benchmark.papers import published_value
from refbfr_core.benchmark.recording import Recording
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import Interval, mean_interval, paired_interval

LABELS = {
    SHIPPED: "not fine-tuned",
    "none": "no identity loss",
    "constant": "scale 1",
    "sqrt_alpha_bar": "scale √ᾱ",
    "below_100": "scale 1[t<100]",
    "below_500": "scale 1[t<500]",
}
CONFIRMED, CONTRADICTED, OPEN = "confirmed", "contradicted", "open"
COVERAGE = 0.95
_MEASURES = {"ids": "IDS", "niqe-toy": "NIQE"}
_TABLES = (
    (
        "identity-loss ablation",
        {"none": "L_LDM", "constant": "L_LDM + L_ID", "sqrt_alpha_bar": "L_LDM + L_timeID"},
        (("constant", "none"), ("sqrt_alpha_bar", "none"), ("sqrt_alpha_bar", "constant")),
    ),
    (
        "id-loss scale ablation",
        {
            "sqrt_alpha_bar": "scale sqrt(alpha_bar_t)",
            "below_100": "scale 1[t<100]",
            "below_500": "scale 1[t<500]",
        },
        (("sqrt_alpha_bar", "below_100"), ("sqrt_alpha_bar", "below_500")),
    ),
)


@dataclass(frozen=True)
class Claim:
    """One difference of the paper's ablation, and the same difference on drawn people.

    Attributes:
        metric: column of the recording, "ids" (judge) or "niqe-toy". one, other: scales; differences are one - other.
        paper: the published difference, of IDS or NIQE on FFHQ-Ref-Severe.
        toy: paired by person, seeds averaged, with the coverage that all claims together need.
        seeds: the difference of means for each training seed.
    """

    metric: str
    one: str
    other: str
    paper: float
    toy: Interval
    seeds: tuple[float, ...]

    @property
    def words(self) -> str:
        """The claim as a sentence, from the sign of the published difference."""
        relation = "above" if self.paper > 0 else "below"
        return f"{_MEASURES[self.metric]} with {LABELS[self.one]} is {relation} {LABELS[self.other]}"

    @property
    def verdict(self) -> str:
        """`CONFIRMED`, `CONTRADICTED` or `OPEN`."""
        if self.toy.above() and min(self.seeds) > 0:
            return CONFIRMED if self.paper > 0 else CONTRADICTED
        if self.toy.below() and max(self.seeds) < 0:
            return CONFIRMED if self.paper < 0 else CONTRADICTED
        return OPEN


@dataclass(frozen=True)
class GuideBonus:
    """How much of a gain in identity is seen only by the embedder that the loss was trained against.

    Two embedders spread faces differently, so gains are compared as shares of what was missing: the gain divided by
    1 - IDS without identity loss.

    Attributes:
        judge, guide: gains in IDS of `scale` over no identity loss, paired by person.
        missing: mean of 1 - IDS without identity loss, as the judge and as the guide see it.
        bonus: the guide's share minus the judge's, paired by person.
    """

    scale: str
    judge: Interval
    guide: Interval
    missing: tuple[float, float]
    bonus: Interval

    @property
    def verdict(self) -> str:
        """A sentence about the sign of the bonus."""
        if self.bonus.above():
            return "the guide flatters: it sees a larger share gained than the judge"
        if self.bonus.below():
            return "the judge sees a larger share gained than the guide"
        return "no difference between guide and judge beyond chance"


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The ten claims of the paper's tables 3 and 4, with what the rows of `run_identity_study` say to each.

    Raises:
        ConfigError: rows without one of the scales or without "ids" and "niqe-toy".
    """
    metrics_of(rows)
    if absent := sorted({*SCALES} - {*rows.scale}) + sorted({*_MEASURES} - {*rows.columns}):
        raise ConfigError(f"the rows lack {absent}; train and evaluate every scale with IDS and niqe-toy.")
    scores = {metric: by_person(rows, metric) for metric in _MEASURES}
    pairs = [(table, names, *pair) for table, names, chosen in _TABLES for pair in chosen]
    level = 1 - (1 - COVERAGE) / (len(pairs) * len(_MEASURES))
    out = []
    for table, names, one, other in pairs:
        for metric, measure in _MEASURES.items():
            values = [published_value("ReF-LDM", table, names[scale], measure) for scale in (one, other)]
            people = scores[metric]
            interval = paired_interval(people[one].to_numpy(), people[other].to_numpy(), level=level)
            seeds = difference_by_seed(rows, metric, one, other)
            out.append(Claim(metric, one, other, values[0] - values[1], interval, seeds))
    return out


def difference_by_seed(rows: pd.DataFrame, metric: str, one: str, other: str) -> tuple[float, ...]:
    """Mean of `metric` with scale `one` minus scale `other`, for every training seed that both have, in order.

    Raises:
        ConfigError: no seed in common.
    """
    scored = rows[(rows.status == OK) & rows.scale.isin([one, other])]
    means = scored.groupby(["seed", "scale"])[metric].mean().unstack("scale")
    common = means.reindex(columns=[one, other]).dropna()
    if common.empty:
        raise ConfigError(f"no training seed has both {one!r} and {other!r}; train both with the same seeds.")
    return tuple(float(value) for value in common[one] - common[other])


def guide_bonuses(rows: pd.DataFrame, scales: Sequence[str] = SCALES[1:]) -> list[GuideBonus]:
    """Gains over no identity loss as the judge and as the guide see them, for each scale, with their difference.

    Raises:
        ConfigError: rows without "ids" or "ids-guide", or without "none".
    """
    if absent := sorted({"ids", "ids-guide"} - {*metrics_of(rows)}) + sorted({"none", *scales} - {*rows.scale}):
        raise ConfigError(f"the rows lack {absent}; evaluate with both embedders, and train without identity loss too.")
    frames = [by_person(rows, name) for name in ("ids", "ids-guide")]
    missing = tuple(float(1 - frame["none"].mean()) for frame in frames)
    out = []
    for scale in scales:
        gains = [(frame[scale] - frame["none"]).to_numpy() for frame in frames]
        shares = [gain / part for gain, part in zip(gains, missing, strict=True)]
        out.append(GuideBonus(scale, *map(mean_interval, gains), missing, paired_interval(shares[1], shares[0])))
    return out


def inconsistencies(recording: Recording) -> list[str]:
    """What in the rows of "identity-scales" disagrees with the provenance beside them; empty when all is in order.

    Every run that the provenance lists must have every person exactly once under its own scale and seed, every scale
    the same seeds and the same length of training, and every score must be a number in its range.
    """
    rows, settings = recording.rows, recording.about["settings"]
    listed = {run["name"]: run for run in settings.get("runs", [])}
    found, everybody = [], list(range(settings["people"]))
    if {*rows.run} != {*listed, SHIPPED}:
        found.append(f"rows of {sorted({*rows.run})}, provenance of {sorted({*listed, SHIPPED})}")
    for name, own in rows.groupby("run"):
        if sorted(own.person) != everybody:
            found.append(f"{name} has {len(own)} rows of {own.person.nunique()} people; expected {len(everybody)}")
        run = listed.get(name)
        if run and ({*own.scale} != {run["scale"]} or {*own.seed} != {run["seed"]}):
            found.append(f"{name} has another scale or seed in the rows than in the provenance")
    found += _unequal_trainings(list(listed.values()))
    scores = rows[[name for name in settings["metrics"] if name in rows.columns]]
    if scores.shape[1] != len(settings["metrics"]):
        found.append(f"no column for some of {settings['metrics']}")
    if (rows.status != OK).any() or not np.isfinite(scores.to_numpy(dtype=float)).all():
        found.append("some restorations failed or have no score")
    if any((scores[name].abs() > 1).any() for name in ("ids", "ids-guide", "ssim") if name in scores):
        found.append("a similarity lies outside [-1, 1]")
    return found


def _unequal_trainings(runs: list[dict]) -> list[str]:
    seeds: dict[str, list[int]] = {scale: [] for scale in SCALES}
    for run in runs:
        seeds.setdefault(run["scale"], []).append(run["seed"])
    found = []
    if any(sorted(own) != sorted(seeds["none"]) or len({*own}) != len(own) for own in seeds.values()):
        found.append(f"the scales were not trained with the same seeds: {seeds}")
    for what in ("steps", "samples", "weight"):
        if len({run[what] for run in runs}) > 1:
            found.append(f"runs differ in {what}: {sorted({run[what] for run in runs})}")
    return found
