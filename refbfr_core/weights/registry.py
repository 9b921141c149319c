"""The networks this package knows by name, and where their weights come from in each profile.

An entry is a plain frozen record. The class of a network is given by a function that imports it when it is needed, so
that reading the registry costs nothing and no class is ever looked up from a string in a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

from refbfr_core.errors import unknown_name
from refbfr_core.weights import network_classes
from refbfr_core.weights.sources import (
    LDM_CELEBAHQ,
    LDM_FFHQ,
    SD21_BASE,
    SD21_BASE_COPY,
    PublishedFile,
    difface_release,
    pgdiff_arcface,
    refldm_release,
)

PROFILES: tuple[str, ...] = ("toy", "paper")


@dataclass(frozen=True)
class NetworkEntry:
    """One named network.

    `network_class` is called without arguments and returns the class; `recipe` is the name `refbfr train` knows, "" if
    nothing here trains it;
    `shipped` says that trained toy weights come with the package; `published` maps a profile other than "toy" to the
    file its owners publish, `also` are other files that give the same network. `unpublished` says why there is no file
    although the method is published: then a profile other than "toy" has what its user trained, or nothing.
    """

    name: str
    purpose: str
    network_class: Callable[[], type]
    recipe: str
    shipped: bool = False
    published: MappingProxyType[str, PublishedFile] = field(default_factory=lambda: MappingProxyType({}))
    also: tuple[PublishedFile, ...] = ()
    unpublished: str = ""


_NO_LDBFR = "LD-BFR's authors released no weights"
_NO_DIFFMAC = "DiffMAC's authors released no weights"

DIFFMAC_SECOND: tuple[str, ...] = (
    *(f"{kind}-{weight}" for kind in ("id", "noise", "none") for weight in ("0.1", "0.01", "0.001")),
    "2adain",
    *(f"no1-noise-{weight}" for weight in ("0.1", "0.01", "0.001")),
    "ref-0.01",
)
"""Second stages of DiffMAC, the rows of its Table 3: compensation and lambda_info, "2adain" without a bottleneck, "no1"
without Stage I. "ref" is an extension that was trained with the identity of another photo."""


NETWORKS: MappingProxyType[str, NetworkEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            NetworkEntry(
                "judge",
                "face embedder that only scores results (IDS and Deg); it never takes part in a training or a guidance",
                network_classes.face_embedder,
                "embedder-judge",
                shipped=True,
            ),
            NetworkEntry(
                "guide",
                "face embedder that losses and guidance may use; it never scores a result",
                network_classes.face_embedder,
                "embedder-guide",
                shipped=True,
            ),
            NetworkEntry(
                "refldm-vq",
                "first stage of ReF-LDM: image to latent and back through a codebook",
                network_classes.vq_model,
                "refldm-vq",
                shipped=True,
                published=refldm_release("vqgan.ckpt"),
            ),
            NetworkEntry(
                "refldm-unet",
                "denoiser of ReF-LDM, conditioned on the degraded latent and, through CacheKV, on reference latents",
                network_classes.unet_2d,
                "refldm-base",
                shipped=True,
                published=refldm_release("refldm.ckpt"),
            ),
            NetworkEntry(
                "pdgrad-unet",
                "unconditional pixel diffusion with learned variance, the face prior of PDGrad, PGDiff and DifFace",
                network_classes.adm_unet,
                "pdgrad-unet",
                shipped=True,
                published=difface_release("iddpm_ffhq512_ema500000.pth"),
            ),
            NetworkEntry(
                "ldbfr-vqc",
                "condition VQGAN of LD-BFR: its codebook is the vocabulary of clean faces, its decoder renders stage 1",
                network_classes.vq_model,
                "ldbfr-vqc",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-vqo",
                "output VQGAN of LD-BFR: latents of the diffusion, rendered at twice the side it reads",
                network_classes.output_vq_model,
                "ldbfr-vqo",
                shipped=True,
                published=MappingProxyType({"paper": LDM_FFHQ}),
                also=(LDM_CELEBAHQ,),
            ),
            NetworkEntry(
                "ldbfr-restorer",
                "stage 1 of LD-BFR, DC-VQR: encoder of degraded faces and dual cross-attention over ldbfr-vqc's codes",
                network_classes.vq_restorer,
                "ldbfr-restorer",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-restorer-plain",
                "stage 1 of LD-BFR without dual cross-attention, the arm of its Fig. 7",
                network_classes.vq_restorer,
                "ldbfr-restorer-plain",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-unet",
                "unconditional latent diffusion of LD-BFR on ldbfr-vqo's latents",
                network_classes.unet_2d,
                "ldbfr-unet",
                shipped=True,
                published=MappingProxyType({"paper": LDM_FFHQ}),
                also=(LDM_CELEBAHQ,),
            ),
            *(
                NetworkEntry(
                    f"ldbfr-hqi-{variant}",
                    f"HQ-feature injection of LD-BFR into ldbfr-unet, variant {variant.upper()} of its Fig. 9",
                    network_classes.hq_injection,
                    f"ldbfr-hqi-{variant}",
                    shipped=True,
                    unpublished=_NO_LDBFR,
                )
                for variant in "abcd"
            ),
            NetworkEntry(
                "diffmac-vae",
                "KL autoencoder of DiffMAC: its moments are the manifold that the bottleneck works on",
                network_classes.autoencoder_kl,
                "diffmac-vae",
                shipped=True,
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-unet",
                "latent diffusion that both stages of DiffMAC modulate, in the place of Stable Diffusion 2.1-base",
                network_classes.unet_2d_condition,
                "diffmac-unet",
                shipped=True,
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-prompt",
                "embedding of the empty prompt, all that DiffMAC needs of a text encoder; the toy's is a zero token",
                network_classes.prompt_embedding,
                "",
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-one",
                "Stage I of DiffMAC: condition pyramid and modulation of diffmac-unet's encoder",
                network_classes.feature_modulation,
                "diffmac-one",
                shipped=True,
                unpublished=_NO_DIFFMAC,
            ),
            *(
                NetworkEntry(
                    f"diffmac-two-{label}",
                    f"Stage II of DiffMAC, bottleneck and modulation: {label} of its Table 3",
                    network_classes.second_stage,
                    f"diffmac-two-{label}",
                    shipped=True,
                    unpublished=_NO_DIFFMAC,
                )
                for label in DIFFMAC_SECOND
            ),
            *(
                NetworkEntry(
                    f"diffmac-{stage}-unet",
                    f"denoiser of DiffMAC's Stage {number} where a training changed it (train_unet)",
                    network_classes.unet_2d_condition,
                    "",
                    unpublished=_NO_DIFFMAC,
                )
                for stage, number in (("one", "I"), ("two", "II"))
            ),
            NetworkEntry(
                "arcface",
                "ArcFace IResNet for photographs: identity features of PDGrad and PGDiff; drawn faces have the guide",
                network_classes.iresnet,
                "",
                published=pgdiff_arcface(),
            ),
            NetworkEntry(
                "perceptual",
                "perceptual features and distance for losses and guidance, the toy twin of LPIPS's VGG16",
                network_classes.perceptual_features,
                "perceptual",
                shipped=True,
            ),
            NetworkEntry(
                "coarse",
                "coarse restorer of PDGrad: feed-forward, without references; keeps colour and shape, loses identity",
                network_classes.coarse_net,
                "coarse",
                shipped=True,
            ),
        )
    }
)


def network_entry(name: str) -> NetworkEntry:
    """The entry called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    return NETWORKS[name]


def check_profile(profile: str) -> str:
    """Returns `profile` if it is known; raises `UnknownNameError` otherwise."""
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    return profile
