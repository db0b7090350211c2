"""A model larger than memory, read layer by layer."""
