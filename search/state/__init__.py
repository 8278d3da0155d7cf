"""The state of a study, a fold over its events: trials, constraints, setbacks, which checkpoints are kept."""
