"""Tasks: their questions, prompts and where they come from."""
