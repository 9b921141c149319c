"""Contact sheets: drawn people in several views each, pixel for pixel.

``python -m refbfr_core.notebook.contact_sheet`` writes `figures/contact_sheet_128.jpg` and `..._256.jpg`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from refbfr_core.notebook.export import Picture, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "python -m refbfr_core.notebook.contact_sheet"
_DPI = 100


def pixel_figure(picture: torch.Tensor) -> Figure:
    """A matplotlib figure that shows a picture (3, H, W) in [0, 1] at one dot a pixel and nothing else."""
    from matplotlib.figure import Figure

    height, width = picture.shape[-2:]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture.permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation="none")
    axes.set_axis_off()
    return figure


def contact_sheet(
    resolution: int = 128,
    people: int = 16,
    views: int = 6,
    *,
    seed: int = 0,
    split: str = "test",
    columns: int = 2,
    folder: str | Path | None = None,
) -> Picture:
    """Draw ``people`` in ``views`` each and save the sheet; people run down in ``columns`` blocks side by side.

    Raises
    ------
    ValueError : a resolution the renderer does not have. OutputError : the folder cannot be written to.
    """
    from refbfr_core.faces import ToyFaces

    faces = ToyFaces(resolution)
    drawn = faces.identities(people, seed, split)
    images = faces.render(drawn, faces.views(drawn, views, seed)).images
    rows = -(-people // columns)
    blank = images.new_ones(rows * columns - people, *images.shape[1:])
    blocks = torch.cat([images, blank]).unflatten(0, (columns, rows))
    # (columns, rows, views, 3, H, W) -> one picture with rows going down and each block's views going right
    sheet = blocks.permute(3, 1, 4, 0, 2, 5).flatten(3, 5).flatten(1, 2)
    return save_figure(
        pixel_figure(sheet),
        f"contact_sheet_{resolution}",
        alt=f"Contact sheet: {people} drawn people, {views} views of each in a row; pose, light, expression and "
        "glasses change within a row, the person does not.",
        made_by=MADE_BY,
        settings={"resolution": resolution, "people": people, "views": views, "seed": seed, "split": split},
        kind="jpg",
        folder=folder,
        max_bytes=3_000_000,
    )


if __name__ == "__main__":
    for side in (128, 256):
        print(contact_sheet(side))  # noqa: T201 - a command tells what it wrote
