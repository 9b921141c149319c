"""From the authors' files to networks in the user's own folder: once, checked, and whole or not at all.

The files are told apart by what is in them, not by their names. What each holds becomes a folder as every network here
has one (`refbfr_core.weights.store`), in float32, whose card says which file it came from, with its SHA-256, and under
which licence. A second call finds what a first one finished and goes on with the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.errors import DiskFullError, WeightsError
from refbfr_core.processes import alone_in
from refbfr_core.weights import published_ldbfr, stable_diffusion
from refbfr_core.weights.diffusers_folder import FolderKind
from refbfr_core.weights.places import published_root
from refbfr_core.weights.published_adm import DIFFACE_UNET, looks_like_adm, read_adm
from refbfr_core.weights.published_arcface import looks_like_arcface, read_arcface
from refbfr_core.weights.published_files import file_digest, read_checkpoint, tensors_of
from refbfr_core.weights.published_ldbfr import LDM_LAYOUT, looks_like_ldm, read_ldm_unet, read_ldm_vq
from refbfr_core.weights.published_ldm import (
    REFLDM_LAYOUT,
    Converted,
    ReleasedLayout,
    looks_like_refldm,
    looks_like_vqgan,
    read_refldm,
    read_vqgan,
)
from refbfr_core.weights.registry import NETWORKS
from refbfr_core.weights.sources import PublishedFile
from refbfr_core.weights.stable_diffusion import SD21_LAYOUT, StableDiffusionLayout
from refbfr_core.weights.store import read_card, save_network, verify_network

_READERS: dict[str, tuple[Callable[[dict[str, Tensor]], bool], Callable[[dict[str, Tensor], Any], Converted]]] = {
    "refldm-vq": (looks_like_vqgan, read_vqgan),
    "refldm-unet": (lambda state: looks_like_refldm(state) and not looks_like_ldm(state), read_refldm),
    "pdgrad-unet": (looks_like_adm, read_adm),
    "arcface": (looks_like_arcface, read_arcface),
    "ldbfr-unet": (looks_like_ldm, read_ldm_unet),
    "ldbfr-vqo": (looks_like_ldm, read_ldm_vq),
}
# Asked in this order: both have a folder `unet`.
_FOLDERS: tuple[FolderKind, ...] = (stable_diffusion.FOLDER, published_ldbfr.FOLDER)
_REFLDM = ("refldm-unet", "refldm-vq")
_PROFILE = "paper"
# Room for the configuration, the cards and the file system's own needs.
_SPARE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Imported:
    """A network in the user's folder: `fresh` if this call wrote it, else it was there already from the same file."""

    name: str
    folder: Path
    source: Path
    fresh: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A network in a file that has been recognised: `converted` is None when it is in the folder already.

    `given` is what the caller named: the file at `path` itself, or a folder around it.
    """

    name: str
    path: Path
    sha256: str
    first_stage: str | None
    converted: Converted | None
    given: Path
    published: PublishedFile


def import_published(
    files: Sequence[str | Path],
    *,
    accept: Callable[[PublishedFile], bool],
    root: str | Path | None = None,
    replace: bool = False,
    layout: ReleasedLayout = REFLDM_LAYOUT,
    pixel_unet: Mapping[str, Any] = DIFFACE_UNET,
    ldm: ReleasedLayout = LDM_LAYOUT,
    text_to_image: StableDiffusionLayout = SD21_LAYOUT,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Imported]:
    """Convert authors' files, as downloaded, into networks that `load_network(name, profile="paper")` finds.

    Parameters
    ----------
    files : `refldm.ckpt`, `vqgan.ckpt`, `iddpm_ffhq512_ema500000.pth`, `ms1mv3_arcface_r50_fp16.pth` (or another
        IResNet of arcface_torch), `model.ckpt` of the FFHQ latent diffusion, a folder such as `ldm-celebahq-256` or
        `stable-diffusion-2-1-base`; one or more of them, under any name.
    accept : called once for each licence with the registry's entry, before anything is written; False stops.
    root : folder for the networks; default `published_root()`.
    replace : put the networks in the place of others that came from other files.
    layout, pixel_unet, ldm, text_to_image : the configurations that ReF-LDM's files, DifFace's file, the latent
        diffusion of faces and Stable Diffusion must have.
    tell : called with a line about every stage.

    Returns
    -------
    One `Imported` a network, in the order of the files: the latent diffusion of faces has two, Stable Diffusion three.

    Raises
    ------
    WeightsError : a file is damaged, malicious, not one of these, does not belong to the other one, is not the one
        imported before, or its licence was not accepted. DiskFullError, OutputError : the folder cannot be written to.
    Nothing half-written is kept, whatever happens.
    """
    folder = Path(root) if root is not None else published_root(_PROFILE)
    with _alone_in(folder):
        layouts = dict.fromkeys(_READERS, layout) | {"pdgrad-unet": pixel_unet}
        layouts |= dict.fromkeys(published_ldbfr.FOLDER.parts, ldm)
        layouts |= dict.fromkeys(stable_diffusion.FOLDER.parts, text_to_image)
        found = [_recognise(Path(path), folder, layouts, tell) for path in files]
        candidates = [candidate for several in found for candidate in several]
        _check_pinned(candidates, folder, replace)
        _check_belong_together(candidates, folder)
        pages: set[tuple[str, str]] = set()
        for candidate in candidates:
            published = candidate.published
            if (key := (published.page, published.licence)) in pages or candidate.converted is None:
                continue
            pages.add(key)
            if not accept(published):
                raise WeightsError(
                    f"the licence of {published.filename} ({published.licence}, {published.page}) was not accepted, "
                    "so nothing was imported."
                )
        _check_room(candidates, folder)
        return [_write(candidate, folder, tell) for candidate in candidates]


def imported_from(name: str, root: str | Path | None = None) -> dict[str, Any] | None:
    """What the card of an imported network says about its file (file, bytes, sha256, page, url, first_stage_sha256).

    None when there is no such network; one that is there but has no readable card counts as none.
    """
    folder = (Path(root) if root is not None else published_root(_PROFILE)) / name
    try:
        source = read_card(folder)["card"].get("source")
    except WeightsError:
        return None
    return source if isinstance(source, dict) else None


def _recognise(path: Path, folder: Path, layouts: Mapping[str, Any], tell: Callable[[str], None]) -> list[_Candidate]:
    """Reads a file and makes its networks, unless that was done before."""
    for kind in _FOLDERS:
        if any((path / part).is_dir() for part in kind.known_by):
            return _recognise_folder(path, folder, kind, layouts, tell)
    sha256 = file_digest(path)
    before = [done for name in _READERS if (done := _done_before(name, path, path, sha256, folder)) is not None]
    if before and {done.name for done in before} >= _made_of(before[0].published):
        tell(f"{path}: imported before as {', '.join(done.name for done in before)}")
        return before
    tell(f"{path}: reading, SHA-256 {sha256}")
    state = tensors_of(read_checkpoint(path), path)
    names = [name for name, (recognises, _) in _READERS.items() if recognises(state)]
    if not names:
        known = ", ".join(dict.fromkeys(NETWORKS[name].published[_PROFILE].filename for name in _READERS))
        raise WeightsError(
            f"{path} is none of the files this package can import ({known}): its first tensor is {next(iter(state))!r}."
        )
    tell(f"{path}: {len(state)} tensors, becomes {' and '.join(names)}")
    candidates = []
    for name in names:
        try:
            converted = _READERS[name][1](state, layouts[name])
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        published = NETWORKS[name].published[_PROFILE]
        candidates.append(_Candidate(name, path, sha256, converted.first_stage, converted, path, published))
    return candidates


def _recognise_folder(
    path: Path, folder: Path, kind: FolderKind, layouts: Mapping[str, Any], tell: Callable[[str], None]
) -> list[_Candidate]:
    """Reads a folder in the diffusers layout and makes its networks, unless that was done before."""
    files = {name: kind.file(path, part) for name, part in kind.parts.items()}
    digests = {name: file_digest(file) for name, file in files.items()}
    before = [_done_before(name, files[name], path, digests[name], folder) for name in kind.parts]
    if all(before):
        tell(f"{path}: imported before as {', '.join(kind.parts)}")
        return [done for done in before if done is not None]
    tell(f"{path}: reading a folder in the diffusers layout, becomes {' and '.join(kind.parts)}")
    by_part = {part: digests[name] for name, part in kind.parts.items()}
    made = kind.read(path, layouts[next(iter(kind.parts))], by_part)
    return [
        _Candidate(name, files[name], digests[name], made[name].first_stage, made[name], path, kind.published)
        for name in kind.parts
    ]


def _done_before(name: str, path: Path, given: Path, sha256: str, folder: Path) -> _Candidate | None:
    """The network `name` if it is in the folder, whole, and came from a file with this digest."""
    source = imported_from(name, folder)
    if source is None or source.get("sha256") != sha256 or not _is_whole(folder / name):
        return None
    return _Candidate(
        name, path, sha256, source.get("first_stage_sha256"), None, given, NETWORKS[name].published[_PROFILE]
    )


def _made_of(published: PublishedFile) -> set[str]:
    """The networks that one file gives."""
    return {name for name in _READERS if NETWORKS[name].published[_PROFILE] == published}


def _is_whole(folder: Path) -> bool:
    try:
        verify_network(folder)
    except WeightsError:
        return False
    return True


def _check_pinned(candidates: Sequence[_Candidate], folder: Path, replace: bool) -> None:
    """One file a network, the one the registry knows if it knows one, and the one imported first."""
    names = [candidate.name for candidate in candidates]
    for candidate in candidates:
        if names.count(candidate.name) > 1:
            paths = ", ".join(str(other.given) for other in candidates if other.name == candidate.name)
            raise WeightsError(f"several files hold {candidate.name} ({paths}); give one of them.")
        known = candidate.published.sha256
        if known is not None and candidate.sha256 != known:
            raise WeightsError(
                f"{candidate.path} has SHA-256 {candidate.sha256}, the released file has {known}. Download it again."
            )
        before = imported_from(candidate.name, folder)
        if candidate.converted is not None and before is not None and before.get("sha256") != candidate.sha256:
            if replace:
                continue
            raise WeightsError(
                f"{candidate.path} (SHA-256 {candidate.sha256[:12]}…) is not the file that {candidate.name} was "
                f"imported from ({before.get('file')}, SHA-256 {str(before.get('sha256'))[:12]}…). If it is the right "
                "one, import it with --replace."
            )


def _check_belong_together(candidates: Sequence[_Candidate], folder: Path) -> None:
    """The VQGAN inside `refldm.ckpt` must be that of `vqgan.ckpt`, whether both come now or one is there already."""
    stages = {candidate.name: candidate.first_stage for candidate in candidates if candidate.name in _REFLDM}
    for name in _REFLDM:
        if name not in stages:
            stages[name] = (imported_from(name, folder) or {}).get("first_stage_sha256")
    different = {digest for digest in stages.values() if digest is not None}
    if len(different) > 1:
        raise WeightsError(
            "the VQGAN inside refldm.ckpt is not the one of vqgan.ckpt: the two files are from different trainings, "
            "and their latents do not fit. Download both from the same release and import them together"
            f"{'' if len(candidates) > 1 else ' with --replace'}."
        )


def _check_room(candidates: Sequence[_Candidate], folder: Path) -> None:
    """Says that the disk is too full before minutes of writing, not after."""
    needed = sum(
        4 * sum(parameter.numel() for parameter in candidate.converted.network.parameters())
        for candidate in candidates
        if candidate.converted is not None
    )
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise DiskFullError(
            f"cannot write the networks to {folder}: they need {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are "
            "free. Free some space, or name another folder in REFBFR_WEIGHTS. Nothing was written."
        )


def _write(candidate: _Candidate, folder: Path, tell: Callable[[str], None]) -> Imported:
    target, converted = folder / candidate.name, candidate.converted
    if converted is None:
        return Imported(candidate.name, target, candidate.given, False, ())
    save_network(converted.network, candidate.name, folder, _card(candidate, converted), torch.float32, shippable=False)
    tell(f"{candidate.name}: written to {target}")
    return Imported(candidate.name, target, candidate.given, True, converted.remarks)


def _card(candidate: _Candidate, converted: Converted) -> dict[str, Any]:
    entry, published = NETWORKS[candidate.name], candidate.published
    weights = {None: "as in the file", True: "averaged (EMA), as the authors use them", False: "not averaged"}
    file = candidate.path.name
    if candidate.given != candidate.path:
        file = f"{published.filename}/{candidate.path.relative_to(candidate.given).as_posix()}"
    card: dict[str, Any] = {
        "summary": f"{entry.purpose}; its authors' weights, converted from {published.filename}",
        "training_data": f"photographs, by its authors: {published.page}",
        "recipe": {
            "trained by": "its authors",
            "converted by": f"refbfr weights import: {converted.how}",
            "weights": weights[converted.averaged],
        },
        "remarks": list(converted.remarks),
        "source": {
            "file": file,
            "bytes": candidate.path.stat().st_size,
            "sha256": candidate.sha256,
            "page": published.page,
            "url": published.url,
            "averaged": converted.averaged,
            "first_stage_sha256": converted.first_stage,
        },
        "licence": f"{published.licence}; {published.page}",
    }
    return card | ({"limits": published.note} if published.note else {})


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Runs a block as the only import into `folder`, and first removes what a killed import left half-written."""
    with alone_in(folder, ".import.lock", "import is running into"):
        for name in (*_READERS, *stable_diffusion.FOLDER.parts):
            for left in (*folder.glob(f".{name}.partial-*"), *folder.glob(f".{name}.old-*")):
                shutil.rmtree(left, ignore_errors=True)
        yield
