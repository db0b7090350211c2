"""What a run measures and tells beside its figures: the speed of cells, and their texts."""
