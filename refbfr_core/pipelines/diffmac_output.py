"""What a restoration by DiffMAC returns, and the record of its settings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from refbfr_core.models.bottleneck import BottleneckOutput
from refbfr_core.models.second_stage import SecondStage
from refbfr_core.pipelines.base import RestorationInputs, RestorationOutput, RestorationSettings


@dataclass(frozen=True)
class DiffMACSettings(RestorationSettings):
    """Settings of a restoration by DiffMAC; steps and timesteps are those of each stage.

    `variant` is the row of Table 3, `compensation` the bottleneck's, "off" without one. `stage_one` is "run", "given"
    or "none" (R comes from the ruined picture). `identity` is what was injected: "own", "references" (where an image
    has none, X_D1's own), "the caller's", or "none"; `blend` its share w beside X_D1's own. `share` is the lambda that
    replaced the network's own, "a tensor", or None; `kept` the mean lambda of each image, () without a bottleneck.
    """

    variant: str = ""
    compensation: str = "identity"
    stage_one: str = "run"
    identity: str = "own"
    blend: float = 1.0
    share: float | str | None = None
    kept: tuple[float, ...] = ()

    def __str__(self) -> str:
        words = [super().__str__(), self.variant or f"compensation {self.compensation}", f"Stage I {self.stage_one}"]
        if self.identity != "none":
            mixed = f" x {self.blend:g}" if self.identity != "own" and self.blend != 1 else ""
            words.append(f"identity {self.identity}{mixed}")
        if self.kept:
            chosen = "mean lambda" if self.share is None else "mean of the caller's lambda"
            words.append(f"{chosen} {sum(self.kept) / len(self.kept):.3g}")
        return ", ".join(words)


@dataclass(frozen=True)
class DiffMACOutput(RestorationOutput):
    """What DiffMAC returns besides `images`.

    `stage_one` is X_D1 (B, 3, H, W) in [0, 1] on the device of the input, None for second stages that work on the
    ruined picture; `bottleneck` what the bottleneck made of R, None without one; `identity` the injected embeddings
    (B, D), None where none are. `trace` records Stage II.
    """

    stage_one: Tensor | None
    bottleneck: BottleneckOutput | None
    identity: Tensor | None


def identity_words(
    second: SecondStage, identity: str | Tensor, inputs: RestorationInputs
) -> tuple[str, tuple[int, ...]]:
    """What to call the identity that a call injects, and how many references each image uses for it."""
    unused = (0,) * len(inputs.lq)
    if second.compensation != "identity":
        return "none", unused
    if isinstance(identity, Tensor):
        return "the caller's", unused
    if identity == "own" or inputs.references is None:
        return "own", unused
    return "references", inputs.reference_counts
