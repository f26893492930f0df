"""Metrics of uncertain predictions, as torchmetrics: thin states over ``functional``."""
