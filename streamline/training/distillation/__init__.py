"""Distillation of a pruned model from its dense one, as a stage of recovery."""
