"""What notebook 05 draws and prints about the identity loss: one-step predictions, scales, live training, long runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from refbfr_core.errors import missing_extra
from refbfr_core.notebook.grids import blank_figure
from refbfr_core.notebook.live import somebody_is_here
from refbfr_core.notebook.style import COLOURS, LINE_STYLES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refbfr_core.benchmark import ManifoldStudy
    from refbfr_core.benchmark.identity_claims import Claim, GuideBonus
    from refbfr_core.metrics import Interval

_MEASURES = {
    "cosine": "cosine to the reconstruction",
    "neighbours": "distance to nearest clean faces",
    "norm": "length before scaling (clean = 1)",
    "niqe-toy": "niqe-toy of the picture",
}
_MARKERS = ("o", "s", "^", "D")


def manifold_figure(study: ManifoldStudy, measures: Sequence[str] | None = None) -> Figure:
    """Draw what embedders say of one-step predictions over t: one panel a measure, one line an embedder.

    Bars are 95 % intervals over people. Thin lines of the same colour show the means of the true pictures (solid) and
    of the ruined inputs (dotted). "niqe-toy" looks at pictures only and is drawn once.

    Parameters
    ----------
    study : from `x0_manifold_study`. measures : columns of its rows; None for cosine, neighbours, norm and, where it
        was computed, niqe-toy.
    """
    from refbfr_core.benchmark.identity_manifold import INPUT, PREDICTED, QUALITY, TRUTH
    from refbfr_core.metrics import mean_interval

    measures = measures or [name for name in _MEASURES if name in study.rows.columns]
    figure, (axes,) = blank_figure(1, len(measures), cell_width=2.35, cell_height=2.5)
    for ax, measure in zip(axes, measures, strict=True):
        embedders = study.settings["embedders"]
        for number, embedder in enumerate(embedders if measure != QUALITY else embedders[:1]):
            own = study.rows[study.rows.embedder == embedder]
            predicted = own[own.kind == PREDICTED]
            lines = [mean_interval(predicted[predicted.t == t][measure].to_numpy()) for t in study.timesteps]
            colour = "black" if measure == QUALITY else COLOURS[number]
            look = {"color": colour, "linestyle": LINE_STYLES[number]}
            _interval_line(ax, study.timesteps, lines, marker=_MARKERS[number], label=embedder, **look)
            for kind, style in ((TRUTH, "-"), (INPUT, ":")):
                ax.axhline(own[own.kind == kind][measure].mean(), linewidth=0.8, color=colour, linestyle=style)
        ax.set(xlabel="timestep t")
        ax.set_title(_MEASURES.get(measure, measure), fontsize=9)
    axes[0].legend()
    return figure


def manifold_findings(study: ManifoldStudy, late: int | None = None) -> list[str]:
    """Say in sentences, from the numbers alone, whether one-step predictions leave the set of clean faces at large t.

    Every difference is paired by person: minus the first stage's reconstruction of the same picture. The ruined inputs
    come along to show whether a measure notices pictures that are known to be bad.

    Parameters
    ----------
    study : from `x0_manifold_study`. late : timestep of it; the last by default.
    """
    from refbfr_core.benchmark.identity_manifold import INPUT, QUALITY

    late = late if late is not None else study.timesteps[-1]
    sentences = []
    for embedder in study.settings["embedders"]:
        sentences.append(
            f"{embedder}, t = {late}: cosine to the reconstruction {study.interval(embedder, 'cosine', late)}"
        )
        for measure, up, down in (
            ("neighbours", "farther from clean faces", "nearer to clean faces"),
            ("norm", "a longer embedding", "a shorter embedding"),
        ):
            for what, change in (
                ("predictions", departure(study, embedder, measure, late)),
                ("ruined inputs", departure(study, embedder, measure, None, INPUT)),
            ):
                sentences.append(f"    {measure}, {what}: {change}: {_direction(change, up, down)}")
    if QUALITY in study.rows.columns:
        change = departure(study, study.settings["embedders"][0], QUALITY, late)
        words = _direction(change, "the picture itself is less like a clean face", "more like a clean face")
        sentences.append(f"the pictures, t = {late}: {QUALITY} {change}: {words}")
    return sentences


def _direction(change: Interval, up: str, down: str) -> str:
    return up if change.above() else down if change.below() else "no difference beyond chance"


def departure(study: ManifoldStudy, embedder: str, measure: str, t: int | None, kind: str = "prediction") -> Interval:
    """`Interval` over people of a measure of one kind of picture (at t, for predictions) minus the reconstruction's."""
    from refbfr_core.benchmark.identity_manifold import REBUILT
    from refbfr_core.metrics import paired_interval

    own = study.rows[study.rows.embedder == embedder].sort_values("person")
    chosen = own[(own.kind == kind) & (own.t == (-1 if t is None else t))][measure]
    return paired_interval(chosen.to_numpy(), own[own.kind == REBUILT][measure].to_numpy())


