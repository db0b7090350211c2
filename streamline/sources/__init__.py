"""From names to models, texts and packaged data."""
