"""Waiting until the nodes of a cluster have joined: ``python -m cluster.nodes ADDRESS COUNT``."""

from __future__ import annotations

import argparse
import sys
import time

from cluster.connect import connect


def alive(address: str, wanted: int, within: float) -> int:
    """How many nodes live at `address`: as soon as there are `wanted`, or after `within` seconds.

    Raises `ConnectionError` where no cluster answers.
    """
    end = time.monotonic() + within
    ray = connect(address)
    try:
        while True:
            found = sum(1 for node in ray.nodes() if node["Alive"])
            if found >= wanted or time.monotonic() > end:
                return found
            time.sleep(0.5)
    finally:
        ray.shutdown()


def main() -> int:
    """Say how many nodes came; 0 where all did, 3 where only some, 1 where no cluster answers."""
    words = argparse.ArgumentParser(description="Wait until a cluster's nodes have joined.")
    words.add_argument("address")
    words.add_argument("count", type=int)
    words.add_argument("--within", type=float, default=300.0, metavar="SECONDS")
    given = words.parse_args()
    try:
        found = alive(given.address, given.count, given.within)
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{found} of {given.count} nodes have joined {given.address}")
    return 0 if found >= given.count else 3


if __name__ == "__main__":
    sys.exit(main())
