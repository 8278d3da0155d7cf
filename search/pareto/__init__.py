"""The mathematics of fronts: dominance, layers, hypervolume, how sure a front is. Knows nothing of ours."""
