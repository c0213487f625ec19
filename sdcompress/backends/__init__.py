"""Backends package what `quant/` computed for a runtime."""