def gradient_figure(
    timesteps: Sequence[int], norms: Mapping[str, np.ndarray], share: Mapping[str, np.ndarray]
) -> Figure:
    """Draw gradient norms over t (left, logarithmic), and the identity part's weight in the update (right).

    Parameters
    ----------
    timesteps : T numbers. norms : name -> (batches, T). share : scale -> (T,) ratio of the weighted identity gradient
        to the denoising gradient.
    """
    figure, (axes,) = blank_figure(1, 2, cell_width=3.4, cell_height=2.5)
    for number, (name, values) in enumerate(norms.items()):
        values = np.asarray(values)
        axes[0].semilogy(timesteps, values.mean(axis=0), color=COLOURS[number], label=name)
        axes[0].plot(np.tile(timesteps, len(values)), values.ravel(), ".", color=COLOURS[number], alpha=0.5)
    for number, (scale, values) in enumerate(share.items()):
        axes[1].plot(timesteps, values, marker=_MARKERS[number % 4], color=COLOURS[number], label=scale)
    axes[0].set(xlabel="timestep t", ylabel="norm", title="gradients of the two losses")
    axes[1].set(xlabel="timestep t", ylabel="ratio", title="identity gradient / denoising gradient")
    for ax in axes:
        ax.legend()
    return figure


def reporter(log: list[dict[str, float]], every: int = 10) -> Callable[[int, int, Mapping[str, float]], None]:
    """Return an `on_step` for `fine_tune_live` that keeps the losses in `log` and prints every `every`-th step."""
    started = time.perf_counter()

    def step_done(step: int, steps: int, losses: Mapping[str, float]) -> None:
        log.append(dict(losses))
        if step % every == 0 or step == steps:
            recent = log[-every:]
            means = {name: np.mean([entry[name] for entry in recent]) for name in ("denoising", "identity")}
            sys.stdout.write(
                f"  step {step:3d} of {steps}, {time.perf_counter() - started:5.1f} s: mean loss of the last "
                f"{len(recent)} steps: denoising {means['denoising']:.4f}, identity (scaled) {means['identity']:.4f}\n"
            )

    return step_done


def training_control(run: Callable[[str], object], names: Sequence[str], *, show: bool | None = None) -> object | None:
    """Return a drop-down list of scales with a button that calls `run(scale)`, or None where nobody can press it.

    Parameters
    ----------
    run : called with the chosen name; what it prints appears below the button, what it returns is shown.
    names : choices, the first is preselected. show : as for `live`.

    Raises
    ------
    MissingExtraError : ipywidgets is not installed.
    """
    if not (somebody_is_here() if show is None else show):
        return None
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise missing_extra("ipywidgets", "notebooks", "the choice of a scale") from error
    return widgets.interactive(
        run,
        {"manual": True, "manual_name": "fine-tune with this scale"},
        scale=widgets.Dropdown(options=list(names), description="scale"),
    )


