"""Reading and writing PNG, JPEG and WebP pictures without surprises."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from refbfr_core.errors import ConfigError, ImageContractError, ImageFileError, unknown_name
from refbfr_core.files import write_bytes
from refbfr_core.images.contract import check_images, to_uint8

if TYPE_CHECKING:
    from PIL import Image

# MPO is what many phones write into a .jpg: a JPEG followed by previews or a depth picture, of which the first is the
# photo.
_READABLE = ("JPEG", "MPO", "PNG", "WEBP")
_WRITABLE = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_JPEG_QUALITY = 95


def read_image(path: str | Path, *, background: float = 1.0) -> torch.Tensor:
    """Read a PNG, JPEG or WebP picture as float32 RGB `(1, 3, H, W)` in [0, 1].

    The picture is turned upright by its EXIF orientation. Grey and palette pictures become RGB, 16-bit PNGs keep their
    precision, CMYK is converted without a colour profile, and transparent pixels are laid over a grey of brightness
    `background` (1 is white).

    Raises
    ------
    ImageFileError : the file is missing, empty, truncated, damaged, animated, not an image, or of a format not read
        here.
    """
    source = Path(path)
    data = _read_bytes(source)
    picture, orientation = _decode(source, data)
    # Pillow decodes first in either case, because it is the one that notices damage.
    pixels = _decode_16_bit(source, data) if _is_16_bit_png(data) else _to_array(source, picture)
    pixels = _turn_upright(pixels, orientation)
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:]
        pixels = pixels[..., :3] * alpha + background * (1.0 - alpha)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))[None]


def write_image(path: str | Path, image: torch.Tensor, quality: int | None = None) -> Path:
    """Write one picture, `(1, 3, H, W)` or `(3, H, W)` in [0, 1], as 8-bit RGB.

    The suffix of `path` chooses PNG, JPEG or WebP. PNG is always lossless. JPEG keeps full colour resolution and has
    quality 95 unless `quality` (1…100) says otherwise. WebP is lossless unless a `quality` is given. Missing parent
    folders are made. The file appears under its name in one step or not at all.

    Returns
    -------
    The path written.

    Raises
    ------
    ImageContractError : `image` breaks the contract or holds several pictures. UnknownNameError : another suffix.
    ConfigError : a quality outside 1…100, or one for PNG. OutputError, DiskFullError : the place cannot be written to.
    """
    target = Path(path)
    if target.suffix.lower() not in _WRITABLE:
        raise unknown_name("image suffix", target.suffix, _WRITABLE)
    batch = image[None] if isinstance(image, torch.Tensor) and image.ndim == 3 else image
    if check_images(batch, "image").shape[0] != 1:
        raise ImageContractError(
            f"image holds {batch.shape[0]} pictures, a file takes one: write each of image.split(1)."
        )
    buffer = io.BytesIO()
    picture = _picture(to_uint8(batch)[0].cpu().numpy())
    image_format = _WRITABLE[target.suffix.lower()]
    picture.save(buffer, format=image_format, **_save_options(image_format, quality))
    write_bytes(target, buffer.getvalue())
    return target


def _read_bytes(path: Path) -> bytes:
    """Return the content of the file, which must exist and not be empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageFileError(
            f"there is no file {path}: check the spelling; the current folder is {Path.cwd()}."
        ) from error
    except IsADirectoryError as error:
        raise ImageFileError(f"{path} is a folder, an image file is expected: name one of the files in it.") from error
    except OSError as error:
        raise ImageFileError(f"cannot read {path}: {error.strerror or error}. Check the rights on the file.") from error
    if not data:
        raise ImageFileError(f"{path} is empty (0 bytes), an image file is expected: copy or download it again.")
    return data


def _decode(path: Path, data: bytes) -> tuple[Image.Image, int]:
    """Decode all pixels with Pillow; return the picture as stored and its EXIF orientation, 1…8."""
    from PIL import ExifTags, Image, UnidentifiedImageError

    try:
        with _refusing_truncated_files():
            picture = Image.open(io.BytesIO(data))
        if picture.format not in _READABLE:
            raise ImageFileError(f"{path} is a {picture.format} file; PNG, JPEG and WebP are read: convert it first.")
        if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
            raise ImageFileError(
                f"{path} is an animation of {picture.n_frames} frames, one picture is expected: export a single frame."
            )
        with _refusing_truncated_files():
            picture.load()
        return picture, picture.getexif().get(ExifTags.Base.Orientation, 1)
    except UnidentifiedImageError as error:
        raise ImageFileError(
            f"{path} is not an image this package can recognise ({len(data)} bytes); PNG, JPEG and WebP are read: "
            "convert it, or copy it again."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            f"{path} claims more pixels than is safe to decode: crop or scale it down first ({error})."
        ) from error
    except ImageFileError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports damage as OSError (truncated data), SyntaxError (broken PNG chunk) or ValueError (bad header
        # fields).
        raise ImageFileError(f"{path} is truncated or damaged ({error}): copy or download it again.") from error


@contextmanager
def _refusing_truncated_files() -> Iterator[None]:
    """Have Pillow report missing data, whatever other libraries have told it.

    Some switch on, for the whole process and by merely being imported, that Pillow fills missing rows with grey.
    """
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_array(path: Path, picture: Image.Image) -> np.ndarray:
    """Return the pixels as float32 `(H, W, 3)` or, with alpha, `(H, W, 4)`, in [0, 1]."""
    if picture.mode not in {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}:
        raise ImageFileError(
            f"{path} has the colour mode {picture.mode!r}, which is not read: convert it to RGB first."
        )
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return np.asarray(picture.convert(mode), dtype=np.float32) / 255.0


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror `(H, W, C)` pixels as the EXIF orientation says; undefined values mean upright."""
    turned = {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0)
    pixels = np.rot90(pixels, turned)
    return pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels


def _is_16_bit_png(data: bytes) -> bool:
    """Tell from the PNG header whether the samples have 16 bits.

    Pillow would silently drop half of them for colour pictures.
    """
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16


def _decode_16_bit(path: Path, data: bytes) -> np.ndarray:
    """Return the pixels of a 16-bit PNG as float32 `(H, W, 3)` or `(H, W, 4)` in [0, 1]."""
    import cv2

    # Any other mode would drop the alpha channel, or turn the picture by its EXIF block before we do.
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16:
        raise ImageFileError(f"{path} is a 16-bit PNG that cannot be decoded: save it again with 8 bits per channel.")
    if raw.ndim == 2:
        raw = np.repeat(raw[..., None], 3, axis=2)
    order = [2, 1, 0, 3][: raw.shape[2]]
    return raw[..., order].astype(np.float32) / 65535.0


def _picture(pixels: np.ndarray) -> Image.Image:
    """Wrap bytes `(H, W, 3)` for Pillow."""
    from PIL import Image

    return Image.fromarray(pixels)


def _save_options(image_format: str, quality: int | None) -> dict[str, object]:
    """Choose the encoder's options; see `write_image`."""
    if quality is not None and not (isinstance(quality, int) and 1 <= quality <= 100):
        raise ConfigError(f"quality is {quality!r}, expected a whole number from 1 to 100.")
    if image_format == "PNG":
        if quality is not None:
            raise ConfigError(
                "quality was given for a PNG, which is always lossless: leave it out or write a .jpg or .webp."
            )
        return {}
    if image_format == "JPEG":
        # Halving the colour resolution, the encoder's default, smears saturated reds by tens of grey levels.
        return {"quality": _JPEG_QUALITY if quality is None else quality, "subsampling": 0}
    return {"lossless": True} if quality is None else {"quality": quality, "method": 4}
