"""Runs of a table: rows by content, faults that become rows, kills and processes that change nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import table_toys as toys
import torch

from refbfr_core.benchmark.tables import Arm, run_table
from refbfr_core.benchmark.tables.results import picture_path
from refbfr_core.benchmark.tables.store import TableStore, read_rows, row_key, write_rows
from refbfr_core.errors import CacheError, ConfigError, DiskFullError, WeightsError
from refbfr_core.images import read_image


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may edit the package while its tests run; that would rightly make all rows anew."""
    monkeypatch.setattr("refbfr_core.benchmark.tables.engine.code_version", lambda: "0.0+tested")


def run(datasets=None, arms=None, **options):
    options = {"restorers": toys.restorers(), "progress": False} | options
    return run_table(datasets or [toys.dataset()], arms or toys.arms(), toys.METRICS, **options)


def test_rows_are_in_order_and_scored() -> None:
    result = run()
    assert list(result.rows.item[:3]) == ["item-0"] * 3
    assert list(result.rows.system[:3]) == ["Blend", "Blend", "Other"]
    assert set(result.rows.status) == {"ok"} and result.rows[list(toys.METRICS)].notna().all(axis=None)
    assert result.rows.key.is_unique and len(result.rows) == 18
    assert (result.times.seconds >= 0).all() and "seconds" not in result.rows


def test_pictures_depend_on_seed_and_references_only() -> None:
    whole, part = run(), run([toys.dataset(count=2)], [Arm("Blend", "right")])
    same = whole.rows.merge(part.rows, on="key")
    assert len(same) == 2 and (same.psnr_x == same.psnr_y).all()
    assert whole.rows[whole.rows.references == "right"].psnr.iloc[0] != whole.rows.psnr.iloc[0]


@pytest.mark.parametrize("part", ["item", "seed", "settings", "weights", "metrics", "threads", "code"])
def test_key_follows_everything_that_decides_a_row(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run([toys.dataset(count=1)], [Arm("Blend")]).rows.key[0]
    data, method, options = toys.dataset(count=1), toys.Method(), {}
    if part == "item":
        data = replace(data, items=(replace(data.items[0], digest="f" * 16),))
    elif part == "seed":
        data = replace(data, items=(replace(data.items[0], seed=7),))
    elif part == "settings":
        method.settings = {"steps": 5}
    elif part == "weights":
        method.digest = "ffffffffffff"
    elif part == "threads":
        options = {"threads": 2}
    elif part == "code":
        monkeypatch.setattr("refbfr_core.benchmark.tables.engine.code_version", lambda: "0.0+changed")
    metrics = ("psnr",) if part == "metrics" else toys.METRICS
    after = run_table([data], [Arm("Blend")], metrics, restorers={"Blend": method}, progress=False, **options)
    assert after.rows.key[0] != before


def test_finished_rows_are_not_made_again(tmp_path: Path) -> None:
    methods = toys.restorers()
    first = run(out=tmp_path, restorers=methods)
    calls = methods["Blend"].calls
    again = run(out=tmp_path, restorers=methods)
    assert methods["Blend"].calls == calls and again.rows.equals(first.rows) and again.times.equals(first.times)
    methods["Blend"].settings = {"strength": 2}
    run(out=tmp_path, restorers=methods)
    assert methods["Blend"].calls == 2 * calls
    methods["Blend"].settings = {}
    back = run(out=tmp_path, restorers=methods)
    assert methods["Blend"].calls == 2 * calls and back.rows.equals(first.rows), "old rows were not kept"


def test_parquet_is_the_result(tmp_path: Path) -> None:
    result = run(out=tmp_path)
    pd.testing.assert_frame_equal(read_rows(tmp_path / "rows.parquet"), result.rows, check_dtype=False)
    assert (tmp_path / "settings.json").is_file() and len(list((tmp_path / "store").iterdir())) == 1


def nan(made: torch.Tensor, names: list[str]) -> torch.Tensor:
    return made * float("nan") if names == ["noise/item-2"] else made


def raising(made: torch.Tensor, names: list[str]) -> torch.Tensor:
    if names == ["noise/item-2"]:
        raise ZeroDivisionError("a method's own bug")
    return made


def too_small(made: torch.Tensor, names: list[str]) -> torch.Tensor:
    return made[..., 1:] if names == ["noise/item-2"] else made


def too_bright(made: torch.Tensor, names: list[str]) -> torch.Tensor:
    return made * 2 + 1 if names == ["noise/item-2"] else made


@pytest.mark.parametrize(
    ("change", "reason"),
    [(nan, "ImageContractError"), (raising, "ZeroDivisionError: a method's own bug"), (too_small, "32, 31"),
     (too_bright, "ImageContractError")],
)  # fmt: skip
def test_a_fault_of_a_method_is_one_failed_row(tmp_path: Path, change, reason: str) -> None:
    methods = toys.restorers() | {"Other": toys.Method("Other", change)}
    result = run(out=tmp_path, restorers=methods, pictures=True)
    assert len(result.failures) == 1 and reason in result.failures.reason.iloc[0]
    failed = result.failures.iloc[0]
    assert (failed["item"], failed.system) == ("item-2", "Other") and pd.isna(failed.psnr)
    assert not picture_path(tmp_path, "noise", "Other", "item-2").exists(), "pixels were invented for a failure"
    methods["Other"].change = lambda made, names: made
    again = run(out=tmp_path, restorers=methods)
    assert again.rows.equals(result.rows), "a failed row did not stay failed"
    assert run(out=tmp_path, restorers=methods, retry_failed=True).failures.empty


def test_a_corrupt_input_fails_in_every_arm() -> None:
    result = run([toys.dataset(loads={1: toys.corrupt})])
    assert len(result.failures) == 3 and set(result.failures["item"]) == {"item-1"}
    assert result.failures.reason.str.contains("truncated; fetch it again").all()


def test_missing_references_fail_where_they_are_needed() -> None:
    result = run([toys.dataset(loads={1: lambda: toys.pictures(1, references=False)})])
    assert len(result.failures) == 1 and "no right references" in result.failures.reason.iloc[0]


def test_a_system_without_weights_is_not_run_and_said_so() -> None:
    def altered(system: str, profile: str, device: object) -> None:
        raise WeightsError(f"{system}.pth differs from its SHA-256; fetch it again.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refbfr_core.benchmark.tables.engine.build_restorer", altered)
        result = run(restorers={"Blend": toys.Method()})
    assert set(result.rows.system) == {"Blend"} and "SHA-256" in result.not_run["Other"]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """What is left of runs that were killed and ran out of space, in a process that uses no thread before it forks."""
    out = tmp_path_factory.mktemp("survived")
    done = subprocess.run([sys.executable, toys.__file__, str(out)], capture_output=True, text=True, check=True)
    return out, json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(survived: tuple[Path, dict, str]) -> None:
    out, numbers, printed = survived
    status, rows, half, again = numbers["full"]
    assert status == 1 and 0 < rows < 24 and half == 0 and again == 0
    assert f"{rows} of 24 rows are kept; free some space" in printed
    assert (out / "full" / "rows.parquet").read_bytes() == (out / "whole" / "rows.parquet").read_bytes()


def test_kill_at_random_moments_and_resume(survived: tuple[Path, dict, str]) -> None:
    out, numbers, _ = survived
    seen = numbers["killed"]
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] < 24, seen
    assert (out / "killed" / "rows.parquet").read_bytes() == (out / "whole" / "rows.parquet").read_bytes()
    assert len(read_rows(out / "whole" / "rows.parquet")) == 24


