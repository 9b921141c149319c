"""Controls that compute something anew when they are moved: ipywidgets, and only where somebody can move them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from refbfr_core.errors import ConfigError, missing_extra

SESSION_VARIABLE = "JPY_SESSION_NAME"


def somebody_is_here() -> bool:
    """Whether the kernel was started by a notebook server for an open notebook, rather than to run it in one go."""
    return bool(os.environ.get(SESSION_VARIABLE))


def live(draw: Callable[..., object], *, show: bool | None = None, **choices: Sequence[object]) -> object | None:
    """Return sliders that call `draw` with the values they stand at and show what it returns.

    A committed notebook cannot compute, and a slider in it would move and do nothing; such pages show precomputed
    frames instead (`frame_strip`).

    Parameters
    ----------
    draw : called with one keyword for each choice; returns something that shows itself.
    show : True makes the sliders, False returns None; None makes them when somebody is there (`somebody_is_here`).
    choices : name of a keyword -> the values it can take, in order; the first is the start.

    Raises
    ------
    ConfigError : no choice, or one without values. MissingExtraError : ipywidgets is not installed.
    """
    if not choices or not all(len(values) for values in choices.values()):
        raise ConfigError("a control needs something to choose: pass name=[value, value, ...].")
    if not (somebody_is_here() if show is None else show):
        return None
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise missing_extra("ipywidgets", "notebooks", "a live control") from error
    sliders = {
        name: widgets.SelectionSlider(options=list(values), description=name, continuous_update=False)
        for name, values in choices.items()
    }
    return widgets.interactive(draw, **sliders)
