"""Checkpoints in the formats of other tools, and where a pruned model can be served."""
