"""Scoring models on questions: tasks, the scorer, and the seam to lm-eval."""
