"""A data set of random images, where only what is done with them matters."""

from __future__ import annotations

import numpy as np

from trainables.contracts.network import Task
from trainables.data.splits import Augment, Data, Split


def noise(count: int, size: int = 32, classes: int = 10, validation: int = 5000) -> Data:
    """So many random images (C = 3) in each split, the classes in turn; 16 are for testing."""
    random = np.random.RandomState(0)

    def split(n: int) -> Split:
        images = random.randint(0, 256, (n, 3, size, size)).astype(np.uint8)
        return Split(images, (np.arange(n) % classes).astype(np.int64))

    return Data(
        name="noise",
        task=Task(classes=classes, size=size),
        classes=tuple(map(str, range(classes))),
        train=split(count),
        validation=split(validation),
        test=split(16),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augment=Augment.natural(size),
        hash="noise",
    )
