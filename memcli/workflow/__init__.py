"""What each command does, without parsing or printing: usable from Python as it is."""
