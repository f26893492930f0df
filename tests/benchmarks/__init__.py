"""Measurements: each prints a table and writes --json. None is a test; no test asserts a time."""
