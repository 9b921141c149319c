"""Photographs: finding faces, aligning them like FFHQ, and telling whether two pictures show the same person.

The networks for this come from InsightFace as a *pack*, a folder with ONNX files for detection (box and five points)
and recognition (an identity vector). No pack ships here and none is ever fetched: the files are looked for first, and
where they are missing an error says what to get and where to put it. The geometry is `refbfr_core.faces.alignment`.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refbfr_core.errors import ImageContractError, RefbfrError, WeightsError, missing_extra, unknown_name
from refbfr_core.faces.alignment import cut_crop, fit_similarity, resize_crop, resize_matrix, template_points
from refbfr_core.images import check_images, to_uint8

ROOT_VARIABLE = "REFBFR_INSIGHTFACE_ROOT"
PREFERRED_PACKS = ("buffalo_l", "antelopev2")
LICENCE_NOTE = "InsightFace's code is MIT, its model packs are for non-commercial research only; read their licence."
HOW_TO_GET = (
    "Download a pack (for example buffalo_l) from the model zoo of the InsightFace project, unpack it to "
    f"<root>/models/<pack>/*.onnx, and name the root with --models PATH or the environment variable {ROOT_VARIABLE}. "
    f"{LICENCE_NOTE}"
)


class NoFaceError(RefbfrError, ValueError):
    """No face was found in a photograph."""


class SeveralFacesWarning(UserWarning):
    """A photograph shows several faces and one of them was taken."""


@dataclass(frozen=True)
class FoundFace:
    """One detected face; everything in pixels of the photo it was found in.

    box: (4,) float32, x1 y1 x2 y2. points: (5, 2) float32, x y of left eye, right eye, nose, left and right mouth
    corner as seen in the picture. score: the detector's confidence in [0, 1].
    """

    box: np.ndarray
    points: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float(max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1]))

    def __str__(self) -> str:
        x1, y1, x2, y2 = (round(float(value)) for value in self.box)
        return f"{x2 - x1}x{y2 - y1} pixels at ({x1}, {y1}), score {self.score:.2f}"


@dataclass(frozen=True)
class Aligned:
    """A face cut out of a photo.

    image: (1, 3, R, R) float32 in [0, 1]. matrix: (2, 3) float64, photo pixels -> crop pixels; `paste_back` takes it
    for the way back. points, box, score: of the face taken, in photo pixels (None where no detector ran). faces: every
    face found, best choice first.
    """

    image: torch.Tensor
    matrix: np.ndarray
    points: np.ndarray | None = None
    box: np.ndarray | None = None
    score: float | None = None
    faces: tuple[FoundFace, ...] = ()


def keep_crop(image: torch.Tensor, resolution: int) -> Aligned:
    """Take a picture that is an aligned crop already: only resize it, look for no face, need no pack.

    `image` is (1, 3, S, S) in [0, 1]. Raises ImageContractError when it is not square.
    """
    return Aligned(resize_crop(image, resolution), resize_matrix(image.shape[-1], resolution))


def models_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder packs are looked for in: `root`, else $REFBFR_INSIGHTFACE_ROOT, else ~/.insightface as
    InsightFace does.
    """
    chosen = root or os.environ.get(ROOT_VARIABLE) or "~/.insightface"
    return Path(chosen).expanduser()


