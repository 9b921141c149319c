"""Where the owners of networks that are imported keep their files; nothing is fetched unasked.

Addresses and licences stand in `refbfr_core.weights.assets`; here they get the form that the registry of networks has.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.weights.assets import ASSETS


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


def _published(asset_name: str, name: str = "") -> PublishedFile:
    asset = ASSETS[asset_name]
    return PublishedFile(asset.page, asset.link, asset.licence, asset.sha256, name, asset.note)


def _for_paper(asset_name: str, name: str = "") -> MappingProxyType[str, PublishedFile]:
    return MappingProxyType({"paper": _published(asset_name, name)})


def refldm_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of ReF-LDM's release, for the paper profile."""
    return _for_paper({"refldm.ckpt": "refldm", "vqgan.ckpt": "refldm-vqgan"}[filename])


def difface_release(filename: str) -> MappingProxyType[str, PublishedFile]:
    """A file of DifFace's release, which PGDiff and PDGrad use too, for the paper profile."""
    return _for_paper(
        {"iddpm_ffhq512_ema500000.pth": "difface-diffusion", "swinir_restoration512_L1.pth": "difface-swinir"}[filename]
    )


def pgdiff_arcface() -> MappingProxyType[str, PublishedFile]:
    """The embedder that PGDiff guides with, for the paper profile."""
    return _for_paper("pgdiff-arcface", ASSETS["pgdiff-arcface"].filename)


LDM_FFHQ = _published("ldm-ffhq", "model.ckpt")
"""Unconditional latent diffusion on FFHQ with its VQGAN: what LD-BFR's authors started from."""

LDM_CELEBAHQ = _published("ldm-celebahq")
"""The same topology trained on CelebA-HQ, in the layout of diffusers."""

SD21_BASE = _published("stable-diffusion-2-1-base")
"""Stable Diffusion 2.1-base in the layout of diffusers."""

SD21_BASE_COPY = _published("stable-diffusion-2-1-base-copy")
"""The same, elsewhere."""
