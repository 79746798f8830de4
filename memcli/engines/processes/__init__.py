"""Engines in processes of their own: crashes, limits, progress."""
