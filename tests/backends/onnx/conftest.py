"""Puts this folder on the path: tests of graphs here and in `passes/` share `small_graphs`."""
