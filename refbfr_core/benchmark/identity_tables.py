"""The rows of the identity study as means, paired differences, and the paper's two ablation tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import Contrast
from refbfr_core.benchmark.rows import FAILED, OK
from refbfr_core.errors import ConfigError
from refbfr_core.metrics import mean_interval, paired_interval

RECORDING = "identity-scales"
SCALES = ("none", "constant", "sqrt_alpha_bar", "below_100", "below_500")
SHIPPED = "shipped"
_COLUMNS = ("run", "scale", "seed", "person", "status")
_NOT_METRICS = (*_COLUMNS, "reason", "seconds")
_LOSSES = {"none": "L_LDM", "constant": "L_LDM + L_ID", "sqrt_alpha_bar": "L_LDM + L_timeID"}
_SCALES = {
    "sqrt_alpha_bar": "scale sqrt(alpha_bar_t)",
    "below_100": "scale 1[t<100]",
    "below_500": "scale 1[t<500]",
}


@dataclass(frozen=True)
class IdentityStudy:
    """A finished study: one row a run and person, and the settings with the runs' own numbers."""

    rows: pd.DataFrame
    settings: dict[str, Any]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores in the rows."""
        return tuple(name for name in self.rows.columns if name not in _NOT_METRICS)

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that have no scores, with their reasons."""
        return self.rows[self.rows.status == FAILED]

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"identity study: {s['people']} unseen people of the {s['split']!r} split, {s['preset']}, "
            f"{s['references']} references, {s['steps']} steps with guidance {s['guidance']:g}",
            "ids by the judge, ids-guide by the embedder that the loss was trained against",
            f"{len(self.failures)} of {len(self.rows)} rows failed",
            "",
            mean_table(self.rows).to_string(),
            "",
            "paired differences, seeds averaged (mean, 95 % bootstrap interval, people)",
            *(f"  {each}" for each in contrasts(self.rows)),
        ]
        return "\n".join([*lines, "", "means of single seeds", seed_table(self.rows).to_string()])


def load_study() -> IdentityStudy:
    """The recorded study; raises `UnknownNameError` when nothing was recorded."""
    recording = recorded(RECORDING)
    return IdentityStudy(recording.rows, recording.about["settings"])


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """The score columns of rows; raises `ConfigError` when they are no rows of an identity study."""
    if missing := [name for name in _COLUMNS if name not in rows.columns]:
        raise ConfigError(f"these rows lack the columns {missing}; pass those of run_identity_study.")
    return [name for name in rows.columns if name not in _NOT_METRICS]


def by_person(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Scores (people x scales), the mean over a scale's seeds; only people whom every run restored."""
    metrics_of(rows)
    scored = rows[rows.status == OK].pivot(index="person", columns="run", values=metric).dropna()
    scale_of = rows.drop_duplicates("run").set_index("run").scale
    return scored.T.groupby(scale_of).mean().T


def mean_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a scale: for each metric "mean [low, high]" over people (seeds averaged), and the numbers of both."""
    seeds = rows.groupby("scale").seed.nunique()
    scores = {metric: by_person(rows, metric) for metric in metrics_of(rows)}
    lines = {}
    for scale in (SHIPPED, *SCALES):
        if scale not in seeds.index:
            continue
        cells = {metric: _cell(frame[scale]) for metric, frame in scores.items()}
        lines[scale] = {**cells, "seeds": int(seeds[scale]), "people": len(next(iter(scores.values())))}
    return pd.DataFrame.from_dict(lines, orient="index")


def seed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of single runs: one row a scale and metric, one column a seed, and their standard deviation ("spread").

    What an interval over people cannot show: how much the result of a training depends on its seed.
    """
    scored = rows[(rows.status == OK) & (rows.scale != SHIPPED)]
    metrics = metrics_of(rows)
    means = scored.melt(["scale", "seed"], metrics, "metric").groupby(["scale", "metric", "seed"]).value.mean()
    table = means.unstack("seed")
    spread = table.std(axis=1)
    order = [(scale, metric) for scale in SCALES for metric in metrics if (scale, metric) in table.index]
    return table.assign(spread=spread).loc[order]


def contrasts(rows: pd.DataFrame) -> list[Contrast]:
    """Paired differences by person with seeds averaged: every scale minus "none", and the paper's scale minus 1."""
    found = set(rows.scale)
    pairs = [(scale, "none") for scale in SCALES if scale != "none"] + [("sqrt_alpha_bar", "constant")]
    out = []
    for metric in metrics_of(rows):
        scores = by_person(rows, metric)
        for one, other in pairs:
            if {one, other} <= found:
                pair = scores[one].to_numpy(), scores[other].to_numpy()
                out.append(Contrast(metric, one, other, paired_interval(*pair) if len(scores) > 1 else None))
    return out


def ablation_tables(rows: pd.DataFrame | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The paper's identity-loss ablation and scale ablation, "paper" beside "toy, measured".

    Args:
        rows: of `run_identity_study`; None reads the recording.

    Returns:
        Two tables with one row a method: columns "method", "scale", "IDS, paper", "NIQE, paper" (FFHQ-Ref-Severe), and
        for every metric "<metric>, toy" with "<metric>, toy, low" and "<metric>, toy, high" (95 % bootstrap interval
        over people, seeds averaged). The paper has no guide, PSNR or SSIM in these tables.

    Raises:
        ConfigError: a scale has no rows. UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    scores = {metric: by_person(rows, metric) for metric in metrics_of(rows)}
    numbers = published("ReF-LDM")
    tables = []
    for table, methods in (("identity-loss ablation", _LOSSES), ("id-loss scale ablation", _SCALES)):
        lines = []
        for scale, method in methods.items():
            if scale not in set(rows.scale):
                raise ConfigError(f"there are no rows of the scale {scale!r}; train it, then evaluate again.")
            own = numbers[(numbers.table == table) & (numbers.method == method)].set_index("metric").value
            line = {"method": method, "scale": scale, "IDS, paper": own["IDS"], "NIQE, paper": own["NIQE"]}
            for metric, frame in scores.items():
                interval = mean_interval(frame[scale].to_numpy())
                ends = {"": interval.mean, ", low": interval.low, ", high": interval.high}
                line |= {f"{metric}, toy{end}": value for end, value in ends.items()}
            lines.append(line)
        tables.append(pd.DataFrame(lines))
    return tables[0], tables[1]


def _cell(values: pd.Series) -> str:
    if len(values) < 2:
        return "" if values.empty else f"{values.iloc[0]:.4f}"
    interval = mean_interval(values.to_numpy())
    return f"{interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
