"""The restoration systems of the papers' tables: what each is, whose it is, and how it comes into a table here.

A system runs here as a pipeline of this package, or from its authors' file through spandrel. Every other one, and any
new one, is scored from a folder of its pictures: ``refbfr table NAME --results SYSTEM=FOLDER``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.errors import ConfigError, unknown_name

REFERENCES = ("right", "wrong", "none")
"""Whose references an arm gives: of the same person, of somebody else, or of nobody."""
TAKES, NEEDS, NO_REFERENCES = "takes", "needs", "none"
PIPELINE, FILE, FOLDER = "pipeline", "file", "folder"
INPUT, COARSE = "Input", "Coarse network"


@dataclass(frozen=True)
class Arm:
    """One line of a table: a system, and whose references it gets.

    Attributes:
        system: a key of `SYSTEMS`, a variant (see `refbfr_core.benchmark.tables.variants`), or the name of a folder's.
        references: one of `REFERENCES`.

    Raises:
        UnknownNameError: another word for the references. ConfigError: an empty name, references for a system that
            cannot take them, or none for one that cannot do without.
    """

    system: str
    references: str = "none"

    def __post_init__(self) -> None:
        if self.references not in REFERENCES:
            raise unknown_name("kind of references", self.references, REFERENCES)
        if not self.system.strip():
            raise ConfigError("an arm needs the name of a system, such as 'CodeFormer'.")
        entry = SYSTEMS.get(self.system)
        if entry is None:
            return
        if entry.references == NO_REFERENCES and self.references != "none":
            raise ConfigError(f"{self.system} takes no references, so it has no arm {self.references!r}; say 'none'.")
        if entry.references == NEEDS and self.references == "none":
            raise ConfigError(f"{self.system} cannot do without references; say 'right' or 'wrong'.")

    def __str__(self) -> str:
        """The system's name; then a comma and whose references, for systems that can take any."""
        entry = SYSTEMS.get(self.system)
        can = self.references != "none" or (entry is not None and entry.references != NO_REFERENCES)
        return f"{self.system}, {self.references}" if can else self.system


