"""Tables of the comparison of reference mechanisms: means, paired differences, and Table 2 of ReF-LDM beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from refbfr_core.benchmark.papers import published
from refbfr_core.benchmark.report import Contrast, contrast, mean_table
from refbfr_core.benchmark.rows import OK

PAPER_NAMES = {
    "channel": "Channel-concatenation",
    "cross": "Cross-attention",
    "spatial": "Spatial-concatenation",
    "cachekv": "CacheKV",
}
"""Our names of the mechanisms and those of the paper's Table 2, in its order."""

_SCORES = ("ids", "psnr", "ssim", "lpips", "niqe-toy")
_PAIRS = {
    "IDS": "ids",
    "LPIPS": "lpips",
    "NIQE": "niqe-toy",
    "inference time": "seconds_per_image",
    "GPU memory": "peak_mib",
}


def arm_name(mechanism: str, count: int) -> str:
    """How rows call a mechanism with so many references, such as "cachekv 5"."""
    return mechanism if mechanism in ("input", "none") else f"{mechanism} {count}"


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """The scores that these rows have."""
    return [name for name in _SCORES if name in rows]


def quality_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of every arm with 95 % bootstrap intervals, in the order of the rows."""
    return mean_table(rows, list(dict.fromkeys(rows.arm)), metrics_of(rows))


def quality_contrasts(rows: pd.DataFrame) -> list[Contrast]:
    """Paired differences by person, for every score.

    What references bring each mechanism (its largest number of them against none), what fine-tuning with it costs or
    brings without any (against the arm "none"), and every mechanism against CacheKV with equally many references.
    """
    arms = rows[rows.mechanism != "input"][["mechanism", "references", "arm"]].drop_duplicates()
    most = arms[arms.references > 0].groupby("mechanism", sort=False).references.max()
    names, pairs = set(arms.arm), []
    for mechanism, count in most.items():
        pairs.append((arm_name(mechanism, count), arm_name(mechanism, 0)))
        pairs.append((arm_name(mechanism, count), "none"))
    pairs += [(arm_name(each, count), arm_name("cachekv", count)) for each, count in most.items() if each != "cachekv"]
    return [
        contrast(rows, metric, one, other)
        for metric in metrics_of(rows)
        for one, other in pairs
        if one in names and other in names
    ]


def compact_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """What is worth recording of a study's rows: person, arm and scores."""
    columns = ["person", "arm", "mechanism", "references", "status", *metrics_of(rows)]
    return rows[columns].reset_index(drop=True)


def mechanisms_beside_paper(
    quality: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
    references: int = 5,
    attention: str = "fused",
) -> pd.DataFrame:
    """ReF-LDM's Table 2 with what was measured here beside it: "paper" and "toy, measured" under every heading.

    The paper's numbers are of 512 px photographs, five references and one GTX 1080; ours of small networks and drawn
    faces, or, for costs of the size "paper" ("full size, measured"), of a random network of the published size. Orders
    and ratios can be compared, values cannot; NIQE's statistics are of other pictures here, and the memory is the
    paper's gigabytes, our mebibytes.

    Args:
        quality: rows of `run_mechanism_study` (or their recording); costs: of `measure_costs`, of one size. None leaves
            the columns of measured numbers empty.
        references: which number of references to show, the paper's five unless changed.
        attention: which rows of the costs to show; "scores" is what the paper's code does.
    """
    costs = None if costs is None else costs[costs.attention == attention]
    full = costs is not None and (costs["size"] == "paper").all()
    cost_label = "full size, measured" if full else "toy, measured"
    paper = published("ReF-LDM")
    paper = paper[(paper.table == "Table 2") & (paper.dataset == "FFHQ-Ref-Severe")]
    lines = []
    for name, title in PAPER_NAMES.items():
        line: dict[tuple[str, str], float | str] = {("mechanism", ""): title}
        for metric, own in _PAIRS.items():
            value = paper[(paper.method == title) & (paper.metric == metric)].value
            of_costs = own in ("seconds_per_image", "peak_mib")
            measured = (_cost if of_costs else _mean)(costs if of_costs else quality, name, references, own)
            line[_heading(metric), "paper"] = float(value.iloc[0]) if len(value) else float("nan")
            line[_heading(metric), cost_label if of_costs else "toy, measured"] = measured
        lines.append(line)
    return pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(lines[0])).set_index(("mechanism", ""))


def _heading(metric: str) -> str:
    return {"inference time": "seconds an image", "GPU memory": "memory (GB | MiB)"}.get(metric, metric)


def _mean(rows: pd.DataFrame | None, name: str, count: int, metric: str) -> float:
    if rows is None or metric not in rows:
        return float("nan")
    own = rows[(rows.mechanism == name) & (rows.references == count) & (rows.status == OK)]
    return float(own[metric].mean())


def _cost(rows: pd.DataFrame | None, name: str, count: int, column: str) -> float:
    if rows is None:
        return float("nan")
    own = rows[(rows.mechanism == name) & (rows.references == count)]
    return float(own[column].iloc[0]) if len(own) else float("nan")


def cost_ratios(costs: pd.DataFrame, references: Sequence[int] | None = None, attention: str = "fused") -> pd.DataFrame:
    """Seconds and peak memory of every mechanism as multiples of the network without references, by their number.

    One size at a time; `references` chooses among the measured numbers, `attention` among the kinds of attention.
    """
    costs = costs[costs.attention == attention]
    plain = costs[costs.mechanism == "none"].iloc[0]
    chosen = costs if references is None else costs[costs.references.isin(references)]
    ratios = chosen.assign(
        time=chosen.seconds_per_image / plain.seconds_per_image, memory=chosen.peak_mib / plain.peak_mib
    )
    return ratios.pivot(index="references", columns="mechanism", values=["time", "memory"])
