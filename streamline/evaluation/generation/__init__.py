"""Greedy generation under many paths."""
