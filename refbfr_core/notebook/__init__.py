"""What the notebooks are drawn and checked with. Matplotlib, pandas and ipywidgets are imported only by the
functions that need them.
"""

from refbfr_core.notebook.attention import feature_places, glow, ring, shifted, tiled
from refbfr_core.notebook.checks import (
    check,
    check_above,
    check_below,
    check_between,
    check_close,
    check_interval_above,
)
from refbfr_core.notebook.export import Picture, figures_folder, save_figure, show, versions, workbook_root
from refbfr_core.notebook.frames import FrameStrip, frame_strip
from refbfr_core.notebook.grids import blank_figure, image_grid
from refbfr_core.notebook.live import live
from refbfr_core.notebook.plots import histograms, paths, scatter
from refbfr_core.notebook.setup import Session, measured_time, start
from refbfr_core.notebook.slider import Comparison, compare
from refbfr_core.notebook.style import ARM_COLOURS, COLOURS, LINE_STYLES, use_style
from refbfr_core.notebook.tables import Table, beside_paper, table

__all__ = [
    "ARM_COLOURS",
    "COLOURS",
    "LINE_STYLES",
    "Comparison",
    "FrameStrip",
    "Picture",
    "Session",
    "Table",
    "beside_paper",
    "blank_figure",
    "check",
    "check_above",
    "check_below",
    "check_between",
    "check_close",
    "check_interval_above",
    "compare",
    "feature_places",
    "figures_folder",
    "frame_strip",
    "glow",
    "histograms",
    "image_grid",
    "live",
    "measured_time",
    "paths",
    "ring",
    "save_figure",
    "scatter",
    "shifted",
    "show",
    "start",
    "table",
    "tiled",
    "use_style",
    "versions",
    "workbook_root",
]
