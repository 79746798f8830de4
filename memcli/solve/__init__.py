"""Plans for graphs of costs: which values to recompute, when, and in what order."""
