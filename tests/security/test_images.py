"""Images of strangers: what would start a program, never end, or fill the memory is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data import decoding
from trainables.data.decoding import FORMATS, decode
from trainables.data.errors import DataError


def test_postscript_is_no_image_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript, here one that leaves a mark."""
    ran, gs = tmp_path / "ran", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {ran}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "zz.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n%%EOF\n")
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match=r"zz\.png is not a whole image file \(cannot be decoded\)"):
            decode(source, "zz.png")
    assert not ran.exists()
    assert not {"EPS", "WMF", "IPTC"} & set(FORMATS)


@pytest.mark.parametrize(("edge", "says"), [(100_000, "exceeds limit of"), (12_000, "at most 100 million are read")])
def test_few_bytes_of_many_pixels_are_not_unpacked(edge: int, says: str) -> None:
    """A PNG of 10 kB that would take up to 30 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match=says):
        decode(b"\x89PNG\r\n\x1a\n" + data, "bomb.png")


def test_a_pipe_is_not_waited_for_and_a_huge_file_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no regular file"):
        decode(tmp_path / "pipe.png", "pipe.png")
    monkeypatch.setattr(decoding, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="large has 0 MiB; at most"):
        decode(bytes(101), "large")


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"DIB", "ICO"}))
def test_the_usual_formats_are_read(kind: str) -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    image = decode(file.getvalue(), kind)
    assert (image.mode, image.size) == ("RGB", (16, 16))
