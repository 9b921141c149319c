"""DiffMAC's ablations (Table 3, Figs. 8 to 10) on drawn people, per severity: the same faces and noise in every arm.

X_D1 is made once a face and shared by all arms that start from it. ``refbfr evaluate diffmac --record`` runs the study
and keeps the rows as the recording "diffmac-ablations"; `refbfr_core.benchmark.diffmac_tables` sets them beside the
paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.benchmark.arms import Arm, ArmSettings, ArmStudy, Restored
from refbfr_core.benchmark.cases import Cases
from refbfr_core.benchmark.diffmac_oracle import best_compensation, latent_error
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
from refbfr_core.models.bottleneck import BottleneckOutput, kl_exact
from refbfr_core.models.moments import encode_moments
from refbfr_core.models.second_stage import SecondStage

RECORDING = "diffmac-ablations"
STAGE_ONE, TWICE, COARSE = "stage1", "2AdaIN", "coarse"
WEIGHTS = ("0.1", "0.01", "0.001")
"""lambda_info of (13), the beta of (6)."""
METHOD = "0.001_id"

SECOND_STAGES: Mapping[str, str] = {
    **{f"{weight}_id": f"id-{weight}" for weight in WEIGHTS},
    **{f"{weight}_n": f"noise-{weight}" for weight in WEIGHTS},
    **{f"{weight}_none": f"none-{weight}" for weight in WEIGHTS},
    TWICE: "2adain",
    **{f"no1_{weight}_n": f"no1-noise-{weight}" for weight in WEIGHTS},
}
"""Row of Table 3 -> end of the network's name after "diffmac-two-". The paper's "MIB w/o n|id" is "0.001_none" here."""

EXTENSION, EXTENSION_NETWORK = "0.01_ref", "ref-0.01"
"""Not of the paper: trained with the identity of another photo of the person instead of X_D1's."""

IDENTITY_ROWS = (METHOD, "0.01_id", "0.1_id")
RIGHT, SEVERAL, WRONG, TRUE, ORACLE = "ref", "refs", "wrong", "true", "oracle"
IDENTITIES = (RIGHT, SEVERAL, WRONG, TRUE)
"""Whose identity is injected instead of X_D1's own: of another photo of the person, of `REFERENCES` photos averaged, of
another person, and of the very picture that was ruined, which nobody has."""
DECODED, DECODED_ORACLE = "Z", "Z oracle"
REFERENCES = 4

ABLATIONS = (STAGE_ONE, *SECOND_STAGES)
SWAPS = (
    *(f"{row}+{way}" for row in (METHOD, "0.1_id") for way in IDENTITIES),
    *(f"0.01_id+{way}" for way in (RIGHT, WRONG)),
)
BOUNDS = tuple(f"{row}+{way}" for row in (METHOD, "0.1_id") for way in (ORACLE, DECODED, DECODED_ORACLE))
"""Stage II from the Z with the best sixteen numbers for the truth (`diffmac_oracle`); Z itself decoded, with the own
identity and with those numbers."""
EXTENSIONS = (EXTENSION, *(f"{EXTENSION}+{way}" for way in IDENTITIES))
SETS: Mapping[str, tuple[str, ...]] = {
    "ablations": ABLATIONS,
    "identity": (*IDENTITY_ROWS, *SWAPS),
    "bounds": (*IDENTITY_ROWS, *BOUNDS),
    "all": (*ABLATIONS, COARSE, *SWAPS, *BOUNDS),
    "extension": EXTENSIONS,
}
"""Besides, "coarse" is the small regression network that ships; it was trained on other degradations."""

METRICS = ("psnr", "ssim", "ids", "textures", "lpips-toy", "niqe-toy", "detail", "colour-bias")
"""Fidelity, identity, likeness and realism, amount of detail, colour. "lpips-toy" is a training loss of the
autoencoder, so verdicts do not rest on it."""
KNOWN = (*SETS["all"], *EXTENSIONS)
SHARE, SHARE_MEANS, SHARE_VARIANCES = "share", "share-means", "share-variances"
COLUMNS = (SHARE, SHARE_MEANS, SHARE_VARIANCES, "information", "latent-error")
"""Mean lambda of a face over all channels, those of the means, and those of the log-variances; mean of (11), exact, in
nats a number; mean squared error of the scaled latents of R ("stage1") or Z against the truth's."""


