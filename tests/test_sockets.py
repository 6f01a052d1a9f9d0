"""Tests reach this machine and nothing else (`--allow-hosts` in setup.cfg)."""

from __future__ import annotations

import socket

import pytest
from pytest_socket import SocketConnectBlockedError


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7"])  # reserved for documentation, never routed
def test_other_machines_are_out_of_reach(address):
    with socket.socket() as outgoing, pytest.raises(SocketConnectBlockedError, match=address):
        outgoing.connect((address, 80))


def test_loopback_is_within_reach():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, address = server.accept()
        with accepted:
            assert address == client.getsockname()
