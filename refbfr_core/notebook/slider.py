"""A before/after comparison slider that is part of the page itself: no kernel, no library, no network.

How it degrades: what is stored is a plain two-picture table. Where scripts may run (a trusted notebook, an exported
HTML page) a few lines of JavaScript turn it into a slider; where they may not (GitHub, a notebook that is not
trusted) the two pictures simply stay side by side, so there is never a control that moves and does nothing. A PNG of
the same table goes along for viewers that show no HTML at all.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refbfr_core.errors import ConfigError, ImageContractError
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

# Runs when the second picture has loaded. It builds the control itself, so that without scripts there is none.
_ACTIVATE = """
(function (last) {
  var figure = last.closest('figure');
  if (!figure || figure.dataset.live) { return; }
  figure.dataset.live = 'yes';
  var table = figure.querySelector('table'), pictures = table.querySelectorAll('img');
  var names = [pictures[0].dataset.label, pictures[1].dataset.label], side = figure.dataset.side + 'px';
  function make(tag, style, parent) {
    var node = document.createElement(tag); node.style.cssText = style; parent.appendChild(node); return node;
  }
  var box = make('div', 'width:' + side + ';max-width:100%', figure);
  var stage = make('div', 'position:relative;overflow:hidden;line-height:0', box);
  var under = make('img', 'width:100%;display:block', stage);
  under.src = pictures[1].src; under.alt = pictures[1].alt;
  var over = make('img', 'width:100%;position:absolute;left:0;top:0', stage);
  over.src = pictures[0].src; over.alt = pictures[0].alt;
  var line = make('div', 'position:absolute;top:0;bottom:0;width:2px;background:#fff;box-shadow:0 0 3px #000', stage);
  var label = make('label', 'display:block;font-size:90%', box);
  var text = make('span', 'display:flex;justify-content:space-between', label);
  make('span', '', text).textContent = '\\u25c0 ' + names[0];
  make('span', '', text).textContent = names[1] + ' \\u25b6';
  var input = make('input', 'width:100%;margin:0', label);
  input.type = 'range'; input.min = 0; input.max = 100; input.step = 1; input.value = 50;
  input.setAttribute('aria-label', 'Divider between ' + names[0] + ' on the left and ' + names[1] + ' on the right');
  function move() {
    over.style.clipPath = 'inset(0 ' + (100 - input.value) + '% 0 0)';
    line.style.left = 'calc(' + input.value + '% - 1px)';
    input.setAttribute('aria-valuetext', input.value + ' percent ' + names[0]);
  }
  input.addEventListener('input', move);
  table.style.display = 'none';
  move();
})(this)
"""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two pictures of the same size in one place; shows itself when it is the last value of a cell.

    `before` and `after` are JPEG bytes, `still` is the PNG with both side by side.
    """

    before: bytes
    after: bytes
    still: bytes
    labels: tuple[str, str]
    alt: str
    width: int

    @property
    def html(self) -> str:
        """The slider as one self-contained piece of HTML."""
        row = picture_row(list(zip((self.before, self.after), self.labels, strict=True)), self.width, _ACTIVATE)
        alt = html.escape(self.alt, quote=True)
        return f'<figure role="group" aria-label="{alt}" data-side="{self.width}" style="margin:0">{row}</figure>'

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        bundle = {"text/html": self.html, "image/png": base64_text(self.still), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return f"Comparison({self.labels[0]!r} | {self.labels[1]!r}: {self.alt})"


def compare(
    before: torch.Tensor,
    after: torch.Tensor,
    *,
    alt: str,
    labels: tuple[str, str] = ("before", "after"),
    width: int = 320,
    max_bytes: int = 60_000,
) -> Comparison:
    """Make a before/after slider.

    Parameters
    ----------
    before, after : one picture each, float32 (3, H, W) or (1, 3, H, W) in [0, 1], of equal size.
    alt : one sentence for readers who do not see the pictures.
    labels : what the two pictures are.
    width : width on the page, in CSS pixels; the pictures are stored at their own resolution, at most 512 pixels.
    max_bytes : bound on each embedded picture.

    Raises
    ------
    ImageContractError : a picture breaks the image contract, or the two differ in size.
    ConfigError : no usable alternative text, empty labels, or a width outside 64 … 2048.
    """
    text = require_alt(alt, "a comparison slider")
    if len(labels) != 2 or not all(isinstance(label, str) and label.strip() for label in labels):
        raise ConfigError(f"labels={labels!r}; a comparison needs two names, for example labels=('input', 'restored').")
    if not 64 <= width <= 2048:
        raise ConfigError(f"width={width} CSS pixels; choose between 64 and 2048.")
    pixels = [to_pixels(before, "before"), to_pixels(after, "after")]
    if pixels[0].shape != pixels[1].shape:
        sizes = " and ".join(f"{p.shape[1]}×{p.shape[0]}" for p in pixels)
        raise ImageContractError(f"the two pictures are {sizes}; a slider needs equal sizes. Resize one of them first.")
    encoded = [jpeg_bytes(picture, max_bytes=max_bytes) for picture in pixels]
    still = png_bytes(side_by_side(pixels, labels))
    return Comparison(encoded[0], encoded[1], still, (labels[0], labels[1]), text, width)
