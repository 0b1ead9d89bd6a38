"""Binding the node's ports."""

from __future__ import annotations

import os
import socket

import pytest

from rik.errors import InstanceFailure
from rik.model.instance import Port
from rik.network import ports
from rik.network.ports import FIRST_CHOSEN_PORT, LAST_CHOSEN_PORT, bind, holder_of


def test_a_chosen_port_is_of_the_range_and_listens() -> None:
    """Port 0 becomes a free port of RIK's range, another one each time."""
    with bind(Port(0, 80), "127.0.0.1", "a") as one, bind(Port(0, 80), "127.0.0.1", "a") as other:
        numbers = {one.getsockname()[1], other.getsockname()[1]}
        assert len(numbers) == 2
        assert all(FIRST_CHOSEN_PORT <= number <= LAST_CHOSEN_PORT for number in numbers)
        socket.create_connection(one.getsockname()).close()


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_held_port_names_its_holder(protocol: str) -> None:
    """A fixed port that is taken is refused with the program and pid that has it."""
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as foreign:
        foreign.bind(("127.0.0.1", 0))
        if protocol == "TCP":
            foreign.listen()
        number = foreign.getsockname()[1]
        with pytest.raises(InstanceFailure) as refused:
            bind(Port(number, 80, protocol), "127.0.0.1", "a")
        assert refused.value.reason == "PortConflict"
        assert f"port {number}/{protocol}" in str(refused.value)
        assert f"(pid {os.getpid()})" in str(refused.value)
    assert holder_of(number, protocol) == ""


def test_all_addresses_are_both_families() -> None:
    """Without an address a port answers over IPv4 and, where there is one, over IPv6."""
    with bind(Port(0, 80), "", "b") as bound:
        number = bound.getsockname()[1]
        socket.create_connection(("127.0.0.1", number)).close()
        if bound.family == socket.AF_INET6:
            socket.create_connection(("::1", number)).close()


def test_a_full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no port of the range is free the failure says which range."""
    with bind(Port(0, 80), "127.0.0.1", "c") as only:
        number = only.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_CHOSEN_PORT", number)
        monkeypatch.setattr(ports, "LAST_CHOSEN_PORT", number)
        with pytest.raises(InstanceFailure, match=f"no TCP port of {number}-{number}"):
            bind(Port(0, 80), "127.0.0.1", "c")


def test_an_address_of_somebody_else() -> None:
    """An address that is not this host's is told as such, not as a holder."""
    with pytest.raises(InstanceFailure, match=r"port 8080/TCP of 192\.0\.2\.1 cannot be bound"):
        bind(Port(8080, 80), "192.0.2.1", "d")
