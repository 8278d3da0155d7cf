"""Networks that others wrote, cut into parts: with exits, with gated blocks, or as they are."""
