"""Runs of a table: rows by content, faults that become rows, kills and processes that change nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
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


def test_a_full_disk_stops_the_run_and_keeps_what_was_done(tmp_path: Path) -> None:
    script = [sys.executable, toys.__file__, str(tmp_path)]
    full = subprocess.run([*script, "--full-after", "5"], capture_output=True, text=True, check=False)
    assert full.returncode != 0 and "DiskFullError" in full.stderr and "of 24 rows are kept" in full.stderr
    kept = TableStore(tmp_path).rows
    assert 0 < len(kept) < 24 and not list((tmp_path / "store").glob(".*"))
    assert subprocess.run(script, check=False).returncode == 0
    fresh, resumed = run([toys.dataset(count=8)]).rows, read_rows(tmp_path / "rows.parquet")
    # Another process, so another digest of the code, if somebody is editing it.
    assert resumed.drop(columns="key").equals(fresh.drop(columns="key")) and len(fresh) == 24


def test_kill_at_random_moments_and_resume(tmp_path: Path) -> None:
    draws, seen = random.Random(5), []
    script = [sys.executable, toys.__file__, str(tmp_path / "killed"), "--pause", "0.15"]
    for _ in range(3):
        store = tmp_path / "killed" / "store"
        before = len(list(store.glob("part-*"))) if store.is_dir() else 0
        process = subprocess.Popen(script)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (store.is_dir() and len(list(store.glob("part-*"))) > before):
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was finished before it could be killed"
        seen.append(len(TableStore(tmp_path / "killed").rows))
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1] < 24, seen
    subprocess.run(script[:3], check=True)
    subprocess.run([*script[:2], str(tmp_path / "whole")], check=True)
    one, other = ((tmp_path / name / "rows.parquet").read_bytes() for name in ("killed", "whole"))
    assert one == other and not read_rows(tmp_path / "whole" / "rows.parquet").empty


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
