"""What the first stage of a latent diffusion model lets through: nothing that is lost here can be restored later.

PSNR, SSIM and the judge's cosine of reconstructions say how much is lost in all. What happens to *small features that
carry identity* (moles, freckles, the colour of the iris) hides in such means, so it is measured by counterfactuals that
only a renderer offers: the same person is drawn once as they are and once with the feature changed. With D the
difference of the two pictures and R the reconstruction,

    survival = <R(with) - R(without), D> / <D, D>

is 1 when the feature comes through at full strength and 0 when it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from diffusers import VQModel
from torch import Tensor, nn

from refbfr_core.benchmark.embedders import embed
from refbfr_core.errors import ConfigError
from refbfr_core.faces import Identities, ToyFaces, Views
from refbfr_core.images import from_network
from refbfr_core.metrics import compute
from refbfr_core.models import decode_latents, encode_latents


def _without_moles(identities: Identities) -> Identities:
    sizes = dict.fromkeys(("mole0_size", "mole1_size", "mole2_size", "mole3_size"), -1.0)
    return identities.replace(**sizes)


def _without_freckles(identities: Identities) -> Identities:
    return identities.replace(freckles=-1.0)


def _other_iris(identities: Identities) -> Identities:
    colour = identities["iris_colour"]
    return identities.replace(iris_colour=torch.where(colour < 0, colour + 1, colour - 1))


EDITS: Mapping[str, Callable[[Identities], Identities]] = MappingProxyType(
    {"moles": _without_moles, "freckles": _without_freckles, "iris colour": _other_iris}
)
"""Features whose survival is measured, each with the edit that takes it away or changes it."""

# A feature that hardly changes a picture (a mole behind the hair) says nothing about the network.
_LEAST_CHANGE = 0.02


@dataclass(frozen=True)
class FirstStageReport:
    """Means over pictures. PSNR in dB; `unquantised_psnr` skips the codebook; `survival` by feature, with the number of
    pictures in which the feature shows in `pictures_with`; `codes_used` of `codes` codebook vectors were chosen."""

    people: int
    pictures: int
    psnr: float
    unquantised_psnr: float
    ssim: float
    identity_cosine: float | None
    survival: dict[str, float]
    pictures_with: dict[str, int]
    codes_used: int
    codes: int

    def __str__(self) -> str:
        identity = "no judge" if self.identity_cosine is None else f"{self.identity_cosine:.4f}"
        lines = [
            f"first stage on {self.pictures} pictures of {self.people} unseen people",
            f"  PSNR {self.psnr:.2f} dB through the codebook, {self.unquantised_psnr:.2f} dB without it",
            f"  SSIM {self.ssim:.4f}, identity cosine of reconstructions {identity}",
            f"  codes used {self.codes_used} of {self.codes}",
        ]
        for name, value in self.survival.items():
            lines.append(f"  survival of {name}: {value:.2f} ({self.pictures_with[name]} pictures show it)")
        return "\n".join(lines)


@torch.no_grad()
def reconstruct(vq: VQModel, pictures: Tensor, quantize: bool = True, batch: int = 32) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] through the first stage and back, on the CPU."""
    parts = [decode_latents(vq, encode_latents(vq, part), quantize=quantize).cpu() for part in pictures.split(batch)]
    return from_network(torch.cat(parts))


def feature_survival(before: Tensor, after: Tensor, rebuilt_before: Tensor, rebuilt_after: Tensor) -> Tensor:
    """The share of the difference of two pictures that is left in the difference of their reconstructions.

    Args:
        before, after, rebuilt_before, rebuilt_after: (N, 3, H, W).

    Returns:
        (N,) float64; NaN where the largest difference of the two pictures is below 0.02.
    """
    change = (before - after).double().flatten(1)
    rebuilt = (rebuilt_before - rebuilt_after).double().flatten(1)
    survival = (change * rebuilt).sum(dim=1) / (change * change).sum(dim=1)
    return torch.where(change.abs().amax(dim=1) < _LEAST_CHANGE, torch.nan, survival)


@torch.no_grad()
def run_first_stage_study(
    vq: VQModel | None = None,
    judge: nn.Module | None = None,
    people: int = 64,
    views: int = 2,
    seed: int = 0,
    split: str = "test",
    identity: bool = True,
    device: str | torch.device | None = None,
) -> FirstStageReport:
    """Measures a first stage on drawn people it was not trained on.

    Args:
        vq, judge: networks; None loads the shipped ones.
        people, views, seed, split: which drawn pictures.
        identity: measure the judge's cosine too; without it no judge is needed.

    Raises:
        ConfigError: no people or views. WeightsError: weights missing or damaged.
    """
    if people < 1 or views < 1:
        raise ConfigError(f"{people} people in {views} views are no pictures; use at least 1 of each.")
    if vq is None:
        from refbfr_core.weights import load_network

        vq = load_network("refldm-vq", device=device)
    if identity and judge is None:
        from refbfr_core.weights import load_network

        judge = load_network("judge", device=device)
    faces = ToyFaces(128)
    identities = faces.identities(people, seed, split=split)
    sights = faces.views(identities, views, seed)
    truth = faces.render(identities, sights).images.flatten(0, 1)
    rebuilt = reconstruct(vq, truth)
    survival, shown = _survivals(vq, faces, identities, sights, truth, rebuilt)
    cosine = float((embed(judge, truth) * embed(judge, rebuilt)).sum(dim=1).mean()) if identity else None
    return FirstStageReport(
        people=people,
        pictures=len(truth),
        psnr=float(compute("psnr", rebuilt, truth).mean()),
        unquantised_psnr=float(compute("psnr", reconstruct(vq, truth, quantize=False), truth).mean()),
        ssim=float(compute("ssim", rebuilt, truth).mean()),
        identity_cosine=cosine,
        survival=survival,
        pictures_with=shown,
        codes_used=_codes_used(vq, truth),
        codes=vq.config.num_vq_embeddings,
    )


def _survivals(
    vq: VQModel, faces: ToyFaces, identities: Identities, views: Views, truth: Tensor, rebuilt: Tensor
) -> tuple[dict[str, float], dict[str, int]]:
    survival, shown = {}, {}
    for name, edit in EDITS.items():
        # The views stay those of the unedited person, so that only the feature differs.
        changed = faces.render(edit(identities), views).images.flatten(0, 1)
        each = feature_survival(truth, changed, rebuilt, reconstruct(vq, changed))
        survival[name], shown[name] = float(each.nanmean()), int((~each.isnan()).sum())
    return survival, shown


def _codes_used(vq: VQModel, pictures: Tensor, batch: int = 32) -> int:
    """How many codebook vectors at least one of the pictures uses."""
    used: set[int] = set()
    for part in pictures.split(batch):
        latents = encode_latents(vq, part) / vq.config.scaling_factor
        used |= set(vq.quantize(latents)[2][2].flatten().tolist())
    return len(used)


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{run_first_stage_study()}\n")
