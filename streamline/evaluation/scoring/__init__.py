"""Log-probabilities of options and texts under many paths."""
