"""The restoration methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from refbfr_core.devices import pick_device
from refbfr_core.errors import unknown_name
from refbfr_core.pipelines.presets import SAMPLING

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


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
