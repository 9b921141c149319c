"""A strip of precomputed frames: one picture for each step of something, with a slider that needs no kernel.

Everything the slider can show is stored in the page. Without scripts all frames stand in one row that scrolls; with
scripts they become one picture with a labelled range input and a play button (see `slider.py` for why it is built
this way). `live` gives the same frames as an ipywidgets slider, as a bonus for readers with a running kernel.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError, ImageContractError, missing_extra
from refbfr_core.notebook.encoding import (
    base64_text,
    jpeg_bytes,
    picture_row,
    png_bytes,
    require_alt,
    side_by_side,
    to_pixels,
)

if TYPE_CHECKING:
    import torch

_MOST_FRAMES = 64

_ACTIVATE = """
(function (last) {
  var figure = last.closest('figure');
  if (!figure || figure.dataset.live) { return; }
  figure.dataset.live = 'yes';
  var strip = figure.firstElementChild, pictures = strip.querySelectorAll('img'), timer = null;
  function make(tag, style, parent) {
    var node = document.createElement(tag); node.style.cssText = style; parent.appendChild(node); return node;
  }
  var box = make('div', 'width:' + figure.dataset.side + 'px;max-width:100%', figure);
  var stage = make('img', 'width:100%;display:block', box);
  var label = make('label', 'display:block;font-size:90%', box);
  var text = make('span', 'display:block', label), input = make('input', 'width:100%;margin:0', label);
  input.type = 'range'; input.min = 0; input.max = pictures.length - 1; input.step = 1; input.value = 0;
  var button = make('button', '', box);
  button.type = 'button'; button.textContent = 'play';
  function show() {
    var picture = pictures[Number(input.value)];
    stage.src = picture.src; stage.alt = picture.alt; text.textContent = picture.dataset.label;
    input.setAttribute('aria-valuetext', picture.dataset.label);
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = 'play'; }
  button.addEventListener('click', function () {
    if (timer) { stop(); return; }
    if (Number(input.value) === pictures.length - 1) { input.value = 0; show(); }
    button.textContent = 'pause';
    timer = setInterval(function () {
      if (Number(input.value) === pictures.length - 1) { stop(); return; }
      input.value = Number(input.value) + 1; show();
    }, 400);
  });
  input.addEventListener('input', show);
  strip.style.display = 'none';
  show();
})(this)
"""


@dataclass(frozen=True, repr=False)
class FrameStrip:
    """Frames with their labels; shows itself when it is the last value of a cell. `frames` are JPEG bytes, `still`
    is a PNG.
    """

    frames: tuple[bytes, ...]
    labels: tuple[str, ...]
    still: bytes
    alt: str
    width: int

    @property
    def html(self) -> str:
        """The strip as one self-contained piece of HTML."""
        row = picture_row(list(zip(self.frames, self.labels, strict=True)), 128, _ACTIVATE)
        alt = html.escape(self.alt, quote=True)
        return (
            f'<figure role="group" aria-label="{alt}" data-side="{self.width}" style="margin:0">'
            f'<div style="overflow-x:auto" tabindex="0">{row}</div></figure>'
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        bundle = {"text/html": self.html, "image/png": base64_text(self.still), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return f"FrameStrip({len(self.frames)} frames, {self.labels[0]!r} … {self.labels[-1]!r}: {self.alt})"

    def live(self) -> object:
        """Return the same frames as an ipywidgets slider with a play button; it moves only while a kernel runs.

        Raises
        ------
        MissingExtraError : ipywidgets is not installed.
        """
        try:
            import ipywidgets as widgets
        except ImportError as error:
            raise missing_extra("ipywidgets", "notebooks", "the live frame slider") from error
        picture = widgets.Image(value=self.frames[0], format="jpeg", width=self.width)
        play = widgets.Play(max=len(self.frames) - 1, interval=400)
        slider = widgets.SelectionSlider(
            options=[(f"{i}: {text}", i) for i, text in enumerate(self.labels)], description="frame"
        )
        slider.observe(lambda change: setattr(picture, "value", self.frames[change["new"]]), names="index")
        # Linked in the browser, so that playing does not wait for the kernel; only the picture itself comes from there.
        widgets.jslink((play, "value"), (slider, "index"))
        return widgets.VBox([picture, widgets.HBox([play, slider])])


def frame_strip(
    frames: torch.Tensor | Sequence[torch.Tensor],
    labels: Sequence[str],
    *,
    alt: str,
    width: int = 320,
    still_frames: int = 5,
    max_bytes: int = 60_000,
) -> FrameStrip:
    """Make a strip of frames.

    Parameters
    ----------
    frames : (F, 3, H, W) or a list of (3, H, W), float32 in [0, 1], all of one size; 2 to 64 of them.
    labels : one short text for each frame ("t = 899").
    alt : one sentence for readers who do not see the pictures.
    width : width of the picture on the page, in CSS pixels.
    still_frames : how many evenly chosen frames the PNG for viewers without HTML shows.
    max_bytes : bound on all frames together; each gets an equal part.

    Raises
    ------
    ImageContractError : a frame breaks the image contract, or sizes differ.
    ConfigError : no usable alternative text, fewer than 2 or more than 64 frames, labels that do not fit in number,
        too few bytes.
    """
    text = require_alt(alt, "a frame strip")
    count = len(frames)
    if not 2 <= count <= _MOST_FRAMES:
        cure = (
            f"show every n-th one, for example frames[::{-(-count // _MOST_FRAMES)}]"
            if count
            else "record at least two steps"
        )
        raise ConfigError(f"{count} frames; a strip holds 2 to {_MOST_FRAMES}: {cure}.")
    if len(labels) != count:
        raise ConfigError(f"{len(labels)} labels for {count} frames; give one for each.")
    if still_frames < 1:
        raise ConfigError(f"still_frames={still_frames}; the still picture needs at least one frame.")
    pixels = [to_pixels(frame, f"frame {index}") for index, frame in enumerate(frames)]
    if len({picture.shape for picture in pixels}) != 1:
        raise ImageContractError(
            f"frames differ in size: {sorted({p.shape[:2] for p in pixels})}; a strip needs one size."
        )
    encoded = tuple(jpeg_bytes(picture, longest=256, max_bytes=max_bytes // count) for picture in pixels)
    chosen = evenly_spaced(count, still_frames)
    still = png_bytes(
        side_by_side([pixels[i] for i in chosen], [str(labels[i]) for i in chosen], longest=96),
        full_colour_up_to=max_bytes // 2,
    )
    return FrameStrip(encoded, tuple(str(label) for label in labels), still, text, width)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` indices spread over range(count), first and last included (only the last if one is
    wanted).
    """
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count - 1]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
