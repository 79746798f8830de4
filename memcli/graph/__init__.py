"""The training graph, and what its operators and plans cost, whatever the engine."""
