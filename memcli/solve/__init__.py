"""Plans for graphs of costs: which values to compute again, when, and in what order."""
