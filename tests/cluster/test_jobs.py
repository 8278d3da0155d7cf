"""Addresses that take no jobs; `check_jobs.py` runs studies on a real head."""

from __future__ import annotations

import socket

import pytest

from cluster.jobs import Jobs


def test_an_address_that_is_none_or_dead_is_one_line() -> None:
    for address in ("127.0.0.1:8265", "ray://127.0.0.1:10001", "http://"):
        with pytest.raises(ValueError, match=r"is no address for jobs; give the dashboard's, for example http://HOST"):
            Jobs(address)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=r"no Ray dashboard answers at .* \(Connection refused\)"):
        Jobs(dead)
