"""Files of models: read, checked, and written with a plan."""
