"""Data sets: readers, splits that never change, augmentation, images that are decoded when they are needed."""
