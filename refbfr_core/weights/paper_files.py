"""Files of other people that the paper profile uses as they are: which, from whom, under which licence, and what for.

Plain frozen records. Nothing is fetched and nothing is converted: these files are named by their path where they are
needed. The files that are converted into networks of this package stand in `refbfr_core.weights.registry`.

No owner's page gives a SHA-256 for any of them as far as is known here, so none is pinned; a result's record names the
digest of the file that was used. Licences are those the owners' pages state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.errors import unknown_name


@dataclass(frozen=True)
class PaperFile:
    """One file of other people.

    name : how it is called here. filename : how its owners call it. purpose : what it is and which method needs it.
    page : its owners' page. url : the file itself, or the page of a file store that hands it out. licence : what its
    owners allow, in a few words. use : what to do with it. sha256 : of the file, where it is known.
    """

    name: str
    filename: str
    purpose: str
    page: str
    url: str
    licence: str
    use: str
    sha256: str | None = None

    def how_to_get(self) -> str:
        """One sentence for messages: whose it is, where it is, and what to do with it."""
        return (
            f"{self.filename} does not come with this package. Its owners publish it at {self.page} (licence: "
            f"{self.licence}): download {self.url}, then {self.use}."
        )


_S_LAB = "S-Lab License 1.0, non-commercial use only"
_INSIGHTFACE = "https://github.com/deepinsight/insightface/releases"
_INSIGHTFACE_LICENCE = "non-commercial research only (the library's code is MIT)"
_COARSE = "pass its path as the coarse restorer: named_coarse({!r})"


def _drive(identifier: str) -> str:
    return f"https://drive.google.com/file/d/{identifier}/view"


def _pack(name: str, networks: str) -> PaperFile:
    return PaperFile(
        f"insightface-{name}",
        f"{name}.zip",
        f"InsightFace pack ({networks}): finds, aligns and compares faces on photographs; its ArcFace scores IDS and "
        "Deg, or guides PDGrad",
        f"{_INSIGHTFACE}/tag/model-zoo",
        f"{_INSIGHTFACE}/download/model-zoo/{name}.zip",
        _INSIGHTFACE_LICENCE,
        f"unpack it to ~/.insightface/models/{name} or $REFBFR_INSIGHTFACE_ROOT/models/{name}",
    )


_FILES = (
    PaperFile(
        "codeformer",
        "codeformer.pth",
        "CodeFormer (NeurIPS 2022), the coarse restorer f of PDGrad's experiments; its w is not given there",
        "https://github.com/sczhou/CodeFormer/releases/tag/v0.1.0",
        "https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
        _S_LAB,
        _COARSE.format("codeformer.pth"),
    ),
    PaperFile(
        "difface-swinir",
        "swinir_restoration512_L1.pth",
        "SwinIR trained for faces with an L1 loss, the coarse restorer of DifFace",
        "https://github.com/zsyOAOA/DifFace/releases/tag/V1.0",
        "https://github.com/zsyOAOA/DifFace/releases/download/V1.0/swinir_restoration512_L1.pth",
        _S_LAB,
        _COARSE.format("swinir_restoration512_L1.pth"),
    ),
    PaperFile(
        "gfpgan",
        "GFPGANv1.4.pth",
        "GFPGAN (CVPR 2021), a coarse restorer under a permissive licence that no paper here uses as one",
        "https://github.com/TencentARC/GFPGAN/releases/tag/v1.3.0",
        "https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
        "Apache-2.0 with listed exceptions",
        _COARSE.format("GFPGANv1.4.pth"),
    ),
    PaperFile(
        "pgdiff-restorer",
        "rrdb_iter_100000.pth",
        "PGDiff's restorer, an RRDB network that sees x_t, y and the timestep at every step, so it is no f(y)",
        "https://github.com/pq-yang/PGDiff#blind-restoration",
        _drive("1XlpB873rHCn-T5UfUCXq_fAprhuBKR30"),
        _S_LAB,
        "leave it: nothing here reads it, PGDiff runs here with a coarse restorer, as PDGrad describes it",
    ),
    _pack("buffalo_l", "10GF detector, ResNet-50 trained on WebFace600K"),
    _pack("antelopev2", "10GF detector, ResNet-100 trained on Glint360K"),
)

PAPER_FILES: Mapping[str, PaperFile] = MappingProxyType({entry.name: entry for entry in _FILES})
"""Every such file by name; read-only."""


def paper_file(name: str) -> PaperFile:
    """The file called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in PAPER_FILES:
        raise unknown_name("paper file", name, PAPER_FILES)
    return PAPER_FILES[name]
