"""The restoration methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from refbfr_core.devices import pick_device
from refbfr_core.errors import unknown_name
from refbfr_core.pipelines.diffmac_networks import ZERO_TOKEN, build_diffmac
from refbfr_core.pipelines.presets import SAMPLING

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn


_CALL_DEFAULTS = ("num_inference_steps", "timestep_spacing", "guidance_scale")


@dataclass(frozen=True)
class PipelineEntry:
    """One named method: what it is, where it was published, and the configuration of each profile.

    `build(profile, root, **configuration)` loads the networks and returns the pipeline.
    """

    name: str
    title: str
    paper: str
    build: Callable[..., DiffusionPipeline]
    profiles: MappingProxyType[str, MappingProxyType[str, Any]]


def _build_refldm(profile: str, root: str | Path | None, *, prediction: str, **configuration: Any) -> DiffusionPipeline:
    from refbfr_core.diffusion import refldm_schedule, to_scheduler
    from refbfr_core.pipelines.refldm import RefLDMPipeline, patch_size_between
    from refbfr_core.weights import load_network

    vq = load_network("refldm-vq", profile, "cpu", root=root)
    unet = load_network("refldm-unet", profile, "cpu", root=root)
    return RefLDMPipeline(
        vq=vq,
        unet=unet,
        scheduler=to_scheduler(refldm_schedule(), prediction_type=prediction),
        patch_size=patch_size_between(vq, unet),
        **configuration,
    )


def _build_on_prior(
    pipeline: Callable[[], type], profile: str, root: str | Path | None, *, prediction: str, **configuration: Any
) -> DiffusionPipeline:
    """A method on the unconditional pixel diffusion. Of `configuration`, "embedder", "perceptual" and "coarse" name
    networks; everything else goes to the pipeline as it is."""
    from refbfr_core.diffusion import make_schedule, to_ddpm_scheduler
    from refbfr_core.weights import load_network

    parts: dict[str, Any] = {
        "unet": load_network("pdgrad-unet", profile, "cpu", root=root),
        "scheduler": to_ddpm_scheduler(
            make_schedule("pdgrad"), variance_type="learned_range", clip_sample=True, prediction_type=prediction
        ),
    }
    for part in ("embedder", "perceptual", "coarse"):
        if part in configuration:
            name = configuration.pop(part)
            own = _OTHER_NETWORKS.get(name)
            parts[part] = own() if own else load_network(name, profile, "cpu", root=root)
    return pipeline()(**parts, **configuration)


def ldbfr_networks(
    profile: str, root: str | Path | None, device: str | torch.device | None = "cpu", **names: str
) -> dict[str, nn.Module]:
    """Networks of LD-BFR: part=name in `refbfr_core.weights.NETWORKS`.

    Raises WeightsError for weights that are missing or damaged; its authors released none for "paper", so there only
    one's own training can be loaded. UnknownNameError: no such profile or network.
    """
    from refbfr_core.weights import load_network

    return {part: load_network(name, profile, device, root=root) for part, name in names.items()}


def _build_ldbfr(
    profile: str, root: str | Path | None, *, prediction: str, restorer: str, injection: str, **configuration: Any
) -> DiffusionPipeline:
    from refbfr_core.diffusion import make_schedule, to_scheduler
    from refbfr_core.pipelines.ldbfr import LDBFRPipeline

    names = {"vqc": "ldbfr-vqc", "vqo": "ldbfr-vqo", "unet": "ldbfr-unet"}
    parts = ldbfr_networks(profile, root, restorer=restorer, injection=injection, **names)
    scheduler = to_scheduler(make_schedule("ldbfr"), prediction_type=prediction)
    return LDBFRPipeline(**parts, scheduler=scheduler, **configuration)


def _lpips_vgg() -> Any:
    from refbfr_core.metrics.perceptual import load_lpips
    from refbfr_core.models import LPIPSFeatures

    return LPIPSFeatures(load_lpips("vgg"))


# Networks that do not come from this package's store. The published coarse restorers are other people's files, which a
# call names (`named_coarse`).
_OTHER_NETWORKS: MappingProxyType[str, Callable[[], Any]] = MappingProxyType(
    {"lpips-vgg": _lpips_vgg, "the caller's": lambda: None}
)


def _pdgrad() -> type:
    from refbfr_core.pipelines.pdgrad import PDGradPipeline

    return PDGradPipeline


def _pgdiff() -> type:
    from refbfr_core.pipelines.pgdiff import PGDiffPipeline

    return PGDiffPipeline


def _difface() -> type:
    from refbfr_core.pipelines.difface import DifFacePipeline

    return DifFacePipeline


def _profiles(toy: dict[str, Any], paper: dict[str, Any]) -> MappingProxyType[str, MappingProxyType[str, Any]]:
    """Both profiles of a method on the pixel diffusion. The small prior predicts the clean picture, since noise does
    not fit through it; the published one predicts noise."""
    return MappingProxyType(
        {
            "toy": MappingProxyType({"prediction": "sample", "coarse": "coarse", **toy}),
            "paper": MappingProxyType({"prediction": "epsilon", "coarse": "the caller's", **paper}),
        }
    )


_TOY_FEATURES = {"embedder": "guide", "perceptual": "perceptual"}
_PAPER_FEATURES = {"embedder": "arcface", "perceptual": "lpips-vgg"}
DIFFMAC_METHOD = "id-0.001"
"""The row of DiffMAC's Table 3 that is the method: identity compensation, lambda_info 0.001."""
_LDBFR_PARTS = {"restorer": "ldbfr-restorer", "injection": "ldbfr-hqi-d"}


