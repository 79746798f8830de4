"""The networks of the examples: ``sizes`` names them, ``symbols`` has them for MXNet, ``modules``
for PyTorch. ``make_network.py`` writes each to a file."""
