"""Tests: ``unit`` needs no engine, ``integration`` runs the real command on the real engines."""
