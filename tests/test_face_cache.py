"""The disk cache of drawn faces: whole shards or none, resumable, bounded, verified."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_blobs import BlobFaces, OtherBlobFaces

from refbfr_core.errors import CacheError, ConfigError, DiskFullError, OutputError
from refbfr_core.faces import shards
from refbfr_core.faces.dataset import FaceCache

SIZE = {"views": 3, "resolution": 32, "renderer": BlobFaces}


def make(root: Path, people: int = 20, split: str = "train", **changes: object) -> FaceCache:
    return FaceCache(root, split, people, **{**SIZE, **changes})


def test_pictures_are_those_of_the_renderer(tmp_path):
    cache = make(tmp_path).build(workers=0)
    drawer = BlobFaces(32)
    people = drawer.identities(20, 0, split="train")
    drawn = drawer.render(people, drawer.views(people, 3, 0))
    expected = (drawn.images * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    assert cache.images.shape == (20, 3, 32, 32, 3)
    assert np.array_equal(np.stack([cache.images[i] for i in range(20)]), expected)
    assert np.array_equal(cache.images[[17, 0], [2, 1]], expected[[17, 0], [2, 1]])
    assert cache.landmarks.shape == (20, 3, 98, 2)
    assert np.array_equal(cache.identity[19], people.vector[19].numpy())
    assert cache.verify() == 20


def test_splits_share_nobody(tmp_path):
    train, judge = make(tmp_path).build(workers=0), make(tmp_path, split="judge").build(workers=0)
    assert not np.array_equal(train.identity[0], judge.identity[0])
    assert train.folder != judge.folder


def test_processes_draw_the_same(tmp_path):
    here, there = make(tmp_path / "here").build(workers=0), make(tmp_path / "there").build(workers=2)
    assert np.array_equal(here.images[19], there.images[19])


def test_growing_keeps_what_is_there(tmp_path):
    make(tmp_path, people=16).build(workers=0)
    manifest = make(tmp_path).shard(0) / "manifest.json"
    before = manifest.stat().st_mtime_ns
    grown = make(tmp_path, people=40).build(workers=0)
    assert grown.ready == 40
    assert manifest.stat().st_mtime_ns == before


def test_part_of_a_cache_can_be_read(tmp_path):
    make(tmp_path, people=20).build(workers=0)
    bigger = make(tmp_path, people=40)
    assert bigger.ready == 20
    assert len(bigger.images) == 20
    with pytest.raises(CacheError, match="20 of 40"):
        bigger.verify()


def test_too_large_is_refused(tmp_path):
    with pytest.raises(CacheError, match="max_bytes"):
        make(tmp_path).build(workers=0, max_bytes=1000)
    assert not any(tmp_path.iterdir())


def test_truncated_and_altered_files_are_named(tmp_path):
    cache = make(tmp_path).build(workers=0)
    path = cache.shard(16) / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheError, match=r"people-000016.images\.npy"):
        cache.verify()
    path.write_bytes(data[:200])
    with pytest.raises(CacheError, match="truncated"):
        cache.images  # noqa: B018


def test_another_renderer_is_refused(tmp_path):
    make(tmp_path, people=16).build(workers=0)
    with pytest.raises(CacheError, match="another version of the renderer"):
        make(tmp_path, people=32, renderer=OtherBlobFaces).build(workers=0)


def test_another_cache_in_the_folder_is_refused(tmp_path):
    cache = make(tmp_path, people=16).build(workers=0)
    description = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(json.dumps(description | {"seed": 5}))
    with pytest.raises(CacheError, match="seed 5 instead of 0"):
        make(tmp_path, people=16)
    (cache.folder / "cache.json").write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        make(tmp_path, people=16)


@pytest.mark.parametrize("wrong", [{"people": 0}, {"views": 0}, {"resolution": 0}])
def test_empty_sizes_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="at least"):
        make(tmp_path, **wrong)


def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.np, "save", full)
    cache = make(tmp_path)
    with pytest.raises(DiskFullError):
        cache.build(workers=0)
    assert [path.name for path in cache.folder.iterdir()] == ["cache.json"]


def test_a_file_in_the_way(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        make(blocked).build(workers=0)


SLOW_BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
from drawn_blobs import BlobFaces
from refbfr_core.faces.dataset import FaceCache

class Slow(BlobFaces):
    def render(self, *arguments):
        time.sleep(0.01)
        return super().render(*arguments)

if __name__ == "__main__":
    FaceCache({root!r}, "train", 4000, 3, 32, renderer=Slow).build(workers=0)
"""


def test_a_killed_build_leaves_whole_shards_and_goes_on(tmp_path):
    script = tmp_path / "build.py"
    root = tmp_path / "cache"
    script.write_text(SLOW_BUILD.format(tests=str(Path(__file__).parent), root=str(root)))
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while make(root, people=4000).ready < 32 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    survived = make(root, people=4000).ready
    assert 32 <= survived < 4000
    assert make(root, people=survived).verify() == survived
    (make(root).folder / f".partial-{process.pid}-people-999999").mkdir()
    more = make(root, people=survived + 16).build(workers=0)
    assert more.verify() == survived + 16
    assert not list(more.folder.glob(".partial-*"))
