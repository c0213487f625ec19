"""Metrics of single components, one file each: from (original, compressed) outputs of the same inputs to figures.

JSON has no infinity: equal outputs have `null` where a ratio would be infinite, and are counted as `identical`.
"""
