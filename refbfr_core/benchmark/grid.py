"""A labelled grid of pictures on the fixed [0, 1] range, written as one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from refbfr_core.files import atomic_path
from refbfr_core.images import check_images, to_uint8


def write_picture_grid(rows: Mapping[str, Tensor], path: str | Path, title: str = "") -> Path:
    """Writes pictures as a grid, one named row each; 0 is black and 1 is white in every cell.

    Args:
        rows: label -> (C, 3, H, W) in [0, 1]; all rows have C pictures of one size.
        path: a file ending in .png.
        title: small text above the grid, such as the settings of the run.

    Raises:
        ImageContractError: pictures that break the contract. OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = {len(check_images(pictures, label)) for label, pictures in rows.items()}
    count, height = max(columns), len(rows)
    # One inch shows 128 pixels as they are; the label column and the title come on top.
    figure = Figure(figsize=(count * 1.02 + 1.3, height * 1.02 + 0.35), dpi=128)
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, count, squeeze=False)
    left, top = 1.3 / figure.get_figwidth(), 1 - 0.35 / figure.get_figheight()
    figure.subplots_adjust(left=left, right=1, bottom=0, top=top, wspace=0.02, hspace=0.02)
    for line, (label, pictures) in zip(axes, rows.items(), strict=True):
        for cell, picture in zip(line, to_uint8(pictures).cpu().numpy(), strict=True):
            cell.imshow(picture, vmin=0, vmax=255, interpolation="nearest")
            cell.set_axis_off()
        box = line[0].get_position()
        figure.text(left * 0.94, (box.y0 + box.y1) / 2, label, ha="right", va="center", fontsize=8)
    figure.text(0.01, 1 - 0.1 / figure.get_figheight(), title, ha="left", va="top", fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Description": title})
    return Path(path)
