"""The verbs that write, compare and hand on checkpoints, one a file."""
