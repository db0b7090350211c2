"""Readers of the files in which answers are kept."""
