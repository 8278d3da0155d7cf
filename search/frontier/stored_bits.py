"""Which validation images an operating point got right, as its checkpoint says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy


def bits_of(
    study: StoredStudy, checkpoint: str, index: int, correct: int, count: int, packed: np.ndarray | None = None
) -> np.ndarray | None:
    """Which of `count` images point `index` of a checkpoint's curve got right (count,); None where nobody knows.

    `packed`: what `stored_bits` read before. A checkpoint that says another number of right images is of another
    evaluation, and says nothing; nor does one of a study whose accuracy is balanced, where images do not count alike.
    """
    if study.spec.axes.balanced:
        return None
    packed = stored_bits(study, checkpoint) if packed is None else packed
    if packed is None or index >= len(packed) or packed.shape[1] != -(-count // 8):
        return None
    bits = np.unpackbits(packed[index], count=count).astype(bool)
    return bits if int(bits.sum()) == correct else None


def stored_bits(study: StoredStudy, checkpoint: str) -> np.ndarray | None:
    """`correct_bits` (settings, bytes) of a checkpoint, without reading its weights; None where it is gone."""
    from safetensors import SafetensorError, safe_open

    path = study.folder.checkpoint(checkpoint) / "training.safetensors"
    if not checkpoint or ".." in path.parts or not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("correct_bits") if "correct_bits" in file.keys() else None
    except (SafetensorError, OSError):
        return None
