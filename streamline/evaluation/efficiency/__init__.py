"""How fast and how large a variant is beside its dense model: counted and measured."""
