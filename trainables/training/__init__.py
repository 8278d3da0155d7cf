"""Training: the loop, an epoch's steps, shared first stages, features that are kept."""
