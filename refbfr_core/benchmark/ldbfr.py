"""LD-BFR's ablations (Figs. 7 to 10) on drawn people, per severity: the same faces and noise in every arm.

The paper shows its ablations as pictures only; here they are numbers. ``refbfr evaluate ldbfr --record`` runs the study
and keeps the rows as the recording "ldbfr-ablations"; `refbfr_core.benchmark.ldbfr_tables` sets them beside the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy, run_arms
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.recording import record
from refbfr_core.benchmark.rows import OK
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.images import from_network, to_network
from refbfr_core.metrics import unavailable
from refbfr_core.models.dual_cross_attention import BRANCHES
from refbfr_core.models.injected_unet import VARIANTS

RECORDING = "ldbfr-ablations"
SEVERITIES = ("mild", "medium", "severe")
PLAIN, STAGE_ONE, SPATIAL, CHANNEL = "stage1-plain", "stage1", "stage1-spatial", "stage1-channel"
FULL, COARSE, REFLDM = "D", "coarse", "refldm"

ABLATIONS = (PLAIN, STAGE_ONE, SPATIAL, CHANNEL, *VARIANTS)
"""Stage 1 trained without dual cross-attention (it decodes f'_HQ); with it; with it, but only one branch live, which it
was not trained for; and the whole method with each way of injection, D being the paper's."""

SETS: Mapping[str, tuple[str, ...]] = {"ablations": ABLATIONS, "all": (*ABLATIONS, COARSE)}
"""Besides, "coarse" is the small regression network that ships, and "refldm" ReF-LDM without references. Both were
trained on other degradations."""

METRICS = (
    "psnr", "ssim", "ids", "textures", "lpips-toy", "niqe-toy", "detail", "colour-bias",
    "bias-red", "bias-green", "bias-blue",
)  # fmt: skip
"""Fidelity, identity, likeness and realism, amount of detail, colour. "lpips-toy" is a training loss of the VQGANs, so
verdicts rest on "textures"."""


@dataclass(frozen=True)
class LDBFRMethods:
    """What the arms are made of; parts that no arm needs may be missing.

    `pipe` is the whole method, `plain` a restorer without DCAM, `injections` variant -> injectors, `coarse` a network
    with ``restore(images)``, `refldm` a pipeline.
    """

    pipe: Any
    plain: nn.Module | None = None
    injections: Mapping[str, nn.Module] = field(default_factory=dict)
    coarse: nn.Module | None = None
    refldm: Any = None

    @property
    def networks(self) -> list[nn.Module]:
        """Everything whose weights decide a result."""
        pipe = self.pipe
        own = [pipe.vqc, pipe.restorer, pipe.vqo, pipe.unet, self.plain, self.coarse]
        own += [self.injections[variant] for variant in sorted(self.injections)]
        own += [] if self.refldm is None else [self.refldm.vq, self.refldm.unet]
        return [network for network in own if network is not None]


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


def arm_names(text: str) -> tuple[str, ...]:
    """The arms that `text` names: keys of `SETS` and names of arms, with commas between them.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: none at all.
    """
    found: list[str] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        found += SETS.get(part, (part,))
    _check_arms(found)
    if not found:
        raise ConfigError(f"{text!r} names no arm; say one of {', '.join(SETS)}, or names such as stage1,D.")
    return tuple(dict.fromkeys(found))


def load_methods(
    names: Sequence[str] = SETS["all"],
    device: str | torch.device | None = None,
    root: str | Path | None = None,
) -> LDBFRMethods:
    """The shipped networks that the arms `names` need, or LD-BFR's own from the folder `root`.

    Raises:
        UnknownNameError: an unknown arm. WeightsError: weights that are missing or damaged.
    """
    from refbfr_core.pipelines import load_pipeline
    from refbfr_core.weights import load_network

    _check_arms(names)
    pipe = load_pipeline("ldbfr", device=device, root=root)
    injections = {
        variant: load_network(f"ldbfr-hqi-{variant.lower()}", device=device, root=root)
        for variant in VARIANTS
        if variant in names
    }
    plain = load_network("ldbfr-restorer-plain", device=device, root=root) if PLAIN in names else None
    coarse = load_network("coarse", device=device) if COARSE in names else None
    refldm = load_pipeline("refldm", device=device) if REFLDM in names else None
    return LDBFRMethods(pipe, plain, injections, coarse, refldm)


def ldbfr_arms(methods: LDBFRMethods, names: Sequence[str] = SETS["all"], **options: Any) -> dict[str, Arm]:
    """The arms called `names`.

    Args:
        options: keywords of every call of the whole method, such as ``num_inference_steps=``.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: an arm whose networks are missing.
    """
    _check_arms(names)
    pipe = methods.pipe

    def stage_one(use: Sequence[str], own: Any = pipe) -> Arm:
        return lambda cases: own.stage_one(own.features(cases.lq, use=use))

    def plain() -> Arm:
        return stage_one(BRANCHES, pipe.with_parts(restorer=_needed(methods.plain, PLAIN, "plain")))

    def whole(variant: str) -> Arm:
        own = pipe.with_parts(injection=_needed(methods.injections.get(variant), variant, "injections"))
        own.set_progress_bar_config(disable=True)
        return lambda cases: own(cases.lq, seed=cases.seeds, **options).images

    def coarse() -> Arm:
        network = _needed(methods.coarse, COARSE, "coarse")

        def restore(cases: Cases) -> Tensor:
            return from_network(network.restore(to_network(cases.lq.to(network.device))))

        return restore

    def refldm() -> Arm:
        other = _needed(methods.refldm, REFLDM, "refldm")
        other.set_progress_bar_config(disable=True)
        return lambda cases: other(cases.lq, seed=cases.seeds).images

    makers: dict[str, Callable[[], Arm]] = {
        PLAIN: plain,
        STAGE_ONE: lambda: stage_one(BRANCHES),
        SPATIAL: lambda: stage_one(("spatial",)),
        CHANNEL: lambda: stage_one(("channel",)),
        COARSE: coarse,
        REFLDM: refldm,
    }
    return {name: makers[name]() if name in makers else whole(name) for name in names}


def run_ldbfr_study(
    people: int = 64,
    severities: Sequence[str] = SEVERITIES,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    arms: Sequence[str] = SETS["all"],
    methods: LDBFRMethods | None = None,
    judge: nn.Module | None = None,
    split: str = "test",
    metrics: Sequence[str] | None = None,
    batch: int = 8,
    device: str | torch.device | None = None,
    root: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, ArmStudy]:
    """Run the ablations, or continue a run: severity -> study, whose rows are in the folder `out`/severity.

    Two processes may work on different severities of one `out` at the same time; a last call with all severities then
    only reads. People, views and noise are the same in every severity.

    Args:
        metrics: None takes those of `METRICS` that can be computed here.
        root: folder of LD-BFR's networks, instead of the shipped ones.
        options: of `ldbfr_arms`. Others as in `run_arms`.

    Raises:
        UnknownNameError: an unknown arm or severity. ConfigError: see `run_arms`.
    """
    from refbfr_core.weights import load_network

    chosen = severity_names(",".join(severities))
    methods = load_methods(arms, device, root) if methods is None else methods
    judge = load_network("judge", device=device) if judge is None else judge
    if metrics is None:
        metrics = [name for name in METRICS if not unavailable(name)]
    pipe, made = methods.pipe, ldbfr_arms(methods, arms, **options)
    words = describe_sampling(pipe, **options)
    studies = {}
    for severity in chosen:
        settings = ArmSettings(people, preset_of(severity), 1, seed, split, tuple(metrics), f"LD-BFR with {words}")
        studies[severity] = run_arms(
            made,
            settings,
            methods.networks,
            judge,
            resolution=pipe.resolution,
            out=None if out is None else Path(out) / severity,
            batch=batch,
            progress=progress,
        )
    return studies


def preset_of(severity: str) -> str:
    """The degradation preset of a severity."""
    return f"toy-ldbfr-{severity}"


def describe_sampling(pipe: Any, **options: Any) -> str:
    """How the method samples, in words: the pipeline's defaults and what `options` change of them."""
    chosen = {key: pipe.config[key] for key in ("num_inference_steps", "eta", "timestep_spacing")} | options
    return ", ".join(f"{key} {value}" for key, value in sorted(chosen.items()))


def study_rows(studies: Mapping[str, ArmStudy]) -> pd.DataFrame:
    """The rows of all severities with a column "severity"; nobody's rows are left out."""
    return pd.concat(
        [study.rows.assign(severity=severity) for severity, study in studies.items()], ignore_index=True
    )


def record_study(
    studies: Mapping[str, ArmStudy],
    command: str,
    folder: str | Path | None = None,
    *,
    name: str = RECORDING,
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


def _check_arms(names: Sequence[str]) -> None:
    known = (*ABLATIONS, COARSE, REFLDM)
    for name in names:
        if name not in known:
            raise unknown_name("arm", name, [*SETS, *known])


def _needed(part: Any, arm: str, name: str) -> Any:
    if part is None:
        raise ConfigError(f"the arm {arm!r} needs its networks; pass LDBFRMethods({name}=...) or leave it out.")
    return part
