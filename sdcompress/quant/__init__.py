"""Numerics of quantization: formats, rounding, dequantization. Nothing here knows a runtime."""
