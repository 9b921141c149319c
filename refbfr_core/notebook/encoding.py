"""Pictures as bytes for a page: small JPEG and PNG encodings with a size that is bounded, never hoped for.

A committed notebook should open quickly, so everything it embeds goes through this file.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refbfr_core.errors import ConfigError, ImageContractError

if TYPE_CHECKING:
    import torch
    from PIL import Image

_QUALITIES = (92, 85, 78, 68, 55)


def to_pixels(picture: torch.Tensor, name: str = "picture") -> np.ndarray:
    """Return one picture as an (H, W, 3) uint8 array.

    Parameters
    ----------
    picture : float32 in [0, 1] with shape (3, H, W) or (1, 3, H, W); or a mask (1, H, W), bool or float in [0, 1],
        shown as grey.
    name : what an error message calls it.

    Raises
    ------
    ImageContractError : another shape, type or range. Pictures are never stretched to fit: a restorer that shifts
        the brightness must look as if it did.
    """
    import torch

    from refbfr_core.images import check_images, to_uint8

    if not isinstance(picture, torch.Tensor):
        raise ImageContractError(
            f"{name} is a {type(picture).__name__}; expected a float32 tensor (3, H, W) in [0, 1]. "
            "Read files with refbfr_core.images.read_image, arrays with refbfr_core.images.from_uint8."
        )
    image = picture.detach().cpu()
    if image.ndim == 3:
        image = image.unsqueeze(0)
    if image.ndim == 4 and image.shape[1] == 1:
        image = image.float().expand(-1, 3, -1, -1)
    check_images(image, name)
    if image.shape[0] != 1:
        raise ImageContractError(
            f"{name} holds {image.shape[0]} pictures; expected one. Index it first, for example {name}[0]."
        )
    return np.asarray(to_uint8(image))[0]


def shrink(pixels: np.ndarray, longest: int) -> Image.Image:
    """Return the picture as a Pillow image whose longer side is at most `longest` pixels (Lanczos); never enlarged."""
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = longest / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return image


def jpeg_bytes(pixels: np.ndarray, *, longest: int = 512, max_bytes: int = 60_000) -> bytes:
    """Return a JPEG of the picture that is no longer than `max_bytes`.

    Colour is kept at full resolution (4:4:4), since skin tone is part of what is looked at. Quality is lowered
    first, then the size.

    Raises
    ------
    ConfigError : `max_bytes` is too small for any picture (under 2,000).
    """
    if max_bytes < 2_000:
        raise ConfigError(f"max_bytes={max_bytes} is too small for a picture; use at least 2000.")
    while True:
        image = shrink(pixels, longest)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling=0)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        longest = int(max(image.size) * 0.75)


def png_bytes(image: Image.Image, *, full_colour_up_to: int = 60_000) -> bytes:
    """Return a PNG: in full colour if it fits in so many bytes, else with the 256 colours that suit it best.

    A plot has few colours and loses nothing visible with a palette, but takes a third of the space. A face may lose a
    few grey levels; a PNG is only the still version beside a JPEG there. The same pixels give the same bytes.
    """
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    if buffer.tell() <= full_colour_up_to:
        return buffer.getvalue()
    buffer = io.BytesIO()
    # One round of k-means keeps flat areas exact, above all the white of the page, which median cut alone shifts.
    palette = image.convert("RGB").quantize(256, Pillow.Quantize.MEDIANCUT, kmeans=1, dither=Pillow.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def base64_text(data: bytes) -> str:
    """Return the bytes as base64 text, the form in which a notebook stores pictures."""
    return base64.b64encode(data).decode("ascii")


def data_uri(data: bytes, kind: str = "jpeg") -> str:
    """Return the bytes as a `data:` address for an `<img>`; `kind` is "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64_text(data)}"


def script_attribute(script: str) -> str:
    """Return JavaScript as an `onload` attribute for an `<img>`.

    An attribute cannot leak onto the page as text when a viewer removes scripts; the content of a script element can.
    """
    squeezed = " ".join(line.strip() for line in script.strip().splitlines())
    return f' onload="{html.escape(squeezed, quote=True)}"'


def picture_row(cells: Sequence[tuple[bytes, str]], width: int, script: str) -> str:
    """Return pictures (JPEG bytes, label) as one table row of HTML, `width` CSS pixels each; the last carries `script`.

    A table stays a row in every viewer, also in those that remove styles.
    """
    parts = []
    for index, (data, label) in enumerate(cells):
        name = html.escape(label, quote=True)
        onload = script_attribute(script) if index == len(cells) - 1 else ""
        parts.append(
            f'<td style="text-align:center;padding:0 4px 0 0"><img src="{data_uri(data)}" alt="{name}" '
            f'data-label="{name}" width="{width}"{onload}><br>{name}</td>'
        )
    return f'<table role="presentation" style="border:0;margin:0"><tr>{"".join(parts)}</tr></table>'


def side_by_side(pictures: Sequence[np.ndarray], labels: Sequence[str], *, longest: int = 160) -> Image.Image:
    """Return the pictures in one row, each under its label: the still version for places that show no HTML.

    Parameters
    ----------
    pictures : (H, W, 3) uint8 arrays. labels : one short text for each. longest : side in pixels to which each
        picture is bounded.
    """
    from PIL import Image, ImageDraw, ImageFont

    tiles = [shrink(pixels, longest) for pixels in pictures]
    gap, bar = 4, 16
    width = sum(tile.width for tile in tiles) + gap * (len(tiles) - 1)
    sheet = Image.new("RGB", (width, bar + max(tile.height for tile in tiles)), "white")
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(12), 0
    for tile, label in zip(tiles, labels, strict=True):
        text = label
        while len(text) > 1 and pen.textlength(text, font=font) > tile.width:
            text = text[:-2].rstrip() + "…"
        pen.text((left + tile.width / 2, 1), text, fill="black", font=font, anchor="ma")
        sheet.paste(tile, (left, bar))
        left += tile.width + gap
    return sheet


def require_alt(alt: object, what: str) -> str:
    """Return the alternative text, stripped, or refuse: every picture here can be read by somebody who does not see it.

    Raises
    ------
    ConfigError : the text is missing, or too short to describe anything (under 15 characters).
    """
    text = " ".join(alt.split()) if isinstance(alt, str) else ""
    if len(text) < 15:
        raise ConfigError(
            f"{what} needs alternative text, and {alt!r} describes nothing. Pass alt='…': one sentence that tells "
            "somebody who cannot see the picture what it shows."
        )
    return text
