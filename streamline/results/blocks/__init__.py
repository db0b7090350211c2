"""Blocks of a record that are files of their own."""