@dataclass(frozen=True)
class DiffMACMethods:
    """What the arms are made of: `pipe` a pipeline, `seconds` arm -> second stage, `coarse` a network with
    ``restore(images)`` or None."""

    pipe: Any
    seconds: Mapping[str, SecondStage] = field(default_factory=dict)
    coarse: nn.Module | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """Everything whose weights decide a result."""
        pipe = self.pipe
        own = [pipe.vae, pipe.unet, pipe.unet_two, pipe.modulation, pipe.embedder, pipe.prompt, self.coarse]
        return [network for network in (*own, *self.seconds.values()) if network is not None]


def arm_names(text: str) -> tuple[str, ...]:
    """The arms that `text` names, see `named_arms`."""
    return named_arms(text, SETS, KNOWN, f"stage1,{METHOD}")


def load_methods(
    names: Sequence[str] = SETS["all"],
    device: str | torch.device | None = None,
    root: str | Path | None = None,
) -> DiffMACMethods:
    """The shipped networks that the arms `names` need, or DiffMAC's own from the folder `root`.

    Raises:
        UnknownNameError: an unknown arm. WeightsError: weights that are missing or damaged. ConfigError: a second stage
            that was trained for another row of Table 3.
    """
    from refbfr_core.pipelines import load_pipeline
    from refbfr_core.weights import load_network

    check_arms(names, SETS, KNOWN)
    seconds = {}
    for row in dict.fromkeys(_row_of(name) for name in names):
        if row in (STAGE_ONE, COARSE):
            continue
        network = f"diffmac-two-{EXTENSION_NETWORK if row == EXTENSION else SECOND_STAGES[row]}"
        seconds[row] = load_network(network, device=device, root=root)
        if row != EXTENSION and seconds[row].config.label != row:
            raise ConfigError(f"{network} says it is row {seconds[row].config.label!r} of Table 3, not {row!r}.")
    coarse = load_network("coarse", device=device) if COARSE in names else None
    return DiffMACMethods(load_pipeline("diffmac", device=device, root=root), seconds, coarse)


class SharedWork:
    """What the arms have in common for one batch of cases, made when first asked for and kept until the next batch.

    `options` are the keywords of every call, such as ``num_inference_steps=``.
    """

    def __init__(self, pipe: Any, options: Mapping[str, Any]) -> None:
        self.pipe, self.options = pipe, dict(options)
        self._cases: Cases | None = None
        self._kept: dict[str, Tensor] = {}

    def first(self, cases: Cases) -> Tensor:
        """X_D1 (B, 3, H, W) in [0, 1] from the cases' seeds."""
        return self._once(cases, "first", lambda: self.pipe.stage_one(cases.lq, seed=cases.seeds, **self.options))

    def target(self, cases: Cases) -> Tensor:
        """Moments (B, 8, h, w) of the truth."""
        return self._once(cases, "target", lambda: self.moments(cases.truth))

    @torch.no_grad()
    def moments(self, pictures: Tensor) -> Tensor:
        """Moments (B, 8, h, w) of pictures in [0, 1]."""
        return encode_moments(self.pipe.vae, pictures)

    def error(self, cases: Cases, moments: Tensor) -> Tensor:
        """See `latent_error`."""
        return latent_error(moments, self.target(cases), self.pipe.vae.config.scaling_factor)

    def _once(self, cases: Cases, name: str, make: Callable[[], Tensor]) -> Tensor:
        if cases is not self._cases:
            self._cases, self._kept = cases, {}
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


def diffmac_arms(methods: DiffMACMethods, names: Sequence[str] = SETS["all"], **options: Any) -> dict[str, Arm]:
    """The arms called `names`, and before them "stage1", which makes the X_D1 of all others; so the time that other
    arms take is without Stage I.

    Args:
        options: keywords of every call, such as ``num_inference_steps=``.

    Raises:
        UnknownNameError: an unknown arm. ConfigError: an arm whose network is missing.
    """
    check_arms(names, SETS, KNOWN)
    methods.pipe.set_progress_bar_config(disable=True)
    shared = SharedWork(methods.pipe, options)

    def stage_one(cases: Cases) -> Restored:
        first = shared.first(cases)
        return Restored(first, {"latent-error": shared.error(cases, shared.moments(first))})

    arms: dict[str, Arm] = {STAGE_ONE: stage_one}
    for name in names:
        if name == COARSE:
            arms[name] = _coarse_arm(_needed(methods.coarse, name, "coarse"))
        elif name != STAGE_ONE:
            row, _, way = name.partition("+")
            second = _needed(methods.seconds.get(row), name, "seconds")
            pipe = methods.pipe.with_second(second, methods.pipe.unet_two)
            pipe.set_progress_bar_config(disable=True)
            arms[name] = _second_arm(pipe, way, shared)
    return arms


