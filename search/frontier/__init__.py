"""Questions about operating points: pools of studies, filters, fronts, measured latency, printed results."""
