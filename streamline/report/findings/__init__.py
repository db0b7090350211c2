"""What the numbers of a run say: rows with their errors, what cannot be told apart, the answer."""
