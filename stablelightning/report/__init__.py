"""Floor 3: plots, tables and the W&B run; the only place that touches wandb objects."""