def _second_arm(pipe: Any, way: str, shared: SharedWork) -> Arm:
    """A second stage with its own identity (`way` is ""), another one, or the best one; restored, or Z decoded."""
    from_input = pipe.second.config.source == "input"
    given: dict[str, Callable[[Cases], dict[str, Any]]] = {
        "": lambda cases: {"identity": "own"},
        RIGHT: lambda cases: {"references": cases.right[:, :1], "identity": "references"},
        SEVERAL: lambda cases: {"references": cases.right, "identity": "references"},
        WRONG: lambda cases: {"references": cases.wrong[:, :1], "identity": "references"},
        TRUE: lambda cases: {"identity": pipe.identity(cases.truth)},
    }

    def restore(cases: Cases) -> Restored:
        first = None if from_input else shared.first(cases)
        made = pipe(cases.lq, first=first, seed=cases.seeds, **given[way](cases), **shared.options)
        return Restored(made.images, _columns(made.bottleneck, cases, shared))

    def decode(cases: Cases) -> Restored:
        z = pipe.bottleneck(shared.first(cases))
        return Restored(pipe.decode(z.moments), _columns(z, cases, shared))

    def bound(cases: Cases) -> Restored:
        known = best_compensation(pipe, cases.truth, shared.first(cases))
        made = known.restore(cases.lq, seed=cases.seeds, **shared.options)
        return Restored(made.images, _columns(known.best, cases, shared))

    def bound_decoded(cases: Cases) -> Restored:
        z = best_compensation(pipe, cases.truth, shared.first(cases)).best
        return Restored(pipe.decode(z.moments), _columns(z, cases, shared))

    return {ORACLE: bound, DECODED: decode, DECODED_ORACLE: bound_decoded}.get(way, restore)


def _columns(output: BottleneckOutput | None, cases: Cases, shared: SharedWork) -> dict[str, Tensor]:
    if output is None:
        return {}
    means, variances = output.share.chunk(2, dim=1)
    each = {
        SHARE: output.share,
        SHARE_MEANS: means,
        SHARE_VARIANCES: variances,
        "information": kl_exact(output.share, output.normalised),
    }
    return {name: value.mean((1, 2, 3)) for name, value in each.items()} | {
        "latent-error": shared.error(cases, output.moments)
    }


def _coarse_arm(network: Any) -> Arm:
    return lambda cases: from_network(network.restore(to_network(cases.lq.to(network.device))))


def run_diffmac_study(
    people: int = 64,
    severities: Sequence[str] = SEVERITIES,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    arms: Sequence[str] = SETS["all"],
    methods: DiffMACMethods | None = None,
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
        root: folder of DiffMAC's networks, instead of the shipped ones.
        options: of `diffmac_arms`. Others as in `refbfr_core.benchmark.arms.run_arms`.

    Raises:
        UnknownNameError: an unknown arm or severity. ConfigError: see `run_arms`.
    """
    from refbfr_core.weights import load_network

    methods = load_methods(arms, device, root) if methods is None else methods
    judge = load_network("judge", device=device) if judge is None else judge
    scores = computable(METRICS) if metrics is None else tuple(metrics)
    words = f"DiffMAC with {describe_sampling(methods.pipe, **options)}"
    return run_severities(
        diffmac_arms(methods, arms, **options),
        severities,
        ArmSettings(people, "", REFERENCES, seed, split, scores, words),
        methods.networks,
        judge,
        resolution=methods.pipe.resolution,
        out=out,
        batch=batch,
        progress=progress,
    )


def describe_sampling(pipe: Any, **options: Any) -> str:
    """How both stages sample, in words: the pipeline's defaults and what `options` change of them."""
    chosen = {key: pipe.config[key] for key in ("num_inference_steps", "timestep_spacing")} | options
    return ", ".join(f"{key} {value}" for key, value in sorted(chosen.items()))


def record_study(studies: Mapping[str, ArmStudy], command: str, folder: str | Path | None = None) -> Path:
    """Keep the rows of all severities as the recording `RECORDING`, see `record_severities`."""
    return record_severities(RECORDING, studies, command, folder, COLUMNS)


def _row_of(name: str) -> str:
    return name.partition("+")[0]


def _needed(part: Any, arm: str, name: str) -> Any:
    if part is None:
        raise ConfigError(f"the arm {arm!r} needs its networks; pass DiffMACMethods({name}=...) or leave it out.")
    return part
