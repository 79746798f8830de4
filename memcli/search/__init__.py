"""Searches for plans, whatever the engine: strategies behind `Strategy` and `SearchSpace`."""
