"""Downloads from a server on this machine that breaks off, lies, changes its file, or is not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from file_server import FileServer, fetch_in_another_process, raising
from typer.testing import CliRunner

from refbfr_core.cli import weight_files
from refbfr_core.cli.app import app
from refbfr_core.errors import DiskFullError, OutputError, WeightsError
from refbfr_core.weights import ASSETS, asset_path, asset_state, assets, download, fetch_asset
from refbfr_core.weights.asset import FREE, NON_COMMERCIAL, Asset
from refbfr_core.weights.asset_import import import_asset, recognise_asset

CONTENT = hashlib.shake_256(b"weights").digest(3 * 2**20 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = "https://example.org/owners"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    with FileServer(CONTENT) as running:
        yield running


@pytest.fixture
def know(monkeypatch, tmp_path):
    """Put a file called "net" into the registry; the folder of files is a fresh one."""
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path / "weights"))

    def put(url: str | None = None, **fields) -> Asset:
        one = Asset(**{"name": "net", "filename": "net.pth", "purpose": "a test", "page": PAGE, "licence": "MIT",
                       "terms": FREE, "url": url, **fields})  # fmt: skip
        known = {**ASSETS, one.name: one}
        monkeypatch.setattr(assets, "ASSETS", known)
        monkeypatch.setattr("refbfr_core.weights.asset_import.ASSETS", known)
        return one

    return put


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "weights" / "files" / "net"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_whole_file_is_fetched_compared_and_written_down(server, know, folder):
    know(server.url, size=len(CONTENT), sha256=SHA256)
    seen = []
    path = fetch_asset("net", progress=lambda done, total: seen.append((done, total)))
    assert path == folder / "net.pth" and path.read_bytes() == CONTENT and left(folder) == ["net.pth", "record.json"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    record = json.loads((folder / "record.json").read_text())
    assert (record["sha256"], record["bytes"], record["url"]) == (SHA256, len(CONTENT), server.url)
    assert record["licence"] == "MIT" and record["accepted"] is None and record["page"] == PAGE
    assert asset_path("net") == path and asset_state("net", thorough=True).state == "there"
    assert fetch_asset("net") == path and len(server.asked) == 1  # a second call asks nobody


def test_a_broken_connection_goes_on_where_it_stopped(server, know, folder):
    know(server.url, sha256=SHA256)
    server.cut = [2**20 + 5, 2**19]
    assert fetch_asset("net").read_bytes() == CONTENT
    # Five bytes were less than a chunk and are asked for again.
    assert server.ranges_asked == ["", f"bytes={2**20}-", f"bytes={2**20 + 2**19}-"]
    assert server.asked[1]["If-Range"] == '"first"' and server.asked[1]["Accept-Encoding"] == "identity"


def test_pieces_and_many_breaks_are_progress(server, know):
    know(server.url, sha256=SHA256)
    server.cut, server.piece = [2**18, 2**17, 2**17, 2**17], 2**20
    assert fetch_asset("net", attempts=1).read_bytes() == CONTENT and len(server.asked) == 7


def test_a_server_that_always_breaks_off_is_given_up_and_the_next_call_goes_on(server, know, folder):
    know(server.url, sha256=SHA256)
    server.cut = [2**20, 0, 0]
    with pytest.raises(WeightsError, match=rf"broke off.*{2**20} bytes are kept.*by hand.*weights import net\.pth"):
        fetch_asset("net", attempts=2)
    assert left(folder) == [".net.pth.part", ".net.pth.part.json"]
    with pytest.raises(WeightsError, match=r"not on this machine.*refbfr weights get net"):
        asset_path("net")
    assert fetch_asset("net").read_bytes() == CONTENT and server.ranges_asked[-1] == f"bytes={2**20}-"


def test_a_server_without_ranges_starts_again(server, know):
    know(server.url, sha256=SHA256)
    server.ranges, server.cut = False, [2**20]
    assert fetch_asset("net").read_bytes() == CONTENT
    assert server.ranges_asked == ["", f"bytes={2**20}-"]


@pytest.mark.parametrize("polite", [True, False], ids=["If-Range kept", "If-Range ignored"])
def test_a_file_that_changed_meanwhile_is_not_glued_together(server, know, folder, polite):
    know(server.url)
    server.cut = [2**20, 0]
    with pytest.raises(WeightsError, match="kept"):
        fetch_asset("net", attempts=1)
    server.content, server.cut = CONTENT[::-1], []
    if polite:
        server.etag = '"second"'
    else:  # a server that hands out the rest of another file, and says so only in its answer
        answer = server.answer

        def ignore_condition(request):
            del request.headers["If-Range"]
            answer(request)

        server.etag, server.answer = '"second"', ignore_condition
    assert fetch_asset("net").read_bytes() == CONTENT[::-1]


def test_without_any_mark_only_a_known_digest_makes_it_go_on(server, know):
    server.etag, server.cut = "", [2**20]
    know(server.url)
    assert fetch_asset("net").read_bytes() == CONTENT and server.ranges_asked == ["", ""]
    server.asked.clear()
    server.cut = [2**20]
    know(server.url, sha256=SHA256)
    assert fetch_asset("net", replace=True).read_bytes() == CONTENT and server.ranges_asked == ["", f"bytes={2**20}-"]


def test_a_date_is_a_mark_and_a_weak_etag_is_none(server, know):
    know(server.url)
    server.etag, server.modified, server.cut = 'W/"first"', "Mon, 01 Jan 2024 00:00:00 GMT", [2**20]
    assert fetch_asset("net").read_bytes() == CONTENT
    assert server.asked[1]["If-Range"] == server.modified


def test_a_whole_part_is_not_asked_for_again(server, know, folder, monkeypatch):
    know(server.url)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", raising(OSError(errno.EIO, "broken cable")))
        with pytest.raises(OutputError, match=r"net\.pth"):
            fetch_asset("net")
    assert not (folder / "net.pth").exists()
    assert fetch_asset("net").read_bytes() == CONTENT and len(server.asked) == 1


def test_a_body_shorter_than_announced_is_no_file(server, know, folder):
    know(server.url)
    server.claims, server.ranges = len(CONTENT) + 10, False
    with pytest.raises(WeightsError, match="broke off"):
        fetch_asset("net", attempts=2)
    assert not (folder / "net.pth").exists()


@pytest.mark.parametrize("field", ["sha256", "sha256_prefix"])
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, know, folder, field):
    know(server.url, **{field: "0" * (64 if field == "sha256" else 8)})
    with pytest.raises(WeightsError, match=rf"SHA-256 {SHA256[:16]}.* came.*Nothing of it was kept.*weights import"):
        fetch_asset("net")
    assert left(folder) == []


def test_another_length_than_expected_is_refused_before_it_comes(server, know, folder):
    know(server.url, size=5)
    with pytest.raises(WeightsError, match=rf"{len(CONTENT)} bytes, 5 are expected"):
        fetch_asset("net")
    assert left(folder) == []


@pytest.mark.parametrize(("status", "requests_made"), [(404, 1), (403, 1), (503, 3)])
def test_an_answer_that_is_an_error_names_the_page_and_the_way_by_hand(server, know, folder, status, requests_made):
    know(server.url)
    server.status = status
    with pytest.raises(WeightsError, match=rf"answered {status}.*[bB]y hand: Download it from .*model\.pth.*import"):
        fetch_asset("net", attempts=3)
    assert len(server.asked) == requests_made and left(folder) == []


def test_a_web_page_is_no_file(server, know, folder):
    know(server.url)
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(WeightsError, match="web page"):
        fetch_asset("net")
    assert left(folder) == []


def test_a_closed_port_and_a_silent_server(server, know):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    know(f"http://127.0.0.1:{port}/model.pth")
    with pytest.raises(WeightsError, match=r"Connection refused.*2 attempts.*refbfr weights import net\.pth"):
        fetch_asset("net", attempts=2)
    know(server.url)
    server.stall = threading.Event()
    with pytest.raises(WeightsError, match=r"no answer within 0\.1 seconds"):
        fetch_asset("net", attempts=1, timeout=0.1)


def test_a_disk_without_room_is_noticed_before_and_while_writing(server, know, folder, monkeypatch):
    know(server.url, sha256=SHA256)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
        with pytest.raises(DiskFullError, match="3 MiB are still to come, 1 MiB are free"):
            fetch_asset("net")
    done = fetch_in_another_process(server.url, SHA256, folder.parent, limit=2**20)
    assert done.wait(60) == 3 and "DiskFullError" in (said := done.stdout.read()), said
    assert f"{2**20} bytes are kept" in said and "goes on with them" in said
    assert not (folder / "net.pth").exists() and (folder / ".net.pth.part").stat().st_size == 2**20
    assert fetch_asset("net").read_bytes() == CONTENT and server.ranges_asked[-1] == f"bytes={2**20}-"


def test_a_killed_download_goes_on(server, know, folder):
    know(server.url, sha256=SHA256)
    server.pause = 0.05
    running = fetch_in_another_process(server.url, SHA256, folder.parent)
    part = folder / ".net.pth.part"
    for _ in range(3000):
        if part.is_file() and part.stat().st_size:
            break
        threading.Event().wait(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL and not (folder / "net.pth").exists()
    kept, server.pause = part.stat().st_size, 0.0
    assert 0 < kept < len(CONTENT)
    assert fetch_asset("net").read_bytes() == CONTENT and server.ranges_asked[-1] == f"bytes={kept}-"


def test_two_downloads_at_once_do_not_mix(server, know, folder):
    know(server.url)
    server.stall = threading.Event()
    running = fetch_in_another_process(server.url, SHA256, folder.parent)
    for _ in range(3000):
        if server.asked:
            break
        threading.Event().wait(0.01)
    with pytest.raises(OutputError, match="another process is writing"):
        fetch_asset("net")
    server.stall.set()
    assert running.wait(60) == 0 and (folder / "net.pth").read_bytes() == CONTENT


def test_offline_makes_no_connection_at_all(server, know, folder, monkeypatch):
    know(server.url)
    monkeypatch.setattr(requests.Session, "send", raising(AssertionError("a connection was made")))
    monkeypatch.setattr(socket, "create_connection", raising(AssertionError("a connection was made")))
    monkeypatch.setenv("REFBFR_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"REFBFR_OFFLINE forbids.*refbfr weights import net\.pth"):
        fetch_asset("net")
    monkeypatch.setenv("REFBFR_OFFLINE", "0")
    with pytest.raises(WeightsError, match="forbids"):
        fetch_asset("net", offline=True)
    know(repository="owner/name", filename="")
    with pytest.raises(WeightsError, match="not on this machine.*refbfr weights get net"):
        fetch_asset("net", offline=True)
    assert server.asked == [] and not folder.exists()


def test_a_licence_that_is_not_accepted_fetches_nothing(server, know, folder):
    know(server.url, terms=NON_COMMERCIAL, licence="research only")
    asked = []
    for answer in (False, lambda asset: asked.append(asset.licence)):
        with pytest.raises(WeightsError, match=r"research only.*not accepted.*--accept-licence"):
            fetch_asset("net", accept=answer)
    assert asked == ["research only"] and server.asked == [] and not folder.exists()
    fetch_asset("net", accept=True)
    assert json.loads((folder / "record.json").read_text())["accepted"] is True


def test_the_first_file_is_written_down_and_a_later_change_is_noticed(server, know, folder):
    know(server.url)
    path = fetch_asset("net")
    assert asset_state("net", thorough=True).state == "recorded"
    altered = bytearray(CONTENT)
    altered[1000] ^= 1
    path.write_bytes(altered)
    with pytest.raises(WeightsError, match=r"altered.*file that came first.*Nothing was deleted.*get net --replace"):
        asset_path("net")
    with pytest.raises(WeightsError, match="altered"):
        fetch_asset("net")
    assert asset_state("net", thorough=True).state == "altered" and path.read_bytes() == altered
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        asset_path("net")
    assert asset_state("net").state == "altered"
    # Its owners put another file there: refused as well, until somebody says that the new one is wanted.
    path.unlink()
    server.content, server.etag = CONTENT[::-1], '"second"'
    with pytest.raises(WeightsError, match=r"the file that came first.*refbfr weights get net --replace"):
        fetch_asset("net")
    assert fetch_asset("net", replace=True).read_bytes() == CONTENT[::-1] and asset_path("net") == path


def test_a_file_put_there_by_hand_is_written_down_on_first_use(know, folder):
    know()
    folder.mkdir(parents=True)
    (folder / "net.pth").write_bytes(b"first")
    assert asset_path("net").read_bytes() == b"first"
    (folder / "net.pth").write_bytes(b"other")
    with pytest.raises(WeightsError, match="altered"):
        asset_path("net")
    (folder / "record.json").write_text("{")
    with pytest.raises(WeightsError, match=r"record\.json cannot be read"):
        asset_path("net")


def test_a_library_keeps_its_own_copy(know, folder, tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    know(library="torch-hub/checkpoints/net.pth", sha256=SHA256)
    place = tmp_path / "torch" / "hub" / "checkpoints" / "net.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert asset_path("net") == place and asset_state("net").path == place and not folder.exists()
    place.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(WeightsError, match="altered"):
        asset_path("net")


def test_a_download_from_a_browser_is_taken_in(know, folder, tmp_path):
    know(store="https://drive.google.com/x", terms=NON_COMMERCIAL, licence="research only")
    with pytest.raises(WeightsError, match=r"no program can fetch.*drive\.google\.com.*weights import net\.pth"):
        fetch_asset("net", accept=True)
    file = tmp_path / "net.pth"
    file.write_bytes(CONTENT)
    with pytest.raises(WeightsError, match="not accepted"):
        import_asset(file, "net")
    assert not folder.exists() and recognise_asset(file) == "net"
    assert import_asset(file, "net", accept=True) == asset_path("net") == folder / "net.pth"
    file.write_bytes(b"another")
    with pytest.raises(WeightsError, match="--replace"):
        import_asset(file, "net", accept=True)
    assert import_asset(file, "net", accept=True, replace=True).read_bytes() == b"another"
    know(store="https://drive.google.com/x", sha256=SHA256)
    with pytest.raises(WeightsError, match="Nothing was copied"):
        import_asset(file, "net", replace=True)


def test_a_download_under_another_name_is_known_by_its_digest(know, tmp_path):
    know(sha256=SHA256)
    file = tmp_path / "download (1).bin"
    file.write_bytes(CONTENT)
    assert recognise_asset(file) == "net"
    file.write_bytes(CONTENT + b"x")
    assert recognise_asset(file) is None and recognise_asset(tmp_path) is None
    know(sha256=SHA256, converted=True)
    file.write_bytes(CONTENT)
    assert recognise_asset(file) is None


def test_a_repository_is_found_in_the_hubs_cache_and_compared(know, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    know(repository="owner/name", filename="", terms=NON_COMMERCIAL)
    assert asset_state("net").state == "not there"
    with pytest.raises(WeightsError, match="not accepted"):
        fetch_asset("net")
    with pytest.raises(WeightsError, match="hub cannot be reached.*refbfr weights get net"):
        fetch_asset("net", accept=True)  # HF_HUB_OFFLINE is set for all tests
    kept = tmp_path / "hub" / "models--owner--name"
    snapshot, blob = kept / "snapshots" / ("a" * 40), kept / "blobs" / SHA256
    for place in (snapshot / "unet", blob.parent, kept / "refs"):
        place.mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    blob.write_bytes(CONTENT)
    (snapshot / "unet" / "weights.safetensors").symlink_to(blob)
    assert asset_path("net") == snapshot and asset_state("net", thorough=True).state == "there"
    blob.write_bytes(CONTENT[:-1])
    assert asset_state("net", thorough=True).state == "altered"


def test_the_command_gets_lists_verifies_and_imports(server, know, folder, tmp_path, monkeypatch):
    know(server.url, terms=NON_COMMERCIAL, licence="research only", use="feed it")

    def run(*arguments):
        return CliRunner().invoke(app, ["weights", *map(str, arguments)])

    refused = run("get", "net")
    assert refused.exit_code == 1 and "not accepted" in refused.stderr and not folder.exists()
    assert "net (not there): net.pth" in run("list", "--assets").stdout
    got = run("get", "net", "--accept-licence")
    assert got.exit_code == 0 and str(folder / "net.pth") in got.stdout and "feed it" in got.stdout
    assert "net (recorded)" in run("list", "--assets").stdout
    assert run("verify", "net").exit_code == 0 and "net: whole" in run("verify", "net").stdout
    (folder / "net.pth").write_bytes(CONTENT[:-1] + b"!")
    damaged = run("verify", "net")
    assert damaged.exit_code == 1 and "net: BROKEN" in damaged.stdout and "1 of 1 public files" in damaged.stderr
    assert "net" in weight_files.present_files()  # what `verify` looks at without a name, beside the networks
    (tmp_path / "net.pth").write_bytes(CONTENT)
    again = run("import", tmp_path / "net.pth", "--accept-licence", "--replace")
    assert again.exit_code == 0 and run("verify", "net").exit_code == 0
    know(terms=FREE, filename="")
    (tmp_path / "odd.bin").write_bytes(b"odd")
    named = run("import", tmp_path / "odd.bin", "--as", "net", "--replace")
    assert named.exit_code == 0 and asset_path("net").name == "odd.bin"
    assert run("get", "nets").exit_code == 1 and "Did you mean 'net'" in run("get", "nets").stderr
    monkeypatch.setenv("REFBFR_OFFLINE", "1")
    several = run("get", "dr2", "net", "codeformer")
    assert several.exit_code == 1 and "2 of 3 files were not fetched" in several.stderr
    assert "dr2: NOT FETCHED: no program can" in several.stdout and "codeformer: NOT FETCHED" in several.stdout