def find_packs(root: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Return the packs that lie under `root` by name: folders that hold ONNX files. Never touches the network.

    `root` may be InsightFace's root (with models/<pack>), its models folder, or one pack itself. Some packs unpack into
    a folder of their own name inside another; that is found as well.
    """
    base = models_root(root)
    packs: dict[str, Path] = {}
    for pattern in (".", "*", "models/*", "models/*/*"):
        for folder in sorted(base.glob(pattern)) if pattern != "." else [base]:
            if folder.is_dir() and any(folder.glob("*.onnx")):
                packs.setdefault(folder.resolve().name, folder)
    return packs


def choose_pack(root: str | os.PathLike[str] | None = None, name: str | None = None) -> Path:
    """Return the folder of the pack `name`; without a name the only one there is, or a well-known one among several.

    Raises WeightsError when there is none (saying what to fetch and where to put it), UnknownNameError for a name that
    is not there, WeightsError when several unknown ones leave the choice open.
    """
    packs = find_packs(root)
    if not packs:
        raise WeightsError(f"no InsightFace model pack under {models_root(root)}. {HOW_TO_GET}")
    if name is not None:
        if name not in packs:
            raise unknown_name("InsightFace model pack", name, packs)
        return packs[name]
    for preferred in PREFERRED_PACKS:
        if preferred in packs:
            return packs[preferred]
    if len(packs) > 1:
        raise WeightsError(
            f"several model packs under {models_root(root)}: {', '.join(packs)}; name one, or give its own folder as "
            "--models PATH."
        )
    return next(iter(packs.values()))


class PhotoAligner:
    """Detector, aligner and identity network for photographs, from one InsightFace pack on disk.

    Parameters
    ----------
    root, name : where the pack lies and what it is called, see `choose_pack`.
    detection_size : side in pixels of the square the photo is fitted into for detection. 512 suits aligned crops;
        another size moves the points by a few pixels, so keep it fixed within a study.
    threshold : lowest detector score in [0, 1] that counts as a face.
    providers : ONNX Runtime execution providers; the CPU by default, for equal results everywhere.

    Raises MissingExtraError without insightface, WeightsError for a missing, incomplete or damaged pack. Opens no
    network connection.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        name: str | None = None,
        *,
        detection_size: int = 512,
        threshold: float = 0.5,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        # Files first: a reader without the pack should hear about the pack, whatever else is missing.
        self.folder = choose_pack(root, name)
        self.detection_size = detection_size
        self.threshold = threshold
        models = _load_models(self.folder, providers)
        if "detection" not in models:
            raise WeightsError(f"the pack in {self.folder} has no face detector. {HOW_TO_GET}")
        context = -1 if providers == ("CPUExecutionProvider",) else 0
        self._detector = models["detection"]
        self._detector.prepare(context, input_size=(detection_size, detection_size), det_thresh=threshold)
        self._recogniser = models.get("recognition")
        if self._recogniser is not None:
            self._recogniser.prepare(context)

    @property
    def has_identity(self) -> bool:
        """Whether the pack can also tell identities (`embed`)."""
        return self._recogniser is not None

    def __repr__(self) -> str:
        pack, size = self.folder.name, self.detection_size
        return f"PhotoAligner(pack={pack!r}, detection_size={size}, threshold={self.threshold})"

    def find(self, image: torch.Tensor) -> tuple[FoundFace, ...]:
        """Return every face in `image` (1, 3, H, W) in [0, 1], the largest box first; an empty tuple when there is
        none.
        """
        boxes, points = self._detector.detect(_bgr(image), max_num=0)
        if points is None or len(boxes) == 0:
            return ()
        faces = (FoundFace(box[:4], five, float(box[4])) for box, five in zip(boxes, points, strict=True))
        return tuple(sorted(faces, key=lambda face: -face.area))

    def align(self, image: torch.Tensor, resolution: int = 512, *, choose: str | int = "largest") -> Aligned:
        """Cut the face out of a photo, framed like FFHQ.

        `image` is (1, 3, H, W) in [0, 1]. `choose` says which face where there are several: "largest" (default),
        "central" (its box centre nearest to the picture's), or a number into the list by size. Returns `Aligned` with a
        (1, 3, resolution, resolution) crop.

        Raises NoFaceError when there is none; warns with SeveralFacesWarning, listing all, when one of several was
        taken.
        """
        faces = self.find(image)
        height, width = image.shape[-2:]
        if not faces:
            raise NoFaceError(
                f"no face found in this {width}x{height} picture (detector score {self.threshold} or more). Use one "
                "where the face is larger and uncovered, or, when it is an aligned crop already, skip the detection "
                "(`--no-align`)."
            )
        index = _choose(faces, choose, width, height)
        face = faces[index]
        if len(faces) > 1:
            listing = "; ".join(f"[{number}] {other}" for number, other in enumerate(faces))
            message = f"{len(faces)} faces found, took number {index}: {listing}."
            warnings.warn(message, SeveralFacesWarning, stacklevel=2)
        matrix = fit_similarity(face.points, template_points(resolution))
        crop = cut_crop(image, matrix, resolution)
        ordered = (face, *(other for other in faces if other is not face))
        return Aligned(crop, matrix, face.points, face.box, face.score, ordered)

    def embed(self, image: torch.Tensor, points: np.ndarray | None = None) -> torch.Tensor:
        """Return the identity vector of a face: (D,) float32 of unit length; the cosine of two of them is their
        similarity.

        `image` is (1, 3, H, W) in [0, 1]; `points` (5, 2) are the five points in its pixels, detected (largest face)
        when not given. Give the points of the clean picture to score a degraded one in the same frame: points found on
        ruins move, and the score with them.

        Raises NoFaceError without points where no face is found, WeightsError when the pack holds no recognition
        network.
        """
        if self._recogniser is None:
            raise WeightsError(f"the pack in {self.folder} has no recognition network. {HOW_TO_GET}")
        if points is None:
            faces = self.find(image)
            if not faces:
                raise NoFaceError("no face found to tell the identity of; give the five points, or a clearer picture.")
            points = faces[0].points
        import cv2
        from insightface.utils.face_align import arcface_dst

        side = self._recogniser.input_size[0]
        if side != 112:
            raise WeightsError(f"the recogniser in {self.folder} wants {side} pixels; only 112 pixels are supported.")
        # Bilinear with black outside, exactly as the networks were trained and as InsightFace itself crops.
        warped = cv2.warpAffine(_bgr(image), fit_similarity(points, arcface_dst), (side, side), borderValue=0.0)
        vector = torch.from_numpy(np.asarray(self._recogniser.get_feat(warped), np.float32).ravel().copy())
        return vector / vector.norm().clamp_min(1e-12)


def _choose(faces: tuple[FoundFace, ...], choose: str | int, width: int, height: int) -> int:
    """Return the index of the face to take; `faces` come largest first."""
    if isinstance(choose, int):
        if not 0 <= choose < len(faces):
            raise ImageContractError(f"face number {choose} asked for, but {len(faces)} found; count from 0.")
        return choose
    if choose == "largest":
        return 0
    if choose == "central":
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        offsets = [np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - centre) for face in faces]
        return int(np.argmin(offsets))
    raise unknown_name("choice of face", choose, ("largest", "central"))


