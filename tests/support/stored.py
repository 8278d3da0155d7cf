"""A real HTTP server that speaks S3 (moto), and what a study in it is reached by."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bucket() -> Iterator[str]:
    """The address of an empty place in a bucket; keys stand in the environment, for processes that begin meanwhile."""
    from moto.server import ThreadedMotoServer

    before = dict(os.environ)
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        from pyarrow import fs

        files = fs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        files.create_dir("bucket")
        yield f"s3://bucket/group?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(before)
