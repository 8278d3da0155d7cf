"""Whether a trial goes on: rungs, brackets, and the decisions on trials that reach a rung."""
