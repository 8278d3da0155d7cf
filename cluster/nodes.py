"""Questions of the rendered batch scripts about the nodes of their cluster.

``python -m cluster.nodes here PEER`` prints this host's address on the way to another;
``python -m cluster.nodes wait ADDRESS COUNT`` comes back when the nodes have joined.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time

from cluster.connect import connect


def here(peer: str) -> str:
    """The IPv4 address that packets to `peer` leave from; never loopback, which Ray replaces by another.

    Raises `OSError` where the peer's name is unknown.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((socket.gethostbyname(peer), 9))  # sends nothing
        found = probe.getsockname()[0]
    if not found.startswith("127."):
        return found
    import ray

    return ray.util.get_node_ip_address()


def alive(address: str, wanted: int, within: float) -> int:
    """How many nodes live at `address`: as soon as there are `wanted`, or after `within` seconds.

    Raises `ConnectionError` where no cluster answers in that time; a head that is coming up is waited for.
    """
    end = time.monotonic() + within
    while True:
        try:
            ray = connect(address)
            break
        except ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)
    try:
        while True:
            found = sum(1 for node in ray.nodes() if node["Alive"])
            if found >= wanted or time.monotonic() > end:
                return found
            time.sleep(0.5)
    finally:
        ray.shutdown()


def main(words: list[str] | None = None) -> int:
    """Run one of the two; 1 where a name is unknown or no cluster answers, 3 where only some nodes came."""
    parser = argparse.ArgumentParser(description="Addresses and nodes of a cluster, for batch scripts.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("here").add_argument("peer")
    waiting = commands.add_parser("wait")
    waiting.add_argument("address")
    waiting.add_argument("count", type=int)
    waiting.add_argument("--within", type=float, default=300.0, metavar="SECONDS")
    given = parser.parse_args(words)
    try:
        if given.command == "here":
            print(here(given.peer))
            return 0
        found = alive(given.address, given.count, given.within)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{found} of {given.count} nodes have joined {given.address}")
    return 0 if found >= given.count else 3


if __name__ == "__main__":
    sys.exit(main())
