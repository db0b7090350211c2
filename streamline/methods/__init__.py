"""What pruning methods are built from, and LLM-Streamline itself."""
