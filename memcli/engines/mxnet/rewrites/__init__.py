"""Rewrites of symbols that keep every bit, one file each."""
