"""LD-BFR's ablations (Figs. 7 to 10) on drawn people, per severity: the same faces and noise in every arm.

The paper shows its ablations as pictures only; here they are numbers. ``refbfr evaluate ldbfr --record`` runs the study
and keeps the rows as the recording "ldbfr-ablations"; `refbfr_core.benchmark.ldbfr_tables` sets them beside the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.severities import (
    SEVERITIES,
    check_arms,
    computable,
    named_arms,
    record_severities,
    run_severities,
)
from refbfr_core.errors import ConfigError
from refbfr_core.images import from_network, to_network
from refbfr_core.models.dual_cross_attention import BRANCHES
from refbfr_core.models.injected_unet import VARIANTS

RECORDING = "ldbfr-ablations"
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
KNOWN = (*ABLATIONS, COARSE, REFLDM)


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


def arm_names(text: str) -> tuple[str, ...]:
    """The arms that `text` names, see `named_arms`."""
    return named_arms(text, SETS, KNOWN, "stage1,D")


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

    check_arms(names, SETS, KNOWN)
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
    check_arms(names, SETS, KNOWN)
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

    methods = load_methods(arms, device, root) if methods is None else methods
    judge = load_network("judge", device=device) if judge is None else judge
    scores = computable(METRICS) if metrics is None else tuple(metrics)
    words = f"LD-BFR with {describe_sampling(methods.pipe, **options)}"
    return run_severities(
        ldbfr_arms(methods, arms, **options),
        severities,
        ArmSettings(people, "", 1, seed, split, scores, words),
        methods.networks,
        judge,
        resolution=methods.pipe.resolution,
        out=out,
        batch=batch,
        progress=progress,
    )


def describe_sampling(pipe: Any, **options: Any) -> str:
    """How the method samples, in words: the pipeline's defaults and what `options` change of them."""
    chosen = {key: pipe.config[key] for key in ("num_inference_steps", "eta", "timestep_spacing")} | options
    return ", ".join(f"{key} {value}" for key, value in sorted(chosen.items()))


def record_study(studies: Mapping[str, ArmStudy], command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of all severities as the recording `RECORDING`, see `record_severities`."""
    return record_severities(RECORDING, studies, command, folder)


def _needed(part: Any, arm: str, name: str) -> Any:
    if part is None:
        raise ConfigError(f"the arm {arm!r} needs its networks; pass LDBFRMethods({name}=...) or leave it out.")
    return part