@dataclass(frozen=True)
class SystemEntry:
    """One restoration system.

    Attributes:
        name: as in `refbfr_core.benchmark.published`.
        what: one line.
        references: "none", "takes" (works without, too) or "needs".
        page: where its authors publish it; the paper's page where they publish no code.
        licence: what the owners allow, in their words' sense; "not stated" where nothing says so.
        run: "pipeline" (of this package), "file" (its authors' weights through spandrel) or "folder".
        reason: why it is only scored from a folder, or on one profile; "" otherwise.
        assets: names in `refbfr_core.weights.ASSETS` of the files it needs on the paper profile, the first of them its
            network for "file".
        pipeline: name in `refbfr_core.pipelines.PIPELINES`; "" for none.
        profiles: where it runs here: "toy", "paper", both or none.
        note: what to know before comparing it.
    """

    name: str
    what: str
    references: str
    page: str
    licence: str
    run: str
    reason: str = ""
    assets: tuple[str, ...] = ()
    pipeline: str = ""
    profiles: tuple[str, ...] = ()
    note: str = ""

    @property
    def toy(self) -> bool:
        """Whether it runs on drawn faces with the networks that ship."""
        return "toy" in self.profiles

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm it can have, the one without references first."""
        kinds = {NO_REFERENCES: ("none",), TAKES: ("none", "right", "wrong"), NEEDS: ("right", "wrong")}
        return tuple(Arm(self.name, kind) for kind in kinds[self.references])


_GITHUB = "https://github.com/"
_S_LAB = "S-Lab License 1.0, non-commercial"
_NC = "CC BY-NC-SA 4.0, non-commercial"
_APACHE = "Apache-2.0"
_EXCEPTIONS = "Apache-2.0 with listed exceptions"
_BOTH = ("toy", "paper")
_OWN_CODE = "its own code and environment; no library that this package uses has its architecture"

_ENTRIES = (
    SystemEntry(
        INPUT, "the degraded picture itself", NO_REFERENCES, "", "-", PIPELINE, profiles=_BOTH,
        note="on photographs as the data set gives it, resized to the aligned size",
    ),
    SystemEntry(
        COARSE, "the small regression network that ships, f of the toy PDGrad", NO_REFERENCES, "",
        "that of this package", PIPELINE, profiles=("toy",),
        reason="no paper has it; on photographs CodeFormer takes its place",
    ),
    SystemEntry(
        "ReF-LDM", "latent diffusion conditioned on the degraded picture, with keys and values of references", TAKES,
        f"{_GITHUB}ChiWeiHsiao/ref-ldm", "non-commercial research only", PIPELINE,
        assets=("refldm", "refldm-vqgan"), pipeline="refldm", profiles=_BOTH,
        note="paper profile: sampled as the paper evaluates, 100 uniform DDIM steps, guidance 1.5, one start noise",
    ),
    SystemEntry(
        "LDM", "ReF-LDM's latent diffusion before references were added", NO_REFERENCES,
        f"{_GITHUB}ChiWeiHsiao/ref-ldm", "non-commercial research only", PIPELINE, pipeline="refldm", profiles=("toy",),
        reason="the release has its configuration but no checkpoint (ldm.ckpt)",
        note="on drawn faces the ReF-LDM network called without references: no separate LDM was trained",
    ),
    SystemEntry(
        "PDGrad", "guided diffusion, conflicting gradients of coarse picture and reference projected and capped", TAKES,
        "https://www.mdpi.com/1424-8220/24/22/7112", "no code released; article CC BY", PIPELINE,
        assets=("difface-diffusion", "codeformer", "insightface-buffalo_l"), pipeline="pdgrad", profiles=_BOTH,
        note="without references the coarse picture alone guides (A5 of its Table 6)",
    ),
    SystemEntry(
        "PGDiff", "guided diffusion from pure noise, sums of squares to a coarse picture and a reference", TAKES,
        f"{_GITHUB}pq-yang/PGDiff", _S_LAB, PIPELINE,
        assets=("difface-diffusion", "codeformer", "insightface-buffalo_l"), pipeline="pgdiff", profiles=_BOTH,
        note="with a coarse restorer, as PDGrad describes it, not with its authors' restorer of every step",
    ),
    SystemEntry(
        "DifFace", "a coarse restoration diffused part-way and denoised", NO_REFERENCES,
        f"{_GITHUB}zsyOAOA/DifFace", _S_LAB, PIPELINE,
        assets=("difface-diffusion", "difface-swinir"), pipeline="difface", profiles=_BOTH,
    ),
    SystemEntry(
        "LD-BFR", "codes of clean faces restore features, a latent diffusion renders them", NO_REFERENCES,
        f"{_GITHUB}YuzhenD/LD-BFR", "no licence file found", PIPELINE, pipeline="ldbfr", profiles=_BOTH,
        note="no weights were released: on photographs only one's own training can run",
    ),
    SystemEntry(
        "DiffMAC", "two modulated diffusions with an information bottleneck between them", TAKES,
        "https://arxiv.org/abs/2403.10098", "no code released", PIPELINE, assets=("stable-diffusion-2-1-base",),
        pipeline="diffmac", profiles=_BOTH,
        note="the papers' rows are without references, with the identity of its own first stage; no weights were "
        "released: on photographs only one's own training can run",
    ),
    SystemEntry(
        "CodeFormer", "a transformer predicts codes of a face codebook", NO_REFERENCES,
        f"{_GITHUB}sczhou/CodeFormer", _S_LAB, FILE, assets=("codeformer",), profiles=("paper",),
        note="w = 0.5, its authors' default; none of the papers states theirs",
    ),
    SystemEntry(
        "GFPGAN", "a StyleGAN2 prior with channel-split feature modulation", NO_REFERENCES,
        f"{_GITHUB}TencentARC/GFPGAN", _EXCEPTIONS, FILE, assets=("gfpgan",), profiles=("paper",),
        note="version 1.4 (spandrel reads 1.2 to 1.4, not the paper's model); the papers do not name theirs",
    ),
    SystemEntry(
        "RestoreFormer", "attention over a dictionary of clean faces", NO_REFERENCES,
        f"{_GITHUB}wzhouxiff/RestoreFormerPlusPlus", _APACHE, FILE, assets=("restoreformer",), profiles=("paper",),
        note="the first version, in no table of the four papers; PDGrad compares with RestoreFormer++",
    ),
    SystemEntry(
        "FeMaSR", "general super-resolution by matching features of a codebook", NO_REFERENCES,
        f"{_GITHUB}chaofengc/FeMaSR", _NC, FILE, assets=("femasr-x4",), profiles=("paper",),
        note="enlarges 4 times, and no paper says how 512 px went in and came out: here the picture is reduced to a "
        "quarter first; build_restorer(..., resize='after') enlarges first and reduces the result",
    ),
    SystemEntry(
        "RestoreFormer++", "RestoreFormer with several scales", NO_REFERENCES,
        f"{_GITHUB}wzhouxiff/RestoreFormerPlusPlus", _APACHE, FOLDER,
        reason="spandrel reads the first RestoreFormer only", assets=("restoreformer++",),
    ),
    SystemEntry(
        "VQFR", "codebook of clean faces, parallel decoders for texture and content", NO_REFERENCES,
        f"{_GITHUB}TencentARC/VQFR", _EXCEPTIONS, FOLDER, reason=_OWN_CODE, assets=("vqfr-v1",),
        note="the papers do not say whether version 1 or 2",
    ),
    SystemEntry(
        "DAEFR", "associated encoders of clean and degraded faces with a codebook", NO_REFERENCES,
        f"{_GITHUB}LIAGM/DAEFR", "no licence file found", FOLDER, reason=_OWN_CODE,
        assets=("daefr", "daefr-hq-codebook", "daefr-lq-codebook", "daefr-association"),
    ),
    SystemEntry(
        "DMDNet", "generic and personal memory dictionaries of face parts", TAKES,
        f"{_GITHUB}csxmli2016/DMDNet", _NC, FOLDER, assets=("dmdnet",),
        reason="its own code, and landmarks of input and references, whose detection fails for part of the pictures",
        note="ReF-LDM leaves out 214 of 857, 29 of 857 and 488 of 2533 pictures; here a missing one is a failure",
    ),
    SystemEntry(
        "ASFFNet", "adaptive fusion of the best of several references", NEEDS,
        f"{_GITHUB}csxmli2016/ASFFNet", _NC, FOLDER, assets=("asffnet",),
        reason="its own code, and landmarks of input and references",
        note="its authors publish a version for 512 px (ASFFNet512), not the paper's for 256",
    ),
    SystemEntry(
        "PMRF", "a posterior mean transported by a rectified flow", NO_REFERENCES,
        f"{_GITHUB}ohayonguy/PMRF", "MIT (it builds on DifFace's SwinIR weights)", FOLDER, reason=_OWN_CODE,
        assets=("pmrf",),
    ),
    SystemEntry(
        "DFDNet", "dictionaries of face components of other people", NO_REFERENCES,
        f"{_GITHUB}csxmli2016/DFDNet", _NC, FOLDER, reason="its own code, and landmarks",
        assets=("dfdnet", "dfdnet-vgg19", "dfdnet-dictionary"),
    ),
    SystemEntry(
        "GPEN", "an encoder that drives a StyleGAN2 prior", NO_REFERENCES,
        f"{_GITHUB}yangxy/GPEN", "academic, non-commercial", FOLDER, reason=_OWN_CODE, assets=("gpen-512",),
        note="the papers do not say whether the 512 or the 256 model",
    ),
    SystemEntry(
        "DR2+SPAR", "a diffusion removes the degradation at 256 px, a second network enhances", NO_REFERENCES,
        f"{_GITHUB}Kaldwin0106/DR2_Drgradation_Remover", "MIT", FOLDER, assets=("dr2", "sparnethd"),
        reason="its own code; weights on Baidu only; parameters are chosen by hand for each degradation",
    ),
    SystemEntry(
        "DiffBIR", "a SwinIR restorer, then a controlled Stable Diffusion 2.1", NO_REFERENCES,
        f"{_GITHUB}XPixelGroup/DiffBIR", "Apache-2.0 code; Stable Diffusion weights under their own", FOLDER,
        reason="its own code: its control network has another layout than diffusers'",
        assets=("diffbir-v1-face", "diffbir-swinir", "stable-diffusion-2-1-base"),
    ),
)  # fmt: skip

SYSTEMS: Mapping[str, SystemEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every system by its name in `refbfr_core.benchmark.published`; read-only."""

