"""The models of finished cells as checkpoints, from what the run has kept."""
