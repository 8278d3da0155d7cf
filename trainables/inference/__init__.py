"""Trained networks: their curves, their latency, their forms prepared for inference."""
