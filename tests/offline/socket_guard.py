"""Refuse every network connection except to this machine itself, which Jupyter kernels need."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost"}


class NetworkBlockedError(RuntimeError):
    """Something under test tried to reach another machine.

    Not an OSError, so that no retry or fall-back can swallow it as a mere outage.
    """


def install() -> None:
    """Replace the connecting methods of `socket.socket` and name look-up by guarded ones.

    Calling it again changes nothing.
    """
    if getattr(socket.socket.connect, "refuses_other_machines", False):
        return
    for method in ("connect", "connect_ex", "bind"):
        setattr(socket.socket, method, _guarded_address(getattr(socket.socket, method)))
    socket.socket.sendto = _guarded_sendto(socket.socket.sendto)
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, function, _guarded_lookup(getattr(socket, function)))


def is_local(host: object) -> bool:
    """Tell whether `host`, a name or a numeric address, is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or (isinstance(name, str) and name.lower() in _LOCAL_NAMES):
        return True
    try:
        return ipaddress.ip_address(str(name).split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    if not is_local(host):
        raise NetworkBlockedError(f"the tests run without a network, but something tried to reach {host!r}")


def _check(family: int, address: Any) -> None:
    # Unix sockets have a path for an address and never leave the machine.
    if family in (socket.AF_INET, socket.AF_INET6):
        _refuse(address[0])
    elif family != socket.AF_UNIX:
        raise NetworkBlockedError(f"the tests run without a network, but something used a socket of family {family}")


def _guarded_address(original: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        _check(self.family, address)
        return original(self, address)

    guarded.refuses_other_machines = True
    return guarded


def _guarded_sendto(original: Any) -> Any:
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        _check(self.family, arguments[-1])
        return original(self, *arguments)

    return guarded


def _guarded_lookup(original: Any) -> Any:
    def guarded(host: Any, *arguments: Any, **keywords: Any) -> Any:
        _refuse(host)
        return original(host, *arguments, **keywords)

    return guarded
