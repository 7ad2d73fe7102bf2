"""Where a server listens: checked before a model is loaded."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import InvalidOptionError


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address. Nobody can connect until it listens.

    Raises:
        InvalidOptionError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise _unusable(host, port, error) from None
    return bound


def listen(bound: socket.socket) -> None:
    """Let clients connect.

    Raises:
        InvalidOptionError: another server, bound to the same address, came first.
    """
    try:
        bound.listen()
    except OSError as error:
        host, port, *_ = bound.getsockname()
        raise _unusable(host, port, error) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, which may mean any address
        return False


def web_address(host: str, port: int) -> str:
    """The address as a browser takes it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _unusable(host: str, port: int, error: Exception) -> InvalidOptionError:
    reason = getattr(error, "strerror", None) or error
    return InvalidOptionError(f"the server cannot use {host}:{port} ({reason}): pass another host or port")
