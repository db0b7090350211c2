"""How a run measures the speed of its cells."""
