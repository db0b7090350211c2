"""A benchmark run: its settings, its cells, its folder."""
