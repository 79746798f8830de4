"""MXNet symbol files."""
