"""Measurements. Each prints a table and writes --json; none is a test, and no test asserts a time."""