PIPELINES: MappingProxyType[str, PipelineEntry] = MappingProxyType(
    {
        "refldm": PipelineEntry(
            "refldm",
            "ReF-LDM: latent diffusion with reference keys and values",
            "Hsiao et al., ReF-LDM: A Latent Diffusion Model for Reference-based Face Image Restoration, NeurIPS 2024",
            _build_refldm,
            MappingProxyType(
                {
                    # The paper's network predicts noise, the small one v (Salimans and Ho, ICLR 2022): with the
                    # few samples two cores can afford, its colours and layout converge several times sooner.
                    # Ten steps keep a restoration live on two cores. Scale chosen on 64 people of split "val":
                    # 2 brings more identity than the paper's 1.5 and costs 0.07 dB; above 2.5 only the pixels change.
                    "toy": MappingProxyType(
                        {
                            "reference_encoding": "separate",
                            "prediction": "v_prediction",
                            "num_inference_steps": 10,
                            "guidance_scale": 2.0,
                        }
                    ),
                    # As released: one strip of references, noise prediction, and the single-image script's sampling.
                    "paper": MappingProxyType(
                        {
                            "reference_encoding": "strip",
                            "prediction": "epsilon",
                            **{key: SAMPLING["release"][key] for key in _CALL_DEFAULTS},
                        }
                    ),
                }
            ),
        ),
        "pdgrad": PipelineEntry(
            "pdgrad",
            "PDGrad: diffusion guided by gradients that are resolved around a pivot",
            "PDGrad, Sensors 2024, 24(22), 7112",
            partial(_build_on_prior, _pdgrad),
            _profiles(
                # Noise hides more of a small picture: tau = 400 leaves about what 700 leaves at 512 px. Scale and steps
                # were chosen on four people of split "val".
                toy={**_TOY_FEATURES, "num_inference_steps": 50, "start": 400, "scale": 0.05},
                # Section 4.1.1: tau = 700, s = 0.1, no respacing; the factor on the gradient is not in the paper.
                paper={**_PAPER_FEATURES, "num_inference_steps": 1000, "start": 700, "scale": 0.1},
            ),
        ),
        "pgdiff": PipelineEntry(
            "pgdiff",
            "PGDiff: diffusion guided by sums of squares",
            "Yang et al., PGDiff: Guiding Diffusion Models for Versatile Face Restoration via Partial Guidance, "
            "NeurIPS 2023",
            partial(_build_on_prior, _pgdiff),
            _profiles(
                # The toy embedder's output has length 1, an ArcFace's many times that, and the loss is its square.
                # Chosen on four people of split "val": more weight costs pixels and brings no identity.
                toy={"embedder": "guide", "num_inference_steps": 50, "scale": 0.1, "reference_weight": 2500.0},
                paper={"embedder": "arcface", "num_inference_steps": 1000, "scale": 0.1, "reference_weight": 25.0},
            ),
        ),
        "difface": PipelineEntry(
            "difface",
            "DifFace: a coarse restoration diffused part-way and denoised",
            "Yue and Loy, DifFace: Blind Face Restoration with Diffused Error Contraction, TPAMI 2024",
            partial(_build_on_prior, _difface),
            _profiles(
                toy={"num_inference_steps": 50, "start": 401},
                paper={"num_inference_steps": 250, "start": 401},
            ),
        ),
        "ldbfr": PipelineEntry(
            "ldbfr",
            "LD-BFR: codes of clean faces restore the features, a latent diffusion renders them",
            "Du et al., LD-BFR: Vector-Quantization-Based Face Restoration Model with Latent Diffusion Enhancement, "
            "ACM MM 2024",
            _build_ldbfr,
            MappingProxyType(
                {
                    # The small network predicts v, which it learns in fewer steps than noise.
                    "toy": MappingProxyType(
                        {**_LDBFR_PARTS, "prediction": "v_prediction", "num_inference_steps": 50, "eta": 1.0}
                    ),
                    # Noise as in eq. 5 and 6; steps and eta of the authors' code, the paper states none.
                    "paper": MappingProxyType(
                        {**_LDBFR_PARTS, "prediction": "epsilon", "num_inference_steps": 200, "eta": 1.0}
                    ),
                }
            ),
        ),
        "diffmac": PipelineEntry(
            "diffmac",
            "DiffMAC: two modulated diffusions with an information bottleneck between them",
            "Gao et al., DiffMAC: Diffusion Manifold Hallucination Correction for High Generalization Blind Face "
            "Restoration, arXiv 2403.10098, 2024",
            build_diffmac,
            MappingProxyType(
                {
                    # Steps are those of each stage.
                    "toy": MappingProxyType(
                        {
                            "second": DIFFMAC_METHOD,
                            "prediction": "v_prediction",
                            "embedder": "guide",
                            "prompt": ZERO_TOKEN,
                            "elsewhere": ("guide",),
                            "num_inference_steps": 25,
                        }
                    ),
                    # Sections 4.1 and 3.1; Stable Diffusion 2.1-base predicts noise.
                    "paper": MappingProxyType(
                        {
                            "second": DIFFMAC_METHOD,
                            "prediction": "epsilon",
                            "embedder": "arcface",
                            "prompt": "diffmac-prompt",
                            "elsewhere": ("arcface", "diffmac-prompt", "diffmac-unet", "diffmac-vae"),
                            "num_inference_steps": 50,
                        }
                    ),
                }
            ),
        ),
    }
)


def load_pipeline(
    name: str,
    profile: str = "toy",
    device: str | torch.device | None = None,
    *,
    root: str | Path | None = None,
) -> DiffusionPipeline:
    """The restoration method `name`, ready to call.

    Args:
        name: a key of `PIPELINES`.
        profile: "toy" for the networks that ship with the package, "paper" for the published ones.
        device: None picks the first GPU, else the CPU.
        root: a folder of networks written by `refbfr_core.weights.save_network`, instead of the shipped ones or, for
            "paper", those that `refbfr weights import` made.

    Raises:
        UnknownNameError: no such method or profile; the message says the nearest name.
        WeightsError: weights that are missing, damaged, or have to be fetched from their owners first.
    """
    if name not in PIPELINES:
        raise unknown_name("pipeline", name, PIPELINES)
    entry = PIPELINES[name]
    if profile not in entry.profiles:
        raise unknown_name(f"profile of {name!r}", profile, entry.profiles)
    return entry.build(profile, root, **entry.profiles[profile]).to(pick_device(device))
