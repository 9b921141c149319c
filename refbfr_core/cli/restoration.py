"""What `refbfr restore` does: pictures from files, aligned, restored, and written with what made them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refbfr_core.errors import ConfigError, OutputError, RefbfrError
from refbfr_core.files import atomic_path, write_text

if TYPE_CHECKING:
    import torch

    from refbfr_core.faces.photos import Aligned, PhotoAligner

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture file, read and brought to the size the networks work at.

    photo: (1, 3, H, W) as it is in the file. face: the crop, with its matrix and points. digest: SHA-256 of the file.
    """

    path: Path
    photo: torch.Tensor
    face: Aligned
    digest: str
    remarks: tuple[str, ...] = ()

    @property
    def image(self) -> torch.Tensor:
        """The crop, (1, 3, R, R) in [0, 1]."""
        return self.face.image

    def record(self) -> dict[str, Any]:
        """What the sidecar says about this file. Only its name: folders are private and differ between machines."""
        face = self.face
        detected = None
        if face.points is not None and face.box is not None:
            box = {"points": face.points.tolist(), "box": face.box.tolist()}
            detected = {**box, "score": face.score, "faces_found": len(face.faces)}
        return {
            "file": self.path.name,
            "sha256": self.digest,
            "width": self.photo.shape[-1],
            "height": self.photo.shape[-2],
            "photo_to_crop": face.matrix.tolist(),
            "detected": detected,
        }


@dataclass
class Reader:
    """Reads picture files and brings each to `resolution` pixels: by finding the face with `aligner`, or by resizing.

    `choose` says which of several faces of a photo to take. Every remark a reader of the result should know goes to
    `note`.
    """

    resolution: int
    aligner: PhotoAligner | None
    choose: str | int = "largest"
    note: Callable[[str], None] = field(default=lambda text: None)

    def read(self, path: Path) -> Picture:
        """Read one file. Raises ImageFileError, NoFaceError, or ImageContractError for a crop that is not square."""
        from refbfr_core.faces.photos import SeveralFacesWarning, keep_crop
        from refbfr_core.images import read_image

        photo = read_image(path)
        height, width = photo.shape[-2:]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SeveralFacesWarning)
            try:
                if self.aligner is not None:
                    face = self.aligner.align(photo, self.resolution, choose=self.choose)
                else:
                    face = keep_crop(photo, self.resolution)
            except RefbfrError as error:
                # The geometry knows pixels, not files; somebody with five files needs the name. The class stays.
                raise type(error)(f"{path}: {error}") from error
        remarks = []
        for entry in caught:
            if issubclass(entry.category, SeveralFacesWarning):
                remarks.append(str(entry.message))
            else:  # somebody else's warning goes on to whoever listens
                warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
        if self.aligner is None and height != self.resolution:
            remarks.append(
                f"resized from {width}x{height} to {self.resolution}x{self.resolution}, the size the networks work at."
            )
        for remark in remarks:
            self.note(f"{path}: {remark}")
        return Picture(path, photo, face, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(remarks))


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """Return `paths`, each folder replaced by the pictures in it by name. Raises ConfigError for an empty folder."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(
            file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not inside:
            raise ConfigError(
                f"the folder {path} holds no PNG, JPEG or WebP picture; name one that does, or the files themselves."
            )
        files += inside
    return files


def plan_outputs(inputs: Sequence[Path], out: Path, others: Sequence[Path] = ()) -> list[Path]:
    """Return the file each of `inputs` is restored into.

    `out` with a picture suffix is the file itself and takes one input; otherwise it is a folder, and a result is named
    after its input. `others` are more files that must survive. Raises ConfigError before any work when names clash or a
    result would replace an input.
    """
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        if len(inputs) > 1:
            raise ConfigError(f"{len(inputs)} pictures cannot all become {out}; give a folder as --out.")
        planned = [out]
    elif out.suffix and not out.is_dir():
        raise ConfigError(f"--out {out}: {out.suffix!r} is no picture suffix; use {', '.join(SUFFIXES)}, or a folder.")
    else:
        planned = [out / f"{path.stem}_restored.png" for path in inputs]
    if len(set(planned)) < len(planned):
        raise ConfigError(
            "two pictures have the same name and would share one result; restore them into different folders."
        )
    kept = {path.resolve() for path in (*inputs, *others)}
    for path in planned:
        if path.resolve() in kept:
            raise ConfigError(f"{path} is one of the inputs and would be replaced; choose another --out.")
        if path.is_dir():
            raise OutputError(f"{path} is a folder, a file is to be written there; choose another --out.")
    return planned


def check_no_leak(pictures: Sequence[Picture], references: Sequence[Picture], target: Picture | None) -> None:
    """Refuse a target that is among the references: the score would only say that copying works. Raises ConfigError."""
    known = {reference.digest: reference for reference in references}
    if target is not None and target.digest in known:
        raise ConfigError(
            f"the target {target.path} is also a reference ({known[target.digest].path}); a score against it would "
            "mean nothing. Leave one of them out."
        )
    for picture in pictures:
        if picture.digest in known:
            raise ConfigError(
                f"{picture.path} is also a reference ({known[picture.digest].path}); leave it out with --ref."
            )


def restore_one(
    pipe: Any,
    picture: Picture,
    references: Sequence[Picture],
    *,
    steps: int | None,
    guidance: float | None,
    seed: int,
    coarse: str | None = None,
    share: float | None = None,
    blend: float | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Restore one picture alone, so that it comes out the same whatever else is restored in the same run.

    Returns the restoration, (1, 3, R, R) in [0, 1] on the CPU, and the pipeline's settings as plain values. An option
    that the method does not have is a ConfigError.
    """
    import torch

    stacked = torch.cat([reference.image for reference in references])[None].to(pipe.device) if references else None
    known = inspect.signature(type(pipe).__call__).parameters
    # ReF-LDM's scale extrapolates between two predictions, PDGrad's and PGDiff's multiplies a gradient.
    strength = "guidance_scale" if "guidance_scale" in known else "scale"
    given = {}
    for option, name, value in (
        ("steps", "num_inference_steps", steps), ("guidance", strength, guidance), ("coarse", "coarse", coarse),
        ("lambda", "share", share), ("blend", "blend", blend),
    ):  # fmt: skip
        if value is None:
            continue
        if name not in known:
            raise ConfigError(f"{type(pipe).__name__} has no --{option}; leave it out.")
        given[name] = value
    if blend is not None and not references:
        raise ConfigError("--blend goes from the restoration's own identity to that of references; it needs --ref.")
    result = pipe(picture.image.to(pipe.device), stacked, seed=seed, **given)
    settings = result.settings
    return result.images.cpu(), dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else dict(settings)


def write_result(path: Path, image: torch.Tensor, record: dict[str, Any]) -> Path:
    """Write the picture and beside it the JSON that says what made it, both or neither; return the path of the JSON."""
    from refbfr_core.images import write_image

    sidecar = path.with_suffix(".json")
    # The JSON is put in place while the picture still has its temporary name: nobody ever sees a picture without
    # provenance.
    with atomic_path(path) as temporary:
        write_image(temporary, image)
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        result = {"file": path.name, "sha256": digest, "width": image.shape[-1], "height": image.shape[-2]}
        text = json.dumps({"format": 1, "result": result, **record}, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(sidecar, text + "\n")
    return sidecar


def whole_photo(picture: Picture, restored: torch.Tensor) -> torch.Tensor:
    """Return the photo with the restored face put back in its place, (1, 3, H, W)."""
    from refbfr_core.faces.alignment import paste_back

    return paste_back(picture.photo, restored, picture.face.matrix)
