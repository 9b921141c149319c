"""PDGrad's ablations (tables 4 to 6) and its relatives on drawn people: the same faces and noise in every arm.

``refbfr evaluate pdgrad --record`` runs it and keeps the rows as the recording "pdgrad-ablations".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy, default_metrics, record_arms, run_arms
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.papers import published_value
from refbfr_core.benchmark.recording import recorded
from refbfr_core.benchmark.report import contrast
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.images import from_network, to_network
from refbfr_core.metrics import Interval, mean_interval

RECORDING = "pdgrad-ablations"
COARSE, FULL, WRONG, UNGUIDED, LITERAL = "coarse", "PDGrad", "PDGrad, wrong person", "DifFace start", "gain 1 (literal)"

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "A1": {"mode": "A1"},
    "A2": {"mode": "A2"},
    FULL: {"mode": "full"},
    "A3": {"terms": ("arc",)},
    "A4": {"terms": ("vgg",)},
    "A5": {"mode": "A5"},
    "A6": {"mode": "A6"},
}
"""Arm -> what differs from the full method: A1 plain sum, A2 no cap, A3 and A4 one low-level distance only, A5 coarse
picture only, A6 reference only."""

LEAST_PEOPLE = 10
"""Below this many people a bootstrap interval is too narrow to give a verdict."""

EXTRAS = (UNGUIDED, LITERAL, WRONG, "PGDiff", "DifFace")
SETS: Mapping[str, tuple[str, ...]] = {"ablations": tuple(ABLATIONS), "all": (*ABLATIONS, *EXTRAS)}


@dataclass(frozen=True)
class Methods:
    """The pipelines behind the arms; PGDiff and DifFace may be missing when no arm needs them."""

    pdgrad: Any
    pgdiff: Any = None
    difface: Any = None


def arm_names(text: str) -> tuple[str, ...]:
    """The arms that `text` names: a key of `SETS`, or names of arms with commas between them.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: none at all.
    """
    if text in SETS:
        return SETS[text]
    known = SETS["all"]
    # One arm has a comma in its own name.
    rest, found = text, []
    while rest := rest.lstrip(" ,"):
        name = next((arm for arm in sorted(known, key=len, reverse=True) if _begins(rest, arm)), None)
        if name is None:
            raise unknown_name("arm", rest.split(",")[0].strip(), [*SETS, *known])
        found.append(name)
        rest = rest[len(name) :]
    if not found:
        raise ConfigError(f"{text!r} names no arm; say one of {', '.join(SETS)}, or names such as A1,PDGrad.")
    return tuple(dict.fromkeys(found))


def _begins(text: str, name: str) -> bool:
    return text.startswith(name) and text[len(name) :].lstrip()[:1] in ("", ",")


def pdgrad_arms(methods: Methods, names: Sequence[str] = SETS["all"], **options: Any) -> dict[str, Arm]:
    """The arms called `names`, and "coarse" before them.

    Args:
        options: keywords of every PDGrad call, such as ``start=`` or ``gain=``.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: an arm whose pipeline is missing.
    """
    from refbfr_core.pipelines.pivot_losses import LossWeights

    def coarse(cases: Cases) -> Tensor:
        return from_network(methods.pdgrad.coarse.restore(to_network(cases.lq.to(methods.pdgrad.device))))

    def pdgrad(references: str, **changes: Any) -> Arm:
        terms = changes.pop("terms", None)
        if terms is not None:
            changes["weights"] = LossWeights(terms=terms)

        def restore(cases: Cases) -> Tensor:
            given = getattr(cases, references) if references else None
            return methods.pdgrad(cases.lq, given, seed=cases.seeds, **(options | changes)).images

        return restore

    known: dict[str, Arm] = {name: pdgrad("right", **changes) for name, changes in ABLATIONS.items()}
    known[UNGUIDED] = pdgrad("", scale=0.0)
    known[LITERAL] = pdgrad("right", gain=1.0)
    known[WRONG] = pdgrad("wrong")
    known["PGDiff"] = lambda cases: methods.pgdiff(cases.lq, cases.right, seed=cases.seeds).images
    known["DifFace"] = lambda cases: methods.difface(cases.lq, seed=cases.seeds).images
    for name in names:
        if name not in known:
            raise unknown_name("arm", name, known)
    for name, pipe in (("PGDiff", methods.pgdiff), ("DifFace", methods.difface)):
        if name in names and pipe is None:
            raise ConfigError(f"the arm {name!r} needs its pipeline; pass Methods({name.lower()}=...) or leave it out.")
    return {COARSE: coarse, **{name: known[name] for name in names}}


def run_pdgrad_study(
    people: int = 64,
    preset: str = "toy-refldm-severe",
    references: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    arms: Sequence[str] = SETS["all"],
    methods: Methods | None = None,
    judge: nn.Module | None = None,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    batch: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> ArmStudy:
    """Run the ablations, or continue a run in the folder `out`; arguments as for `run_arms` and `pdgrad_arms`."""
    from refbfr_core.pipelines import load_pipeline
    from refbfr_core.weights import load_network

    if methods is None:
        methods = Methods(*(load_pipeline(name, device=device) for name in ("pdgrad", "pgdiff", "difface")))
    judge = load_network("judge", device=device) if judge is None else judge
    for each in (methods.pdgrad, methods.pgdiff, methods.difface):
        if each is not None:
            each.set_progress_bar_config(disable=True)
    if metrics is None:
        metrics = default_metrics()
    pipe = methods.pdgrad
    chosen = {**{key: pipe.config[key] for key in ("num_inference_steps", "start", "scale", "gain")}, **options}
    words = ", ".join(f"{key} {value}" for key, value in sorted(chosen.items()))
    settings = ArmSettings(people, preset, references, seed, split, tuple(metrics), f"PDGrad with {words}")
    networks = [pipe.unet, pipe.embedder, pipe.perceptual, pipe.coarse]
    return run_arms(
        pdgrad_arms(methods, arms, **options),
        settings,
        networks,
        judge,
        resolution=pipe.resolution,
        out=out,
        batch=batch,
        progress=progress,
    )


def ablation_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every ablation beside the paper: mean and interval of each score, and the paired difference to the full method.

    Args:
        rows: of `run_pdgrad_study`; None reads the recording.

    Returns:
        one line an arm; columns "arm", "Deg, paper", "Deg, toy", "IDS, toy", "IDS - PDGrad" and "PSNR - PDGrad" as
        `Interval` (None for the full method itself), "people". The paper prints no number for A5 and A6 (NaN).

    Raises:
        ConfigError: the rows hold no full method. UnknownNameError: nothing was recorded.
    """
    rows = recorded(RECORDING).rows if rows is None else rows
    if FULL not in set(rows.arm):
        raise ConfigError(f"these rows hold the arms {sorted(rows.arm.unique())}, not {FULL!r}; run the study with it.")
    lines = []
    for arm in dict.fromkeys(rows.arm):
        own = rows[(rows.arm == arm) & (rows.status == OK)]
        line = {"arm": arm, "Deg, paper": paper_value(arm, "Deg")}
        for name, metric in (("Deg, toy", "deg"), ("IDS, toy", "ids"), ("PSNR, toy", "psnr")):
            line[name] = mean_interval(own[metric].to_numpy()) if len(own) > 1 else None
        for name, metric in (("IDS - PDGrad", "ids"), ("PSNR - PDGrad", "psnr")):
            line[name] = None if arm == FULL else contrast(rows, metric, arm, FULL).interval
        lines.append({**line, "people": len(own)})
    return pd.DataFrame(lines)


