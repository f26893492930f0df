"""Floor 1: modules."""
