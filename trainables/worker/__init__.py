"""What runs on a node: the Ray trainable, its place for checkpoints, its guard, the probe of a machine."""
