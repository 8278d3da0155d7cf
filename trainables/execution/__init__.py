"""Executing only what is decided: rows of a batch, fused convolutions, the one counter of MACs."""
