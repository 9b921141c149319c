"""The papers' tables and their toy twin: datasets, arms and scores, and which printed column each score meets.

Every cell of `refbfr_core.benchmark.published` belongs to exactly one table here (`spec_of`). Tables of settings,
sizes, users' opinions, times on somebody's machine, or networks that nobody released can only be printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from refbfr_core.benchmark.tables.spec_data import PAPER_TABLES
from refbfr_core.benchmark.tables.systems import FOLDER, SYSTEMS, Arm, toy_arms
from refbfr_core.benchmark.tables.variants import VARIANTS
from refbfr_core.errors import ConfigError, unknown_name

TOY = "toy"
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class TableSpec:
    """One table.

    Attributes:
        name, title: as in commands, and as in headings.
        paper: as in `published`; "" for the toy table.
        published_tables: values of the column "table" in `published(paper)` whose cells belong here.
        profile: "toy" or "paper".
        datasets: name in `TABLE_DATASETS` -> the table's own name, "" where no table has it. Several names may share
            one: their pictures are pooled in print.
        arms: lines to measure, in the printed order; empty for a table that can only be printed.
        metrics: name of a score -> the column it meets, "" for none.
        set_metrics: the same for distances between sets of pictures, which have one value a line.
        notes: what differs from the paper's protocol, or is not known of it.
        twin: the table of drawn faces that shows the same, "" for none.
        recordings: recorded runs on drawn faces that show the same, see `refbfr_core.benchmark.recorded`.
        references: how many references a person brings at most, 0 where the paper gives none.
    """

    name: str
    title: str
    paper: str = ""
    published_tables: tuple[str, ...] = ()
    profile: str = "paper"
    datasets: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    arms: tuple[Arm, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    set_metrics: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    notes: tuple[str, ...] = ()
    twin: str = ""
    recordings: tuple[str, ...] = ()
    references: int = 0

    @property
    def measured(self) -> bool:
        """Whether anything of it can be measured, here or from folders."""
        return bool(self.arms)

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Names of the datasets, without the printed ones."""
        return tuple(self.datasets)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the scores of single pictures, without the printed columns."""
        return tuple(self.metrics)

    @property
    def runnable(self) -> tuple[Arm, ...]:
        """The arms that run here, given weights."""
        return tuple(arm for arm in self.arms if not self._needs_folder(arm))

    @property
    def from_folders(self) -> tuple[Arm, ...]:
        """The arms that are scored from a folder of results only."""
        return tuple(arm for arm in self.arms if self._needs_folder(arm))

    def _needs_folder(self, arm: Arm) -> bool:
        entry = SYSTEMS[VARIANTS[arm.system].system if arm.system in VARIANTS else arm.system]
        return entry.run == FOLDER or self.profile not in entry.profiles


def table_spec(name: str) -> TableSpec:
    """The table called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in TABLES:
        raise unknown_name("table", name, TABLES)
    return TABLES[name]


def spec_of(row: Mapping[str, Any]) -> TableSpec:
    """The one table that a row of `published()` belongs to.

    Args:
        row: anything with "paper" and "table".

    Raises:
        ConfigError: no table or several have it; the tests see to it that this never happens to a published row.
    """
    paper, table = row["paper"], row["table"]
    found = [spec for spec in TABLES.values() if spec.paper == paper and table in spec.published_tables]
    if len(found) != 1:
        names = ", ".join(spec.name for spec in found) or "none"
        raise ConfigError(f"{paper}, {table!r} belongs to {names}; exactly one table is expected.")
    return found[0]


def _from_data(name: str, data: Mapping[str, Any]) -> TableSpec:
    """A table of `PAPER_TABLES`, with its arms made of text such as "PDGrad, right"."""
    arms = []
    for text in data.get("arms", ()):
        system, comma, kind = text.rpartition(", ")
        arms.append(Arm(system, kind) if comma else Arm(text))
    mappings = {
        key: MappingProxyType(dict(data.get(key, {}))) for key in ("datasets", "metrics", "set_metrics")
    }
    return TableSpec(name=name, **{**data, **mappings, "arms": tuple(arms)})


_TOY = TableSpec(
    name=TOY,
    title="All methods on drawn faces, three severities",
    profile="toy",
    datasets=MappingProxyType({"drawn-mild": "", "drawn-medium": "", "drawn-severe": ""}),
    arms=toy_arms(),
    metrics=MappingProxyType(
        dict.fromkeys(
            ("psnr", "ssim", "lpips-toy", "flpips-toy", "ids", "deg", "niqe-toy", "textures", "detail"), ""
        )
    ),
    set_metrics=MappingProxyType({"kid-toy": ""}),
    notes=(
        "the severities are LD-BFR's, scaled to 128 px",
        "networks are small and were trained on drawn people of another split, LD-BFR's and DiffMAC's on these "
        "severities, ReF-LDM's on its own degradations, the coarse network of the others on ReF-LDM's and PDGrad's",
        "scores called toy are computed with this package's own small networks and compare with no printed number",
    ),
    references=4,
)

TABLES: Mapping[str, TableSpec] = MappingProxyType(
    {TOY: _TOY, **{name: _from_data(name, data) for name, data in PAPER_TABLES.items()}}
)
"""Every table by name; read-only."""