def scales_figure(rows: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """Draw what every scale changes against fine-tuning without identity loss, which is the line at zero.

    Circles are single training seeds against the same seed without identity loss; squares with bars are means over
    seeds with 95 % intervals over people, paired. The first column is the denoiser before any fine-tuning.

    Parameters
    ----------
    rows : of the recording "identity-scales". metrics : column -> title, one panel each.
    """
    from refbfr_core.benchmark.identity_claims import LABELS, difference_by_seed
    from refbfr_core.benchmark.identity_tables import SCALES, SHIPPED, by_person
    from refbfr_core.metrics import paired_interval

    figure, (axes,) = blank_figure(1, len(metrics), cell_width=2.9, cell_height=2.9)
    for ax, (metric, title) in zip(axes, metrics.items(), strict=True):
        people = by_person(rows, metric)
        columns = [name for name in (SHIPPED, *SCALES) if name in people and name != "none"]
        for place, name in enumerate(columns):
            interval = paired_interval(people[name].to_numpy(), people["none"].to_numpy())
            _interval_line(ax, [place + 0.2], [interval], "s", color=COLOURS[place])
            if name != SHIPPED:
                seeds = difference_by_seed(rows, metric, name, "none")
                ax.plot([place - 0.1] * len(seeds), seeds, "o", color=COLOURS[place], fillstyle="none")
        ax.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
        ax.set_xticks(range(len(columns)), [LABELS[name] for name in columns], rotation=35, ha="right")
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_title(title)
    return figure


def ends(interval: Interval, digits: int = 3, times: float = 1.0) -> str:
    """Return "mean [low, high]" of an interval `times` a factor, with so many decimals; a zero has no sign."""
    numbers = (round(times * value, digits) + 0.0 for value in (interval.mean, interval.low, interval.high))
    mean, low, high = (f"{value:+.{digits}f}" for value in numbers)
    return f"{mean} [{low}, {high}]"


def beside_poster(table: pd.DataFrame) -> list[dict[str, object]]:
    """Return one of the two tables of `ablation_tables` in few columns: "paper" beside "toy, measured"."""
    from refbfr_core.benchmark.identity_claims import LABELS

    def measured(line: pd.Series, metric: str, digits: int) -> str:
        mean, low, high = (line[f"{metric}, toy{end}"] for end in ("", ", low", ", high"))
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    return [
        {
            "method": LABELS[line["scale"]] + ("" if line["method"].startswith("scale") else f": {line['method']}"),
            "IDS, paper": f"{line['IDS, paper']:.2f}",
            "IDS by the judge, toy": measured(line, "ids", 3),
            "NIQE, paper": f"{line['NIQE, paper']:.2f}",
            "niqe-toy, toy": measured(line, "niqe-toy", 2),
            "PSNR, toy (dB)": measured(line, "psnr", 2),
        }
        for _, line in table.iterrows()
    ]


def claim_rows(claims: Sequence[Claim]) -> list[dict[str, object]]:
    """Return claims as rows for `table`: what the paper says, what was measured, the verdict."""
    return [
        {
            "the paper's claim": claim.words,
            "paper": f"{claim.paper:+.2f}",
            "toy: difference [interval]": ends(claim.toy),
            "toy: each training seed": ", ".join(f"{value:+.3f}" for value in claim.seeds),
            "verdict": claim.verdict,
        }
        for claim in claims
    ]


def bonus_rows(bonuses: Sequence[GuideBonus]) -> list[dict[str, object]]:
    """Return guide bonuses as rows for `table`."""
    from refbfr_core.benchmark.identity_claims import LABELS

    return [
        {
            "compared with no identity loss": LABELS[each.scale],
            "gain, judge": ends(each.judge, 4),
            "gain, guide": ends(each.guide, 4),
            "of what was missing: judge": f"{each.judge.mean / each.missing[0]:.1%}",
            "guide": f"{each.guide.mean / each.missing[1]:.1%}",
            "guide − judge, in %": ends(each.bonus, 1, 100),
            "verdict": each.verdict,
        }
        for each in bonuses
    ]


def bonus_figure(rows: pd.DataFrame) -> Figure:
    """Draw the guide's gain in IDS over no identity loss against the judge's: a point for each scale and training seed.

    Gains are in percent of what was missing to 1, see `GuideBonus`; above the diagonal the guide sees a larger one.
    """
    from refbfr_core.benchmark.identity_claims import LABELS, difference_by_seed, guide_bonuses

    figure, ((ax,),) = blank_figure(cell_width=3.8, cell_height=3.0)
    everything = [0.0]
    for number, each in enumerate(guide_bonuses(rows)):
        shares = [
            [100 * gain / missing for gain in difference_by_seed(rows, metric, each.scale, "none")]
            for metric, missing in zip(("ids", "ids-guide"), each.missing, strict=True)
        ]
        everything += [*shares[0], *shares[1]]
        ax.plot(*shares, _MARKERS[number % 4], linestyle="none", color=COLOURS[number], label=LABELS[each.scale])
    ends = [min(everything), max(everything)]
    ax.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="judge", ylabel="guide", title="IDS gained, in % of what was missing")
    ax.legend()
    return figure


def _interval_line(ax: Axes, x: Sequence[float], intervals: Sequence, marker: str, **look: object) -> None:
    means = np.array([each.mean for each in intervals])
    below = means - [each.low for each in intervals]
    above = [each.high for each in intervals] - means
    ax.errorbar(x, means, yerr=[below, above], marker=marker, capsize=2, elinewidth=0.9, **look)
