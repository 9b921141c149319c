"""The papers' tables as specifications: every printed cell in exactly one, every column and data set with a name."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from refbfr_core import benchmark
from refbfr_core.benchmark.tables import TABLES, Arm, TableSpec, table_spec, toy_arms
from refbfr_core.benchmark.tables.datasets import TABLE_DATASETS
from refbfr_core.benchmark.tables.specs import TOY, spec_of
from refbfr_core.benchmark.tables.systems import SYSTEMS
from refbfr_core.benchmark.tables.variants import VARIANTS, kind_of
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.metrics import REGISTRY

SET_METRICS = {"fid", "kid", "kid-toy", "fid-toy"}
MEASURED = [spec for spec in TABLES.values() if spec.measured and spec.paper]


def cells(spec):
    """Printed numbers of a table, missing ones included, that are scores and not settings or comparisons."""
    rows = benchmark.published(spec.paper, missing=True)
    return rows[rows.table.isin(spec.published_tables)]


def test_every_cell_belongs_to_exactly_one_table():
    rows = benchmark.published(missing=True)
    owners = [spec_of(row).name for row in rows.to_dict("records")]
    assert len(owners) == len(rows) >= 709
    counts = collections.Counter(owners)
    assert set(counts) == set(TABLES) - {TOY}, "and every table has cells"
    # Counted in the sources: lines times columns of the two largest tables.
    assert counts["diffmac-2"] == 10 * 4 * 3 and counts["diffmac-1"] == 11 * 8
    assert counts["refldm-results"] == 6 * (4 + 4 + 3) + 6
    labels = [(spec.paper, label) for spec in TABLES.values() for label in spec.published_tables]
    assert len(labels) == len(set(labels)) == len(rows.drop_duplicates(["paper", "table"]))
    with pytest.raises(ConfigError, match="belongs to none"):
        spec_of({"paper": "PDGrad", "table": "Table 7"})


@pytest.mark.parametrize("spec", MEASURED, ids=lambda spec: spec.name)
def test_measured_tables_meet_their_printed_columns(spec):
    rows = cells(spec)
    printed = {*spec.metrics.values(), *spec.set_metrics.values()}
    assert printed <= set(rows.metric) and "" not in printed
    assert set(spec.datasets.values()) <= set(rows.dataset)
    # What has no counterpart here is no score: percentages, counts of failures and of pictures.
    left = rows[~rows.metric.isin(printed)]
    assert left.unit.isin(["percent", "count"]).all()
    scores = rows[rows.metric.isin(printed)]
    assert set(scores.dataset) == set(spec.datasets.values())
    lines = dict.fromkeys(method for method in scores.method if kind_of(method) != "other")
    assert {arm.system for arm in spec.arms} == set(lines), "every printed method has its line, and no other"
    assert all(arm.references != "wrong" for arm in spec.arms)


@pytest.mark.parametrize("spec", TABLES.values(), ids=lambda spec: spec.name)
def test_names_are_known(spec):
    assert set(spec.datasets) <= set(TABLE_DATASETS)
    assert set(spec.metrics) <= set(REGISTRY) and set(spec.set_metrics) <= SET_METRICS
    assert spec.dataset_names == tuple(spec.datasets) and spec.metric_names == tuple(spec.metrics)
    assert spec.profile in ("toy", "paper") and spec.twin in ("", TOY)
    assert set(spec.recordings) <= set(benchmark.recordings())
    assert spec.measured == bool(spec.arms) == bool(spec.datasets)
    assert {*spec.runnable, *spec.from_folders} == set(spec.arms)
    assert len(set(spec.arms)) == len(spec.arms)
    for arm in spec.arms:
        assert arm.system in SYSTEMS or arm.system in VARIANTS
        assert arm.references == "none" or spec.references > 0
    if spec.paper:
        assert spec.title.startswith(spec.paper) and spec.notes
        assert spec.measured or any("can only be printed" in note for note in spec.notes)
    # Plain values: a table can be compared, and its settings kept.
    assert dataclasses.replace(spec) == spec


def test_truth_and_references_suffice_for_the_scores():
    for spec in TABLES.values():
        for dataset in spec.datasets:
            known = TABLE_DATASETS[dataset]
            assert known.has_truth or not {"psnr", "ssim", "lpips", "ids", "lmd", "deg"} & set(spec.metrics), spec.name
            assert known.has_references or all(arm.references == "none" for arm in spec.arms), spec.name


def test_the_toy_table():
    spec = table_spec("toy")
    assert isinstance(spec, TableSpec) and spec.arms == toy_arms() == spec.runnable and not spec.from_folders
    assert spec.dataset_names == ("drawn-mild", "drawn-medium", "drawn-severe")
    assert {"psnr", "ids", "lpips-toy", "textures"} <= set(spec.metrics) and list(spec.set_metrics) == ["kid-toy"]
    assert not cells(dataclasses.replace(spec, paper="ReF-LDM")).size, "it meets no printed column"
    with pytest.raises(UnknownNameError, match="pdgrad-1"):
        table_spec("pdgrad1")


def test_which_lines_need_a_folder():
    assert [str(arm) for arm in table_spec("refldm-results").runnable] == ["CodeFormer", "ReF-LDM, right"]
    assert Arm("LDM") in table_spec("refldm-results").from_folders
    assert [arm.system for arm in table_spec("pdgrad-3").from_folders] == ["VQFR", "RestoreFormer++", "PMRF"]
    assert not table_spec("pdgrad-4").from_folders
