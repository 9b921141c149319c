"""One look for all plots: colours that colour-blind readers can tell apart, and text that stays readable when small."""

from __future__ import annotations

# The eight colours of Okabe and Ito, "Color Universal Design" (2008), reordered so that neighbours also differ in
# lightness.
COLOURS: tuple[str, ...] = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
LINE_STYLES: tuple[str, ...] = ("-", "--", "-.", ":", "-", "--", "-.", ":")

# One colour for each arm of the question this workbook asks again and again.
ARM_COLOURS: dict[str, str] = {
    "right": "#009E73",
    "none": "#0072B2",
    "wrong": "#D55E00",
    "lq": "#7F7F7F",
    "truth": "#000000",
}


def plot_settings() -> dict[str, object]:
    """Return matplotlib settings as a dictionary for `matplotlib.rc_context` or `matplotlib.rcParams.update`.

    Lines differ in colour and in dashes, because colour alone is not enough for every reader and every printer.
    """
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINE_STYLES),
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "font.size": 9,
        "grid.alpha": 0.3,
        "image.cmap": "cividis",
        "legend.fontsize": 8,
        "legend.frameon": False,
        "lines.markersize": 4,
        "lines.linewidth": 1.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
    }


def use_style() -> None:
    """Apply `plot_settings` to this Python process (matplotlib keeps its settings globally; notebooks call this
    once, in `start`).
    """
    import matplotlib

    matplotlib.rcParams.update(plot_settings())
