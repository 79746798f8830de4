"""MXNet's memory: its pool, exact to the byte, and bounds of what any plan takes."""