def test_damaged_store_says_which_file(tmp_path: Path) -> None:
    run(out=tmp_path)
    path = tmp_path / "store" / "all.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CacheError, match=r"all\.parquet is damaged.*Delete this file"):
        run(out=tmp_path)


def test_pictures_are_kept_and_made_again_when_lost(tmp_path: Path) -> None:
    methods = toys.restorers()
    result = run(out=tmp_path, restorers=methods, pictures=True)
    path = picture_path(result.pictures, "noise", "Blend, right", "item-3")
    assert read_image(path).shape == (1, 3, toys.SIDE, toys.SIDE)
    assert picture_path(tmp_path, "noise", "truth", "item-3").is_file()
    path.unlink()
    calls = methods["Blend"].calls
    again = run(out=tmp_path, restorers=methods, pictures=True)
    assert path.is_file() and methods["Blend"].calls == calls + 1 and again.rows.equals(result.rows)


def test_one_system_at_a_time_gives_the_same_rows() -> None:
    assert run(keep_loaded=False).rows.equals(run().rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": [Arm("Blend"), Arm("Blend")]}, "more than once"),
        ({"datasets": [toys.dataset(), toys.dataset()]}, "more than once"),
        ({"datasets": [toys.dataset(count=0)]}, "nothing to do"),
        ({"pictures": True}, "no folder"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**options)


def test_store_folds_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refbfr_core.benchmark.tables.store._PARTS", 4)
    store = TableStore(tmp_path)
    for index in range(10):
        store.add({"key": row_key(index=index), "value": index / 3})
    assert len(list((tmp_path / "store").iterdir())) == 2 + 2
    again = TableStore(tmp_path)
    assert again.rows == store.rows and len(again.rows) == 10
    again.fold([{"key": "x", "value": float("inf")}])
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["all.parquet"]
    assert len(TableStore(tmp_path).rows) == 11


def test_a_store_that_cannot_be_written_keeps_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise DiskFullError("no space")

    store = TableStore(tmp_path)
    monkeypatch.setattr("refbfr_core.benchmark.tables.store.write_rows", full)
    with pytest.raises(DiskFullError):
        store.add({"key": "k"})
    assert not store.rows


def test_parquet_bytes_are_stable(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, float("nan")], "b": ["x", "y"]})
    one, other = (write_rows(frame, tmp_path / f"{name}.parquet").read_bytes() for name in "ab")
    assert one == other
