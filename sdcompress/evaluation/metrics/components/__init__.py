"""Metrics of single components, one file each: they compare outputs of the original and the compressed component.

JSON has no infinity: equal outputs have `null` where a ratio would be infinite, and are counted as `identical`.
"""
