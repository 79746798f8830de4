"""A plan as groups of layers for a framework's own checkpoints."""
