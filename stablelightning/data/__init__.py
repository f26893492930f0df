"""Floor 3: LightningDataModules."""
