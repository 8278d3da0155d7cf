"""Cascades out of operating points: routing between networks, from what their checkpoints keep of every image."""
