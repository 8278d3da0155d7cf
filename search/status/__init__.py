"""A study's state in words: tables, the live display, one trial's story, the cluster."""
