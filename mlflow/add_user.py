"""Adds a user to a tracking server with authentication, and prints the password that was made up.

    MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=... python add_user.py http://HOST:5000 NAME

A new user may read everything and write what is his own;
`mlflow.server.get_app_client("basic-auth", ADDRESS)` grants more.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import urllib.error
import urllib.request


def add(address: str, name: str, password: str) -> None:
    """Create the user; raises `urllib.error.HTTPError` where the server refuses."""
    admin = f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    request = urllib.request.Request(
        address.rstrip("/") + "/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(admin.encode()).decode(),
        },
    )
    urllib.request.urlopen(request, timeout=20).close()


def main() -> None:
    """Exit code 2 where there is something to put right."""
    if len(sys.argv) != 3 or not sys.argv[1].startswith(("http://", "https://")):
        sys.exit("error: write add_user.py http://HOST:PORT NAME")
    _, address, name = sys.argv
    password = secrets.token_urlsafe(18)
    try:
        add(address, name, password)
    except urllib.error.HTTPError as error:
        why = {401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an administrator's"}.get(error.code)
        why = why or error.read().decode(errors="replace")[:200].replace("\n", " ")
        print(f"error: {address} refuses ({error.code}): {why}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {address} does not answer: {getattr(error, 'reason', error)}", file=sys.stderr)
        sys.exit(2)
    print(f"user {name}, password {password}")


if __name__ == "__main__":
    main()
