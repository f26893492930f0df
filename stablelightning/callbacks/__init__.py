"""Floor 3: Lightning callbacks, one concern each."""
