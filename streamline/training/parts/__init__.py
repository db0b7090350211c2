"""Weights of which each of several processes holds a part, by PyTorch's FSDP2."""
