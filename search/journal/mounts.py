"""The kind of file system that a path lies on, as Linux tells; elsewhere unknown."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs 9p afs ceph glusterfs lustre gpfs beegfs fuse.sshfs fuse.glusterfs fuse.ceph"
    " fuse.s3fs fuse.gcsfuse fuse.rclone".split()
)


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds a path (``"ext4"``), empty where it cannot be told."""
    try:
        lines = [line.split(" ") for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    real, found, longest = path.resolve(), "", -1
    for _, point, kind, *_ in lines:
        place = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point))  # spaces are written \040
        if real.is_relative_to(place) and len(place.parts) >= longest:  # of two on one place the later hides the other
            found, longest = kind, len(place.parts)
    return found


def is_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a path lies on a network file system, where SQLite's locks and shared memory may fail."""
    return file_system(path, mounts) in NETWORK
