"""Models with what a careful person expects of them: attributions, sick ones, healthy ones."""
