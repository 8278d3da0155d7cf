"""Trained networks as static graphs and a program of them, which runs without torch (`docs/export.md`)."""