ALIASES: Mapping[str, str] = MappingProxyType({"ASSFNet": "ASFFNet"})
"""Other spellings in the papers."""


def system_entry(name: str) -> SystemEntry:
    """The system called `name`; raises `UnknownNameError` that names the nearest known one."""
    name = ALIASES.get(name, name)
    if name not in SYSTEMS:
        raise unknown_name("system", name, SYSTEMS)
    return SYSTEMS[name]


def toy_arms() -> tuple[Arm, ...]:
    """Every method that runs on drawn faces, with the right references, wrong ones and none where it can take them.

    "ReF-LDM, none" is left out: on drawn faces it is the same as "LDM".
    """
    arms = [arm for entry in SYSTEMS.values() if entry.toy for arm in entry.arms]
    return tuple(arm for arm in arms if arm != Arm("ReF-LDM"))


def parse_arm(text: str) -> Arm:
    """The arm that is written like `str(arm)`: a name, and after a last comma "right", "wrong" or "none".

    Raises as `Arm`.
    """
    system, comma, kind = text.rpartition(",")
    if comma and kind.strip() in REFERENCES:
        return Arm(system.strip(), kind.strip())
    return Arm(text.strip())


def where_it_runs(systems: Sequence[str] | None = None) -> list[dict[str, str]]:
    """One plain row a system: "system", "references", "here", "reason", "licence", "page", for printing.

    Raises:
        UnknownNameError: another system.
    """
    here = {PIPELINE: "runs", FILE: "runs from its authors' file", FOLDER: "scored from a folder"}
    rows = []
    for name in SYSTEMS if systems is None else systems:
        entry = system_entry(name)
        where = here[entry.run] if entry.run == FOLDER else f"{here[entry.run]} ({', '.join(entry.profiles)})"
        reason = "; ".join(filter(None, (entry.reason, entry.note)))
        rows.append(
            {
                "system": entry.name,
                "references": entry.references,
                "here": where,
                "reason": reason,
                "licence": entry.licence,
                "page": entry.page,
            }
        )
    return rows