def paper_value(arm: str, metric: str) -> float:
    """The paper's number for an arm of tables 4 and 5, or NaN where it prints none."""
    places = {
        "A1": ("Table 4", "A1"),
        "A2": ("Table 4", "A2"),
        FULL: ("Table 4", "PDGrad"),
        "A3": ("Table 5", "A3 (d_arc only)"),
        "A4": ("Table 5", "A4 (d_vgg only)"),
    }
    if arm not in places:
        return float("nan")
    table, method = places[arm]
    return published_value("PDGrad", table, method, metric)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper as a paired difference of two arms: it holds when the interval lies on `sign`'s side."""

    text: str
    metric: str
    one: str
    other: str
    sign: int

    def check(self, rows: pd.DataFrame) -> tuple[str, Interval | None]:
        """"holds", "contradicted", "open" (the interval contains 0), "too few people" (below `LEAST_PEOPLE`) or "not
        measured", and the interval."""
        interval = contrast(rows, self.metric, self.one, self.other).interval
        if interval is None:
            return "not measured", None
        if interval.n < LEAST_PEOPLE:
            return "too few people", interval
        low, high = (interval.low, interval.high) if self.sign > 0 else (-interval.high, -interval.low)
        return ("holds" if low > 0 else "contradicted" if high < 0 else "open"), interval


CLAIMS = (
    Claim("projection beats the plain sum (A2 over A1, Deg)", "deg", "A2", "A1", -1),
    Claim("the cap adds to projection (full over A2, Deg)", "deg", FULL, "A2", -1),
    Claim("the full method beats the plain sum (Deg)", "deg", FULL, "A1", -1),
    Claim("both low-level distances beat d_arc alone (A3, Deg)", "deg", FULL, "A3", -1),
    Claim("both low-level distances beat d_vgg alone (A4, Deg)", "deg", FULL, "A4", -1),
    Claim("the reference helps identity (full over A5, IDS)", "ids", FULL, "A5", 1),
    Claim("the coarse picture helps fidelity (full over A6, PSNR)", "psnr", FULL, "A6", 1),
    Claim("PDGrad beats PGDiff (Deg)", "deg", FULL, "PGDiff", -1),
    Claim("PDGrad beats its coarse restorer's identity (IDS)", "ids", FULL, COARSE, 1),
    Claim("another person's picture pulls away (right over wrong, IDS)", "ids", FULL, WRONG, 1),
)


def claim_table(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's orderings on these rows: columns "claim", "verdict" and "difference" (`Interval` or None)."""
    rows = recorded(RECORDING).rows if rows is None else rows
    lines = []
    for claim in CLAIMS:
        verdict, between = claim.check(rows)
        lines.append({"claim": claim.text, "verdict": verdict, "difference": between})
    return pd.DataFrame(lines)


def record_study(study: ArmStudy, command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows as the recording `RECORDING`; raises ConfigError if some rows failed."""
    return record_arms(RECORDING, study, command, folder)
