"""The engine: many paths through one model's layers, each shared layer run once per batch."""