def _load_models(folder: Path, providers: tuple[str, ...]) -> dict[str, Any]:
    """Load a pack's detector and recogniser by file; this entrance of InsightFace, unlike `FaceAnalysis`, has no
    download behind it.
    """
    try:
        import onnxruntime
        from insightface.model_zoo import get_model
    except ImportError as error:
        raise missing_extra("insightface", "photos", "face detection in photographs") from error
    onnxruntime.set_default_logger_severity(3)
    models: dict[str, Any] = {}
    for file in sorted(folder.glob("*.onnx")):
        try:
            model = get_model(str(file), providers=list(providers))
        # ONNX Runtime and protobuf raise classes of their own, derived from Exception only, for a damaged file.
        except Exception as error:  # noqa: BLE001
            reason = f"{file} cannot be read ({type(error).__name__}); it is damaged or half downloaded."
            raise WeightsError(f"{reason} {HOW_TO_GET}") from error
        task = getattr(model, "taskname", None)
        if task in ("detection", "recognition"):
            models.setdefault(task, model)
    return models


def _bgr(image: torch.Tensor) -> np.ndarray:
    """Turn one picture of the image contract into what InsightFace takes: (H, W, 3) uint8, channels blue, green,
    red.
    """
    check_images(image, "image")
    if image.shape[0] != 1:
        raise ImageContractError(f"one photo at a time: expected (1, 3, H, W), got {tuple(image.shape)}.")
    return np.ascontiguousarray(to_uint8(image)[0].cpu().numpy()[..., ::-1])
