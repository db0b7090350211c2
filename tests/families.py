"""Which architectures the tests meet: every one in `test_families.py`, three elsewhere."""

from streamline.engine.families import FAMILIES

__all__ = ["EVERY", "THREE", "TREES"]

EVERY = tuple(kind for family in FAMILIES for kind in family.model_types)
THREE = ("llama", "opt", "falcon")
"""Rotary positions and RMS norms; biases and learned positions; layers that return tuples, with
fused projections, attention beside the MLP and no tree mask."""
TREES = tuple(kind for family in FAMILIES if family.tree for kind in family.model_types)
"""Those whose attention accepts any mask with positions."""
