"""Descriptions of families and classes of components. A module is found by its `FAMILY` or its `ARCHITECTURES`."""
