"""What the command shows: errors, tables, a run before it begins, progress."""
