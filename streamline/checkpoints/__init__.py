"""A pruned model as a folder, and the proof that the folder holds it."""
