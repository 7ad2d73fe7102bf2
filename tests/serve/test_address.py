"""Where a server listens."""

from __future__ import annotations

import pytest

from spectrum_diffusion.errors import InvalidOptionError
from spectrum_diffusion.serve.address import bind, is_loopback, listen, web_address


def test_the_second_of_two_servers_that_start_together_is_told_so() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:  # nobody listens yet: both load their models
            listen(first)
            with pytest.raises(InvalidOptionError, match=rf"127\.0\.0\.1:{port} \(.*in use\): pass another"):
                listen(second)
        with pytest.raises(InvalidOptionError, match="in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "256.1.1.1", "203.0.113.7"])
def test_an_address_of_no_interface_is_refused(host: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"the server cannot use {host}:8000"):
        bind(host, 8000)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) == local


def test_browsers_take_the_address() -> None:
    assert web_address("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert web_address("::1", 80) == "http://[::1]:80"
