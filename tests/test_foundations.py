"""Errors, devices, atomic files, the watch over torchvision, and the guard that keeps tests off the network."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import socket_guard
import torch

from refbfr_core import errors, torchvision_ops
from refbfr_core.devices import pick_device, pick_dtype
from refbfr_core.files import atomic_path, write_bytes, write_text


def test_an_unknown_name_says_the_nearest_and_prints_plainly() -> None:
    error = errors.unknown_name("metric", "PSRN", ["psnr", "ssim", "ids"])
    assert str(error) == "unknown metric 'PSRN'. Did you mean 'psnr'? Known: ids, psnr, ssim."
    assert isinstance(error, KeyError)
    assert "Did you mean" not in str(errors.unknown_name("metric", "zzzzzz", ["psnr"]))
    assert "none is registered" in str(errors.unknown_name("metric", "a", []))


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = errors.missing_extra("insightface", "photos", "face detection")
    assert isinstance(error, ImportError) and error.name == "insightface"
    assert "pip install 'refbfr_core[photos]'" in str(error)


@pytest.mark.parametrize("name", [name for name in vars(errors) if name.endswith("Error")])
def test_every_error_is_a_package_error_and_can_be_raised(name: str) -> None:
    kind = getattr(errors, name)
    with pytest.raises(errors.RefbfrError, match="a plain sentence"):
        raise kind("a plain sentence")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(errors.ConfigError, match="not a device"):
        pick_device("gpu")
    with pytest.raises(errors.ConfigError, match="CUDA device"):
        pick_device("cuda:99")


def test_dtypes() -> None:
    assert pick_dtype("cpu") is torch.float32
    assert pick_dtype("cpu", "fast") is torch.float32
    assert pick_dtype("cpu", "bfloat16") is pick_dtype("cpu", torch.bfloat16) is torch.bfloat16
    assert pick_dtype("cuda", "float16") is torch.float16
    with pytest.raises(errors.ConfigError, match="float16 .* CPU"):
        pick_dtype("cpu", "float16")
    with pytest.raises(errors.ConfigError, match="int8"):
        pick_dtype("cpu", torch.int8)
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'bfloat16'"):
        pick_dtype("cpu", "bfloat")


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    with pytest.raises(RuntimeError, match="half-way"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("half-way")
    assert path.read_bytes() == "é".encode()
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_the_temporary_file_keeps_its_suffix_and_the_usual_rights(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        assert temporary.suffix == ".safetensors" and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert (tmp_path / "a.safetensors").stat().st_mode == plain.stat().st_mode


def test_an_error_about_another_file_is_not_reported_as_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "input that is not there").read_bytes()


FAKE_TORCHVISION = {
    "__init__": "from . import extension\nfrom torchvision import _autograd_registrations, _meta_registrations, models",
    "extension": "def _has_ops():\n    return {has_ops}",
    "_meta_registrations": "raise RuntimeError('operator torchvision::nms does not exist')",
    "_autograd_registrations": "",
    "models": "answer = 42",
}


@pytest.mark.parametrize(
    ("watched", "has_ops", "expected"),
    [(True, False, "42"), (False, False, "does not exist"), (True, True, "does not exist")],
)
def test_torchvision_imports_without_its_operators(tmp_path: Path, watched: bool, has_ops: bool, expected: str) -> None:
    (tmp_path / "torchvision").mkdir()
    for name, code in FAKE_TORCHVISION.items():
        (tmp_path / "torchvision" / f"{name}.py").write_text(code.format(has_ops=has_ops))
    first = "import sys; sys.path.insert(0, sys.argv[1]);"
    watch = "import refbfr_core;"
    if not watched:
        watch = "sys.meta_path[:] = [finder for finder in sys.meta_path if 'LeaveOut' not in str(finder)];"
    command = [sys.executable, "-c", f"{first} {watch} import torchvision; print(torchvision.models.answer)", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert expected in done.stdout + done.stderr


def test_the_watch_is_set_once() -> None:
    before = list(sys.meta_path)
    torchvision_ops.install()
    assert sys.meta_path == before


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", b"localhost", None, ""])
def test_this_machine_may_be_reached(host: object) -> None:
    assert socket_guard.is_local(host)


def test_connections_inside_the_machine_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        assert server.accept()[0].recv(1) == b"x"


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "2001:db8::1", "0.0.0.1"])
def test_other_machines_are_out_of_reach(host: str) -> None:
    with pytest.raises(socket_guard.NetworkBlockedError):
        socket.create_connection((host, 80), timeout=1)
    with pytest.raises(socket_guard.NetworkBlockedError):
        socket.getaddrinfo(host, 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(socket_guard.NetworkBlockedError):
        sender.sendto(b"x", (host, 80))


def test_subprocesses_are_cut_off_too() -> None:
    script = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "NetworkBlockedError" in done.stderr
