"""What may vary: search spaces of every routing method, in the standard library alone."""
