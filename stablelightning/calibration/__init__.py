"""Objects that are fitted on predictions with known targets, and correct later predictions."""
